"""Root disks: qcow2 overlays on an image's base, made under the VM's own uid.

The base is never written; its format is always named, never probed (CVE-2015-7548).
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import HostError, InvalidInput
from hanok.model.image import Base, DiskFormat, Image
from hanok.proc import Account, Limits, Runner
from hanok.units import GIB, format_size

# OpenStack caps qemu-img so that a hostile header costs no more than this (CVE-2015-5162).
_IMG_MEMORY = 2 * GIB
_COPY_LIMIT = 1800.0
_GROW_LIMIT = 60
# docs/interop/qcow2.txt: magic, 20 bytes of other fields, the virtual size.
_QCOW2_HEAD = struct.Struct(">4s20xQ")
_QCOW2_MAGIC = b"QFI\xfb"


def check_disk_size(image: Image, size: int) -> None:
    """Raise InvalidInput when ``size`` bytes are less than the image's own disk."""
    if size < image.disk_size:
        raise InvalidInput(
            f"a disk of {format_size(size)} is smaller than the disk of {image.ref}",
            field="disk",
            expected=f"at least {format_size(image.disk_size)}",
        )


async def create_overlay(
    runner: Runner,
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
    options = ["-f", "qcow2", "-b", str(base), "-F", base_format.value]
    await _make(runner, path, account, ["create", "-q", *options], [str(size)])


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


def virtual_size(path: Path) -> int:
    """Return the bytes that a qcow2 disk is large for its guest. Raises HostError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        head = file.read(_QCOW2_HEAD.size)
    try:
        magic, size = _QCOW2_HEAD.unpack(head)
    except struct.error:
        magic, size = b"", 0
    if magic != _QCOW2_MAGIC:
        raise HostError(f"the disk {path} is no qcow2 file")
    return int(size)


async def flatten(
    runner: Runner,
    *,
    disk: Path,
    bases: Sequence[Base],
    path: Path,
    account: Account | None,
) -> None:
    """Copy what is on ``disk``, an overlay on ``bases``, to a disk of its own at ``path``.

    What the headers of the files name is never opened: each node is said. Nothing happens when
    ``path`` exists.
    """
    if path.exists():
        return
    chain = [(disk, DiskFormat.QCOW2), *((base.path, base.format) for base in bases)]
    node: dict[str, object] | None = None
    for file, format in reversed(chain):
        below, node = node, {"driver": format.value, "read-only": True}
        node["file"] = {"driver": "file", "filename": str(file), "read-only": True}
        if format is DiskFormat.QCOW2:
            node["backing"] = below
    source = f"json:{json.dumps(node, ensure_ascii=False)}"
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
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    await runner.run(
        ["qemu-img", *before, str(draft), *after],
        timeout=timeout,
        account=account,
        limits=Limits(cpu_seconds=round(timeout / 2), memory=_IMG_MEMORY),
    )
    draft.chmod(0o600)
    sync_path(draft)
    draft.rename(path)
    for folder in (path.parent, path.parent.parent):  # both may be new
        sync_path(folder)
