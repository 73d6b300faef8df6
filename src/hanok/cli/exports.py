"""``hanok export``: the disk of a stopped VM, or of an image, as one file for other programs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from hanok.cli.base import (
    Example,
    Session,
    common_options,
    complete_image,
    complete_vm,
    pass_session,
)
from hanok.cli.progress import Sending, follow, sending
from hanok.client.wire import OperationWire
from hanok.errors import Conflict, HanokError, HostError, InvalidInput
from hanok.units import format_size

_FORMATS = ("qcow2", "raw", "vmdk")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


F = TypeVar("F", bound=Callable[..., Any])


def _options(function: F) -> F:
    """Add what both commands take."""
    for option in (
        click.option("--force", is_flag=True, help="Replace FILE if it is there."),
        click.option(
            "--format",
            "kind",
            type=click.Choice(_FORMATS),
            default="qcow2",
            show_default=True,
            help="What FILE is to be.",
        ),
        click.argument("file", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


@click.command(
    "export",
    cls=Example,
    examples=(
        "hanok stop web && hanok export web web.qcow2",
        "hanok export old old.vmdk --format vmdk",
    ),
)
@click.argument("name", shell_complete=complete_vm)
@_options
@common_options
@pass_session
def export(session: Session, name: str, file: Path, kind: str, force: bool) -> None:
    """Save the system disk of the stopped VM NAME as FILE, whole in one file.

    It stands on nothing else: what the VM's image has is in it too. Data disks are not. The VM
    cannot start until the daemon has written it; then FILE is fetched, also from a remote host.
    FILE is whole or not there, and only you may read it. Ctrl-C ends all of it.
    """
    _check_target(file, force)
    _fetch(session, session.client.export(name, kind), name, file, kind, force)


@click.command(
    "export",
    cls=Example,
    examples=("hanok image export own:web web.qcow2",),
)
@click.argument("image", shell_complete=complete_image)
@_options
@common_options
@pass_session
def export_image(session: Session, image: str, file: Path, kind: str, force: bool) -> None:
    """Save the disk of IMAGE as FILE, whole in one file; see "hanok export"."""
    _check_target(file, force)
    _fetch(session, session.client.export_image(image, kind), image, file, kind, force)


def _fetch(
    session: Session, operation: OperationWire, name: str, file: Path, kind: str, force: bool
) -> None:
    """Wait until the daemon has written a disk, and save it."""
    ident = operation["id"]
    try:
        result = follow(session, operation, cancel=True)["result"] or {}
        size = int(result["size"])
        with sending(session, file.name, size, "fetch") as show:
            pieces = _watched(session.client.fetch_export(ident), show)
            _save(pieces, file, size, force)
    finally:
        # Else the daemon removes it after an hour.
        with contextlib.suppress(HanokError):
            session.client.forget_export(ident)
    if session.out.as_json:
        session.out.json({"name": name, "file": str(file), "format": kind, "size": size})
    else:
        session.out.line(f"{file} has the disk of {name} ({kind}, {format_size(size)}).")


def _check_target(file: Path, force: bool) -> None:
    """Raise InvalidInput or Conflict when FILE cannot be made, before anything is done."""
    try:
        found = file.stat()
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise InvalidInput(
                f"there is no folder {file.parent}", field="FILE", expected="a file in a folder"
            ) from None
        return
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}", field="FILE") from None
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(
            f"{file} is no ordinary file", field="FILE", expected="the name of a new file"
        )
    if not force:
        raise _exists(file)


def _exists(file: Path) -> Conflict:
    return Conflict(
        f"{file} exists already",
        field="FILE",
        expected="the name of a new file",
        hint="--force replaces it",
    )


def _watched(pieces: Iterable[bytes], show: Sending) -> Iterator[bytes]:
    for piece in pieces:
        show.add(len(piece))
        yield piece


def _save(pieces: Iterable[bytes], file: Path, size: int, force: bool) -> None:
    """Write ``pieces``, ``size`` bytes, to ``file``: whole and durable, or not at all."""
    from hanok.durable import sync_path

    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name[:64]}.", dir=file.parent)
    except OSError as error:
        raise HostError(f"{file} cannot be written: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as draft:
            came = _write(draft.fileno(), pieces)
            if came != size:
                raise HostError(
                    f"{came} bytes of the disk came",
                    expected=f"{size} bytes",
                    hint="export it again",
                )
            os.ftruncate(draft.fileno(), size)
            os.fsync(draft.fileno())
        _put(part, file, force)
        sync_path(file.parent)
    except OSError as error:
        hint = f"free {format_size(size)} there" if error.errno == errno.ENOSPC else None
        raise HostError(f"{file} cannot be written: {error.strerror}", hint=hint) from error
    finally:
        part.unlink(missing_ok=True)


def _write(descriptor: int, pieces: Iterable[bytes]) -> int:
    """Write all; what is zeros becomes holes. Return how many bytes that were."""
    came = 0
    for piece in pieces:
        came += len(piece)
        if piece.count(0) == len(piece):
            os.lseek(descriptor, len(piece), os.SEEK_CUR)
            continue
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]
    return came


def _put(part: Path, file: Path, force: bool) -> None:
    """Give ``part`` the name ``file``, and no other file's without ``force``."""
    if not force:
        try:
            os.link(part, file)
        except FileExistsError:
            raise _exists(file) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if file.exists():  # a file system without hard links
                raise _exists(file) from None
        else:
            return
    part.replace(file)
