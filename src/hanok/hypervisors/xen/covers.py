"""Read-only disks of PV and PVH domains: each gets a copy or an overlay that is thrown away.

QEMU's back end (7.2) opens the file of a read-only disk so, and then wants to write to it. As a CD
it serves it, which guests in an HVM container, PVH ones too, leave alone (Linux,
drivers/block/xen-blkfront.c). So the guest may write, into a file of its own; what is below,
perhaps shared, is opened for reading only, as the base of any overlay. A small one, such as a seed,
is copied: that starts no program.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

from hanok.errors import HostError
from hanok.hypervisors.base import Disk, Machine
from hanok.model.image import Base, DiskFormat
from hanok.model.vm import Mode
from hanok.proc import Runner
from hanok.units import MIB

_MARK = ".cover."
_COPIED = 16 * MIB


async def cover(machine: Machine, runner: Runner) -> Machine:
    """Return ``machine`` with covers, made anew, in place of its read-only disks.

    Raises CommandFailed, and HostError for a copy that cannot be made.
    """
    if machine.mode is Mode.FULL:
        return machine
    return dataclasses.replace(
        machine, disks=tuple([await _covered(disk, machine, runner) for disk in machine.disks])
    )


async def _covered(disk: Disk, machine: Machine, runner: Runner) -> Disk:
    if not disk.read_only:
        return disk
    path = machine.folder / f"{disk.name}{_MARK}{_format_of_cover(disk)}"
    path.unlink(missing_ok=True)
    if _is_copied(disk):
        try:
            await asyncio.to_thread(_copy, disk.path, path)
        except OSError as error:
            raise HostError(f"{path} could not be written: {error.strerror}") from error
        return dataclasses.replace(disk, path=path, read_only=False)
    await runner.run(
        [
            *("qemu-img", "create", "-q", "-f", "qcow2"),
            *("-b", str(disk.path), "-F", str(disk.format), str(path)),
        ]
    )
    below = Base(disk.path, disk.format)
    return dataclasses.replace(
        disk, path=path, format=DiskFormat.QCOW2, read_only=False, bases=(below, *disk.bases)
    )


def _is_copied(disk: Disk) -> bool:
    return disk.format is DiskFormat.RAW and disk.path.stat().st_size <= _COPIED


def _format_of_cover(disk: Disk) -> DiskFormat:
    return DiskFormat.RAW if _is_copied(disk) else DiskFormat.QCOW2


def _copy(source: Path, target: Path) -> None:
    """Copy what may be secret, as a seed is, to a file of root's alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with source.open("rb") as there, os.fdopen(os.open(target, flags, 0o600), "wb") as here:
        shutil.copyfileobj(there, here)


def remove_covers(folder: Path) -> None:
    """Remove the covers of a machine's folder."""
    for path in folder.glob(f"*{_MARK}*"):
        path.unlink(missing_ok=True)
