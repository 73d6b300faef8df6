"""What a server was before it was prepared: kept on disk before the first change."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from hanok.durable import give_file, sync_path
from hanok.errors import HostError
from hanok.preparation.plan import FileChange

JOURNAL = Path("/var/lib/hanok/prepared.json")


@dataclass(frozen=True)
class Journal:
    """Files as they were (their ``new`` means nothing), and packages that were added."""

    files: tuple[FileChange, ...]
    added: tuple[str, ...]

    def by_path(self) -> dict[str, FileChange]:
        """Return the files by their paths."""
        return {change.path: change for change in self.files}


def load(path: Path = JOURNAL) -> Journal | None:
    """Return what was kept, or None when nothing was. Raises HostError for a damaged file."""
    try:
        found = json.loads(path.read_text())
        files = tuple(
            FileChange(
                one["path"],
                None if one["content"] is None else base64.b64decode(one["content"], validate=True),
                None,
                int(one["mode"]),
            )
            for one in found["files"]
        )
        return Journal(files, tuple(str(name) for name in found["added"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(
            f"{path} is damaged: what this server was before is not known",
            hint="look at /etc/grub.d and /etc/default/grub.d, take out Hanok's files, update-grub",
        ) from error


def save(journal: Journal, path: Path = JOURNAL) -> None:
    """Write the journal to the disk, whole or not at all."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    document = {
        "files": [
            {
                "path": one.path,
                "mode": one.mode,
                "content": None if one.old is None else base64.b64encode(one.old).decode(),
            }
            for one in journal.files
        ],
        "added": list(journal.added),
    }
    write_whole(path, json.dumps(document, indent=1).encode() + b"\n", 0o600)


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Put ``data`` in the place of a file: at any moment the old or the new one is there.

    The draft is hidden: GRUB and others run or read every file of their folders that is not.
    """
    give_file(path, data, None, mode=mode, draft=path.with_name(f".{path.name}.hanok"))
    sync_path(path.parent)
