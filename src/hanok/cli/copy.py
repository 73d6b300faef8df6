"""``hanok cp``: files to and from a guest, by scp where it has SSH, else by its agent."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import click

from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.errors import AgentUnavailable, HanokError, HostError, InvalidInput

if TYPE_CHECKING:
    from hanok.model.views import SshView

_GUEST = re.compile(r"(?P<vm>[A-Za-z0-9][A-Za-z0-9-]*):(?P<path>.*)", re.S)

_SAME_BY_AGENT = frozenset(
    {"not-found", "daemon-unreachable", "certificate-changed", "unauthorized", "forbidden"}
)


class GuestPath(NamedTuple):
    """A path in the guest of a VM."""

    vm: str
    path: str


@click.command(
    "cp",
    cls=Example,
    examples=(
        "hanok cp index.html web:/var/www/html/",
        "hanok cp web:/var/log/syslog .",
        "hanok cp -r site web:/srv/",
    ),
)
@click.argument("source")
@click.argument("target")
@click.option("-r", "--recursive", is_flag=True, help="Copy folders (guests with SSH).")
@click.option(
    "--agent", "by_agent", is_flag=True, help="Copy by the guest agent even where there is SSH."
)
@common_options
@pass_session
def copy(session: Session, source: str, target: str, recursive: bool, by_agent: bool) -> int:
    """Copy SOURCE to TARGET; one of them is NAME:PATH in a guest."""
    one, other = guest_path(source), guest_path(target)
    if (one is None) == (other is None):
        raise InvalidInput(
            "neither side is in a guest" if one is None else "both sides are in guests",
            expected="NAME:PATH on one side and a local path on the other",
            hint="a local path with ':' in it is written ./like:this",
        )
    guest = one or other
    assert guest is not None  # noqa: S101  one side is, by the check above
    view = None if by_agent else _ssh_view(session, guest.vm)
    if view is not None:
        status = _by_scp(session, view, source, target, guest, recursive)
    elif recursive:
        raise InvalidInput(
            f"{guest.vm} has no SSH, and its agent copies single files only",
            field="--recursive",
            hint="pack the folder with tar and copy that",
        )
    else:
        status = 0
        if one is not None:
            _download(session, one, Path(target))
        else:
            _upload(session, Path(source), guest)
    if session.out.as_json:
        session.out.json({"source": source, "target": target, "exit_status": status})
    return status


def guest_path(text: str) -> GuestPath | None:
    """Return ``NAME:PATH`` taken apart, or None for a local path."""
    match = _GUEST.fullmatch(text)
    return GuestPath(match["vm"], match["path"]) if match else None


def _ssh_view(session: Session, vm: str) -> SshView | None:
    """Return how to reach the guest by SSH, or None when it cannot be reached so."""
    import shutil

    if shutil.which("scp") is None:
        return None
    try:
        return session.client.ssh(vm)
    except HanokError as error:
        # Without such a VM, or without a daemon, the other way fails in the same words.
        if error.code in _SAME_BY_AGENT:
            raise
        return None


def _by_scp(
    session: Session, view: SshView, source: str, target: str, guest: GuestPath, recursive: bool
) -> int:
    from hanok.cli.ssh import run_openssh

    sides = [_scp_side(side, view) for side in (source, target)]
    flags = ["-q", *(["-r"] if recursive else []), "--"]
    return run_openssh(session, "scp", guest.vm, view, [*flags, *sides])


def _scp_side(text: str, view: SshView) -> str:
    guest = guest_path(text)
    if guest is not None:
        return f"{view['user']}@{guest.vm}:{guest.path}"
    # scp takes what stands before a colon for a host, unless a slash comes first.
    return text if text.startswith("/") else f"./{text}"


def _download(session: Session, source: GuestPath, target: Path) -> None:
    """Copy a guest's file to ``target``, which is replaced as a whole or not at all."""
    if target.is_dir():
        target = target / (PurePosixPath(source.path).name or "file")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise InvalidInput(f"{target} is no ordinary file", field="TARGET")
    try:
        handle, name = tempfile.mkstemp(prefix=".hanok-", dir=target.parent)
    except OSError as error:
        raise HostError(f"{target} cannot be written: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in session.client.read_file(source.vm, source.path):
                file.write(chunk)
        part.chmod(0o666 & ~_umask())
        part.replace(target)
    except OSError as error:
        raise HostError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _upload(session: Session, source: Path, target: GuestPath) -> None:
    path = target.path + (source.name if target.path.endswith("/") else "")
    try:
        with open(source, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidInput(f"{source} is no ordinary file", field="SOURCE")
            mode = stat.S_IMODE(facts.st_mode) & 0o777
            session.client.write_file(target.vm, path, file, facts.st_size, mode)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {source}", field="SOURCE") from None
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}", field="SOURCE") from None
    except AgentUnavailable as error:
        error.hint = error.hint or f"'hanok show {target.vm}' tells whether it runs"
        raise
