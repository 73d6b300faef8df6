"""A folder of measured servers: ``NAME.usage.json`` or ``NAME.usage.json.gz``, one a server.

Beside a file may lie ``NAME.usage.journal``, what ``hanok assess collect`` has measured since it
last wrote the file; it is read with it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from hanok.assess.journal import JOURNAL, merged, read_journal
from hanok.assess.limits import LIMITS, Limits
from hanok.assess.reading import Tell, read_json, tell_nobody
from hanok.durable import give_file, sync_path
from hanok.errors import Conflict, HostError, InvalidInput, NotFound
from hanok.model.usage import Usage
from hanok.model.validation import validated

SUFFIX = ".usage.json"
_PACKED = f"{SUFFIX}.gz"
_SUFFIXES = (SUFFIX, _PACKED, JOURNAL)


def read_usages(folder: Path, limits: Limits = LIMITS, tell: Tell = tell_nobody) -> list[Usage]:
    """Return what was measured of every server of ``folder``, by name.

    Raises NotFound when there is no such folder or nothing measured in it, InvalidInput naming file
    and field of what is wrong, or when all together is beyond ``limits``.
    """
    found: list[Usage] = []
    values = 0
    for usage in open_usages(folder, limits, tell):
        values += usage.length * len(usage.samples)
        if values > limits.folder_values:
            raise InvalidInput(
                f"{folder} holds too much to read at once",
                field=str(folder),
                expected=f"at most {limits.folder_values} samples in all files",
                hint="import with a longer --interval, or plan parts of the servers",
            )
        found.append(usage)
    return found


def open_usages(folder: Path, limits: Limits = LIMITS, tell: Tell = tell_nobody) -> Iterator[Usage]:
    """Yield the servers of ``folder`` by name, one at a time. Raises as ``read_usages`` does."""
    names = server_names(folder, limits)
    if not names:
        raise NotFound(
            f"nothing measured is in {folder}",
            hint=f"'hanok assess collect' and 'hanok assess import' write NAME{SUFFIX}",
        )
    for at, name in enumerate(names):
        tell(f"reading {name}", at / len(names))
        usage = read_usage(folder, name, limits)
        if usage is not None:
            yield usage


def server_names(folder: Path, limits: Limits = LIMITS) -> list[str]:
    """Return the names of the servers that ``folder`` has files of, sorted.

    Raises NotFound when there is no such folder, InvalidInput when it holds too many files.
    """
    names = set()
    try:
        for number, entry in enumerate(folder.iterdir()):
            if number >= limits.files:
                raise InvalidInput(
                    f"{folder} has too many files",
                    field=str(folder),
                    expected=f"at most {limits.files}",
                )
            name = _server_of(entry.name)
            if name:
                names.add(name)
    except FileNotFoundError:
        raise NotFound(f"there is no folder {folder}") from None
    except OSError as error:
        raise InvalidInput(
            f"{folder} cannot be read: {error.strerror}", field=str(folder)
        ) from None
    return sorted(names)


def _server_of(file: str) -> str | None:
    return next((file.removesuffix(end) for end in _SUFFIXES if file.endswith(end)), None)


def read_usage(folder: Path, name: str, limits: Limits = LIMITS) -> Usage | None:
    """Return what was measured of one server; None when a collector has only just begun.

    Raises InvalidInput naming file and field of what is wrong, also when the server is there twice.
    """
    paths = [path for end in (SUFFIX, _PACKED) if (path := folder / f"{name}{end}").exists()]
    if len(paths) > 1:
        raise InvalidInput(
            f"{name} is there twice: {paths[0].name} and {paths[1].name}",
            field=paths[1].name,
            hint="remove one of them",
        )
    usage = _read_file(paths[0], name, limits) if paths else None
    journal = folder / f"{name}{JOURNAL}"
    if not journal.exists():
        return usage
    return merged(usage, read_journal(journal, name, limits))


def _read_file(path: Path, name: str, limits: Limits) -> Usage:
    data = read_json(path, limits, most=limits.usage_bytes)
    usage = validated(Usage, data, path.name)
    if usage.server != name:
        raise InvalidInput(
            f"the file is named after {name!r}, and is about {usage.server!r}",
            field=f"{path.name}.server",
            expected=f"{name!r}, the name of the file",
        )
    return usage


def _refuse_there(folder: Path, server: str, *, replace: bool) -> None:
    """Raise Conflict when a collector writes ``server``, or it is there and not to be replaced."""
    if (folder / f"{server}{JOURNAL}").exists():
        raise Conflict(
            f"a collector writes {server} into {folder}",
            field="--out",
            hint="another folder; if it was killed, 'hanok assess collect' there ends its journal",
        )
    there = [path for end in (SUFFIX, _PACKED) if (path := folder / f"{server}{end}").exists()]
    if there and not replace:
        raise Conflict(
            f"{there[0]} is there already", field="--out", hint="another folder, or --replace"
        )


def put_usage(folder: Path, usage: Usage) -> None:
    """Write ``usage`` into ``folder``, which is there, in place of what was.

    The file is whole after a crash, or it is what was there before. Raises HostError when it cannot
    be written.
    """
    data = usage.model_dump_json().encode() + b"\n"
    with _making(folder):
        draft = folder / f".{usage.server}.new"
        give_file(folder / f"{usage.server}{SUFFIX}", data, None, mode=0o644, draft=draft)
        sync_path(folder)


@contextlib.contextmanager
def _making(folder: Path) -> Iterator[None]:
    """Turn OSError into HostError."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"{folder} cannot be written: {error.strerror}",
            hint="may this user write there, and is there room?",
        ) from error


def write_all(folder: Path, usages: Iterable[Usage], *, replace: bool = False) -> Iterator[Usage]:
    """Write ``usages`` into ``folder``, all or none, and yield each when it is prepared.

    Whoever takes them all has them written; until then they are in a hidden folder, which goes away
    on any error. Raises Conflict when there is one already, unless ``replace``, or when a
    collector writes it; HostError when it cannot be written; and what ``usages`` raises.
    """
    with _making(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".import-", dir=folder))
    try:
        names = []
        for usage in usages:
            _refuse_there(folder, usage.server, replace=replace)
            put_usage(stage, usage)
            names.append(usage.server)
            yield usage
        with _making(folder):
            for name in names:
                (stage / f"{name}{SUFFIX}").rename(folder / f"{name}{SUFFIX}")
                (folder / f"{name}{_PACKED}").unlink(missing_ok=True)
            sync_path(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
