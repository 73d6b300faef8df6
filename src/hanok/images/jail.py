"""Where qemu-img works on disks that nobody can vouch for: it sees those files and an empty folder.

As root it runs as an unprivileged uid in namespaces of its own (``foreign/jail``), without a
network or any other file of the host; as an ordinary user it is that user's own process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hanok.images.sandbox import DEFAULT_ACCOUNT
from hanok.proc import Account


@dataclass(frozen=True)
class Jail:
    """Where a program reads the files ``sources`` and writes to the folder ``out``."""

    sources: tuple[Path, ...]
    folder: Path
    account: Account | None

    @property
    def source(self) -> Path:
        """The first of the files that it reads."""
        return self.sources[0]

    @property
    def out(self) -> Path:
        """The folder that it writes to."""
        return self.folder / "out"

    def given(self, number: int = 0) -> str:
        """Return the name of a source as the program sees it."""
        return str(self.sources[number]) if self.account is None else f"/in/{number}"

    def made(self, name: str) -> str:
        """Return the name of the file ``name`` of ``out`` as the program sees it."""
        return str(self.out / name) if self.account is None else f"/out/{name}"

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs ``command`` in it and ends with this process."""
        bound = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
        if self.account is None:
            return [*bound, *command]
        script = (resources.files("hanok.images.foreign") / "jail").read_text()
        spaces = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child"]
        who = [str(self.account.uid), str(self.account.gid)]
        what = [str(self.folder / "root"), str(self.out), *who]
        files = [str(len(self.sources)), *map(str, self.sources)]
        return [*bound, *spaces, "sh", "-c", script, "jail", *what, *files, *command]

    def make(self) -> None:
        """Make its folders, which are not there yet."""
        self.folder.mkdir(mode=0o755)
        (self.folder / "root").mkdir(mode=0o755)
        self.out.mkdir(mode=0o700)
        if self.account is not None:
            os.chown(self.out, self.account.uid, self.account.gid)


def make_jail(source: Path, folder: Path, account: Account | None) -> Jail:
    """Make a jail in the new folder ``folder``; ``account`` counts for root only.

    ``source`` is given to that account, to be read by it alone.
    """
    account = (account or DEFAULT_ACCOUNT) if os.geteuid() == 0 else None
    jail = Jail((source,), folder, account)
    jail.make()
    if account is not None:
        os.chown(source, account.uid, account.gid)
    source.chmod(0o400)
    return jail
