"""Where a build runs: as an unprivileged uid, in user, mount and pid namespaces of its own.

Maintainer scripts are foreign code. As root the build gets a uid that owns nothing, a private
range of subordinate ids (bind-mounted over /etc/subuid in a private mount namespace: the host's
file is not touched), and a pid namespace that ends with us. As an ordinary user mmdebstrap makes
the user namespace from the user's own range.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hanok.errors import HostError
from hanok.proc import Account, Limits, Runner
from hanok.units import GIB

# Below the uids of VMs and networks, above what systemd and distributions give away.
DEFAULT_ACCOUNT = Account(1_699_900_000, 1_699_900_000)
_SUB_BASE = 1_699_900_001
_SUB_COUNT = 65536
_BUILD_USER = "hanok-build"
SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")
_SCRATCH_NAME = "scratch"
_LIMITS = Limits(cpu_seconds=1200, memory=8 * GIB)


@dataclass(frozen=True)
class Sandbox:
    """The folders of one build. ``files`` and ``debs`` are read by it, ``out`` is written by it;
    ``owner`` is the uid that owns what it writes there."""

    folder: Path
    scratch: Path
    account: Account | None
    owner: int

    @property
    def files(self) -> Path:
        """Guest files."""
        return self.scratch / "files"

    @property
    def debs(self) -> Path:
        """Packages from earlier builds."""
        return self.scratch / "debs"

    @property
    def out(self) -> Path:
        """What the build makes."""
        return self.scratch / "out"

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs ``command`` inside, and ends with this process."""
        pdeathsig = ["setpriv", "--pdeathsig", "KILL"]
        if self.account is None:
            return [*pdeathsig, *command]
        enter = (resources.files("hanok.images") / "files" / "enter").read_text()
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        who = [str(self.folder), str(self.account.uid), str(self.account.gid)]
        return [*pdeathsig, *spaces, "sh", "-c", enter, "enter", *who, *command]

    def environment(self) -> dict[str, str]:
        """Return the variables of a build: its temporary folder and no home."""
        home = "/nonexistent" if self.account is not None else str(self.scratch)
        # INITRD=No: initramfs-tools need not make initrds, we make our own (kernel-img.conf(5)).
        return {"TMPDIR": str(self.scratch / "tmp"), "HOME": home, "INITRD": "No"}

    @property
    def limits(self) -> Limits:
        """CPU seconds and address space of each process of the build."""
        return _LIMITS


def make_sandbox(folder: Path, account: Account | None, files: dict[str, bytes]) -> Sandbox:
    """Make the folders of a build in the new, empty ``folder``; ``account`` counts for root only.

    Raises HostError when an ordinary user has no subordinate ids.
    """
    if os.geteuid() == 0:
        account = account or DEFAULT_ACCOUNT
        sandbox = Sandbox(folder, folder / _SCRATCH_NAME, account, _SUB_BASE)
        sandbox.scratch.mkdir()
        sandbox.scratch.chmod(0o755)  # whatever the daemon's umask is
        _write_identities(folder, account)
    else:
        # A home folder is often closed to other uids, those of the user's own range included.
        owner = _own_subordinate_base()
        scratch = Path(tempfile.mkdtemp(prefix="hanok-build-", dir="/var/tmp"))
        sandbox = Sandbox(folder, scratch, None, owner)
        (folder / _SCRATCH_NAME).symlink_to(scratch)
        scratch.chmod(0o711)
    _fill(sandbox, files)
    return sandbox


def _fill(sandbox: Sandbox, files: dict[str, bytes]) -> None:
    for path in (sandbox.files, sandbox.debs, sandbox.out, sandbox.scratch / "tmp"):
        path.mkdir()
        path.chmod(0o755)
    for name, data in files.items():
        path = sandbox.files / name
        path.write_bytes(data)
        path.chmod(0o644)
    if sandbox.account is not None:
        os.chown(sandbox.out, _SUB_BASE, _SUB_BASE)
        os.chown(sandbox.scratch / "tmp", sandbox.account.uid, sandbox.account.gid)
    else:
        sandbox.out.chmod(0o1777)  # who wrote a file there is checked before it is taken


def _write_identities(folder: Path, account: Account) -> None:
    subordinate = f"{_BUILD_USER}:{_SUB_BASE}:{_SUB_COUNT}\n"
    user = f"{_BUILD_USER}:x:{account.uid}:{account.gid}::/nonexistent:/usr/sbin/nologin\n"
    texts = {
        # First, so that this name is found for a uid that the host knows by another.
        "passwd": user + Path("/etc/passwd").read_text(),
        "group": Path("/etc/group").read_text() + f"{_BUILD_USER}:x:{account.gid}:\n",
        "subuid": subordinate,
        "subgid": subordinate,
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o644)


def _own_subordinate_base() -> int:
    """Return the first uid of our own range. Raises HostError when a range is missing."""
    name = number = str(os.getuid())
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(os.getuid()).pw_name
    found = []
    for path in (SUBUID, SUBGID):
        first = _first_of(path, {name, number})
        if first is None:
            raise HostError(
                f"the user {name} has no range of ids in {path}, which the building of an image"
                " needs: packages are unpacked with owners of their own",
                hint=f"as root: usermod --add-subuids 200000-265535 --add-subgids 200000-265535"
                f" {name}; 'hanok image pull' and 'import' need none",
            )
        found.append(first)
    return found[0]


def _first_of(path: Path, names: Collection[str]) -> int | None:
    """Return where the first range of one of ``names`` begins in a file such as subuid(5)."""
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            user, _, span = line.partition(":")
            if user in names:
                return int(span.partition(":")[0])
    return None


def remove_leftovers(folder: Path) -> bool:
    """Remove a build folder as far as our own rights reach; True when nothing is left.

    As an ordinary user what belongs to subordinate ids stays, for ``remove_foreign``.
    """
    scratch = folder / _SCRATCH_NAME
    if scratch.is_symlink():
        outside = scratch.readlink()
        if _is_scratch(outside):
            shutil.rmtree(outside, ignore_errors=True)
            if outside.exists():
                return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


async def remove_foreign(folder: Path, runner: Runner) -> None:
    """Remove a build folder, what belongs to subordinate ids included. Raises CommandFailed."""
    if remove_leftovers(folder):
        return
    outside = (folder / _SCRATCH_NAME).readlink()
    # Only as root of the user's own range can what the build wrote be removed.
    written = [str(outside / "tmp"), str(outside / "out")]
    helper = ["mmdebstrap", "--unshare-helper", "find", *written, "-mindepth", "1", "-delete"]
    await runner.run(helper, timeout=120, check=False)
    remove_leftovers(folder)


def _is_scratch(path: Path) -> bool:
    return path.parent == Path("/var/tmp") and path.name.startswith("hanok-build-")  # noqa: S108
