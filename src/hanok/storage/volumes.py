"""Root disks: qcow2 overlays on an image's base, which belong to the VM's own uid.

The base is never written; its format is always named, never probed (CVE-2015-7548).
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import HostError, InvalidInput
from hanok.model.image import Base, DiskFormat, Image
from hanok.proc import Account, Limits, Runner
from hanok.storage.overlay import write_overlay
from hanok.units import GIB, format_size

# OpenStack caps qemu-img so that a hostile header costs no more than this (CVE-2015-5162).
_IMG_MEMORY = 2 * GIB
_COPY_LIMIT = 1800.0
_GROW_LIMIT = 60
# docs/interop/qcow2.txt: magic, version, the backing file's name, the size of clusters, the virtual
# size, encryption; in version 3 also incompatible features.
_QCOW2_HEAD = struct.Struct(">4sI12x4xQI36xQ")
_QCOW2_MAGIC = b"QFI\xfb"
# Bits 0 (dirty), 1 (corrupt), 3 (compression type), 4 (extended L2 entries). Bit 2 is a data file,
# which whoever opens the disk would open too: no disk of a VM has one.
_FEATURES = 0b11011


def check_disk_size(image: Image, size: int) -> None:
    """Raise InvalidInput when ``size`` bytes are less than the image's own disk."""
    if size < image.disk_size:
        raise InvalidInput(
            f"a disk of {format_size(size)} is smaller than the disk of {image.ref}",
            field="disk",
            expected=f"at least {format_size(image.disk_size)}",
        )


async def create_overlay(
    *,
    base: Path,
    base_format: DiskFormat,
    path: Path,
    size: int,
    account: Account | None,
) -> None:
    """Create the overlay ``path`` of ``size`` bytes on ``base``; nothing happens when it exists.

    It is made under another name and renamed, so a crash leaves no half disk.
    """
    if path.exists():
        return

    def make() -> None:
        draft = _draft(path)
        write_overlay(draft, base, base_format, size, account)
        _keep(draft, path)

    await asyncio.to_thread(make)


async def create_empty(runner: Runner, *, path: Path, size: int, account: Account | None) -> None:
    """Create the disk ``path`` of ``size`` bytes of nothing."""
    await _make(runner, path, account, ["create", "-q", "-f", "qcow2"], [str(size)])


async def grow(runner: Runner, path: Path, size: int, account: Account | None) -> None:
    """Make the qcow2 disk ``path``, which nobody has open, at least ``size`` bytes large.

    Nothing happens when it is as large, or not there. What its header names is never opened: what
    it grows by reads as zeros, whatever it stands on.
    """
    if not path.exists() or await asyncio.to_thread(virtual_size, path) >= size:
        return
    node = {
        "driver": DiskFormat.QCOW2.value,
        "file": {"driver": "file", "filename": str(path)},
        "backing": None,
    }
    argv = ["qemu-img", "resize", "-q", f"json:{json.dumps(node, ensure_ascii=False)}", str(size)]
    limits = Limits(cpu_seconds=_GROW_LIMIT, memory=_IMG_MEMORY)
    await runner.run(argv, timeout=2 * _GROW_LIMIT, account=account, limits=limits)
    sync_path(path)


def virtual_size(path: Path, owner: int | None = None) -> int:
    """Return the bytes that a VM's qcow2 disk is large for its guest.

    The process that ran the VM could have put anything there. Raises HostError for what is no plain
    file, or not of the uid ``owner`` alone, and for one that is encrypted or names a data file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise HostError(f"the disk {path} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        own = owner is None or (found.st_uid == owner and found.st_nlink == 1)
        if not stat.S_ISREG(found.st_mode) or not own:
            raise HostError(f"the disk {path} is no plain file of the VM's own")
        head = os.read(descriptor, _QCOW2_HEAD.size)
    finally:
        os.close(descriptor)
    if len(head) < _QCOW2_HEAD.size or not head.startswith(_QCOW2_MAGIC):
        raise HostError(f"the disk {path} is no qcow2 file")
    _, version, size, encryption, features = _QCOW2_HEAD.unpack(head)
    if version not in (2, 3) or encryption != 0 or (version == 3 and features & ~_FEATURES):
        raise HostError(f"the disk {path} is encrypted, or names another file, or is of a new kind")
    return int(size)


def chain_node(chain: Sequence[tuple[str, DiskFormat]]) -> str:
    """Return how qemu-img is told of files of which each stands on the next, the top first. Pure.

    What the headers of the files name is never opened: each node is said, and that nothing is below
    the last.
    """
    node: dict[str, object] | None = None
    for filename, format in reversed(chain):
        below, node = node, {"driver": format.value, "read-only": True}
        node["file"] = {"driver": "file", "filename": filename, "read-only": True}
        if format is DiskFormat.QCOW2:
            node["backing"] = below
    return f"json:{json.dumps(node, ensure_ascii=False)}"


async def flatten(
    runner: Runner,
    *,
    disk: Path,
    bases: Sequence[Base],
    path: Path,
    account: Account | None,
) -> None:
    """Copy what is on ``disk``, an overlay on ``bases``, to a disk of its own at ``path``.

    Nothing happens when ``path`` exists. What the headers name is not opened: see chain_node.
    """
    if path.exists():
        return
    chain = [(disk, DiskFormat.QCOW2), *((base.path, base.format) for base in bases)]
    source = chain_node([(str(file), format) for file, format in chain])
    options = ["convert", "-q", "-O", "qcow2", source]
    await _make(runner, path, account, options, [], timeout=_COPY_LIMIT)


async def _make(
    runner: Runner,
    path: Path,
    account: Account | None,
    before: Sequence[str],
    after: Sequence[str],
    *,
    timeout: float = 60,
) -> None:
    draft = _draft(path)
    await runner.run(
        ["qemu-img", *before, str(draft), *after],
        timeout=timeout,
        account=account,
        limits=Limits(cpu_seconds=round(timeout / 2), memory=_IMG_MEMORY),
    )
    draft.chmod(0o600)
    sync_path(draft)
    _keep(draft, path)


def _draft(path: Path) -> Path:
    """Return the name under which a disk is made, which nothing has any more."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    return draft


def _keep(draft: Path, path: Path) -> None:
    draft.rename(path)
    for folder in (path.parent, path.parent.parent):  # both may be new
        sync_path(folder)
