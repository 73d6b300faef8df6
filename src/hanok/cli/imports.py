"""``hanok image import``: an image of a disk that others made."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import click

from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.progress import Sending, follow, sending
from hanok.errors import InvalidInput
from hanok.units import format_size

_FORMATS = ("qcow2", "raw", "vmdk", "ova", "kernel")
_FIRMWARE = ("bios", "uefi")
_PIECE = 65536
_BLOCK = 512
_LARGEST_DESCRIPTOR = 4 * 1024 * 1024
_REFERENCE = re.compile(rb"""<(?:\w+:)?File\b[^>]*?\bhref\s*=\s*["']([^"']*)["']""")


@click.command(
    "import",
    cls=Example,
    examples=(
        "hanok image import jammy-server-cloudimg-amd64.img --name jammy --ssh-user ubuntu",
        "hanok image import old-server.vmdk --name old --firmware bios",
        "hanok image import appliance.ova --name app",
        "hanok image import gnumach --name mach --format kernel --cmdline console=com0",
        "hanok run own:jammy --name web --ready tcp:22",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Call the new image own:NAME.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    help="What the file is (default: as it says; raw: when it has a boot sector).",
)
@click.option(
    "--firmware",
    type=click.Choice(_FIRMWARE),
    help="What boots it (default: as its first sectors say, bios before uefi).",
)
@click.option("--cmdline", metavar="TEXT", help="The command line of FILE that is a kernel.")
@click.option("--os", "system", metavar="TEXT", help="What system it is, for lists.")
@click.option("--ssh-user", metavar="USER", help="The user that its cloud-init lets in by SSH.")
@click.option("--no-cloud-init", is_flag=True, help="It has no cloud-init.")
@click.option("--agent", is_flag=True, help="qemu-guest-agent is in it: VMs wait for its answer.")
@common_options
@pass_session
def import_disk(
    session: Session,
    file: Path,
    name: str,
    kind: str | None,
    firmware: str | None,
    cmdline: str | None,
    system: str | None,
    ssh_user: str | None,
    no_cloud_init: bool,
    agent: bool,
) -> None:
    """Make the image own:NAME of FILE, a disk with a boot loader of its own.

    With --format kernel FILE is a kernel instead that needs no boot loader: one for multiboot, or
    one of Linux's boot protocol. It is started in mode full, without disks.

    FILE is a qcow2, raw or VMDK disk, whole in one file, or an OVA; with an OVF the files beside it
    are sent too. It is rewritten by the daemon; a disk that names other files is refused, and they
    are never opened. FILE stays as it is.
    """
    given = {
        "name": name,
        "file": file.name,
        "format": kind,
        "firmware": firmware,
        "cmdline": cmdline,
        "os": system,
        "ssh_user": ssh_user,
        "cloud_init": "false" if no_cloud_init else None,
        "agent": "true" if agent else None,
    }
    wanted = {key: value for key, value in given.items() if value is not None}
    with contextlib.ExitStack() as stack:
        source, size = _source(file, stack)
        with sending(session, file.name, size) as show:
            watched = _Watched(source, show)
            operation = session.client.import_image(wanted, cast(BinaryIO, watched), size)
    final = follow(session, operation)
    result = final["result"] or {}
    if session.out.as_json:
        session.out.json(result or final)
        return
    ref = result.get("ref", f"own:{name}")
    ways = " or ".join(result.get("firmware", ())) or "itself, a kernel in mode full"
    ready = "console:TEXT" if kind == "kernel" else "tcp:22"
    session.out.line(f"{ref} is imported ({format_size(size)}); it boots by {ways}")
    session.out.line(f"Try: {session.program} run {ref} --name NAME --ready {ready}")


def _source(path: Path, stack: contextlib.ExitStack) -> tuple[BinaryIO, int]:
    """Return what is to be sent, open until ``stack`` ends, and its size in bytes."""
    source = stack.enter_context(_open(path))
    if path.suffix.lower() != ".ovf":
        return source, os.fstat(source.fileno()).st_size
    parts = archive_of(path, source, stack)
    return cast(BinaryIO, Joined(parts)), sum(part.size for part in parts)


def archive_of(path: Path, source: BinaryIO, stack: contextlib.ExitStack) -> list[Piece]:
    """Return the pieces of an OVA with the descriptor ``path`` and the files that it names.

    Only files beside it are looked at, whatever names it has. Raises InvalidInput.
    """
    text = source.read(_LARGEST_DESCRIPTOR)
    names = [path.with_suffix(".mf").name] if path.with_suffix(".mf").is_file() else []
    names += (found.decode("utf-8", "replace") for found in _REFERENCE.findall(text))
    pieces = _member(path.name, io.BytesIO(text), len(text))
    for name in dict.fromkeys(names):
        beside = path.parent / name
        if Path(name).name != name or beside.is_symlink():
            raise InvalidInput(
                f"the descriptor names the file {name[:60]!r}, which is not beside it",
                field="FILE",
                expected="an OVF whose disks are in the same folder",
            )
        file = stack.enter_context(_open(beside))
        pieces += _member(name, file, os.fstat(file.fileno()).st_size)
    return [*pieces, Piece(io.BytesIO(bytes(2 * _BLOCK)), 2 * _BLOCK)]


def _member(name: str, file: BinaryIO, size: int) -> list[Piece]:
    head = tarfile.TarInfo(name)
    head.size = size
    start = head.tobuf(tarfile.GNU_FORMAT)
    rest = -size % _BLOCK
    return [
        Piece(io.BytesIO(start), len(start)),
        Piece(file, size),
        Piece(io.BytesIO(bytes(rest)), rest),
    ]


class Piece(NamedTuple):
    """A part of what is sent: ``size`` bytes of ``file``."""

    file: BinaryIO
    size: int


class Joined(io.RawIOBase):
    """Pieces one after another, to be read once. A file that shrinks meanwhile is filled up."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._pieces = list(pieces)
        self._left = pieces[0].size if pieces else 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        while self._pieces and not self._left:
            self._pieces.pop(0)
            self._left = self._pieces[0].size if self._pieces else 0
        if not self._pieces:
            return b""
        wanted = min(self._left, _PIECE if size < 0 else size)
        data = self._pieces[0].file.read(wanted) or bytes(wanted)
        self._left -= len(data)
        return data


def _open(path: Path) -> BinaryIO:
    try:
        # O_NONBLOCK: a pipe that nobody writes to must not hold the command.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}", field="FILE") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="FILE") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{path} is no ordinary file", field="FILE", expected="a disk in a file")
    return os.fdopen(descriptor, "rb")


class _Watched(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, source: BinaryIO, show: Sending) -> None:
        super().__init__()
        self._source = source
        self._show = show

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._source.read(_PIECE if size < 0 else size)
        self._show.add(len(data))
        return data
