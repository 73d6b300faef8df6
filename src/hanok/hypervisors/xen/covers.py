"""Read-only disks of PV and PVH domains: each gets an overlay that is thrown away.

QEMU's back end (7.2) opens the file of a read-only disk so, and then wants to write to it. As a CD
it serves it, which guests in an HVM container, PVH ones too, leave alone (Linux,
drivers/block/xen-blkfront.c). So the guest may write, into a file of its own; what is below,
perhaps shared, is opened for reading only, as the base of any overlay.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hanok.hypervisors.base import Disk, Machine
from hanok.model.image import Base, DiskFormat
from hanok.model.vm import Mode
from hanok.proc import Runner

_SUFFIX = ".cover.qcow2"


async def cover(machine: Machine, runner: Runner) -> Machine:
    """Return ``machine`` with covers, made anew, in place of its read-only disks.

    Raises CommandFailed.
    """
    if machine.mode is Mode.FULL:
        return machine
    return dataclasses.replace(
        machine, disks=tuple([await _covered(disk, machine, runner) for disk in machine.disks])
    )


async def _covered(disk: Disk, machine: Machine, runner: Runner) -> Disk:
    if not disk.read_only:
        return disk
    path = machine.folder / f"{disk.name}{_SUFFIX}"
    path.unlink(missing_ok=True)
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


def remove_covers(folder: Path) -> None:
    """Remove the covers of a machine's folder."""
    for path in folder.glob(f"*{_SUFFIX}"):
        path.unlink(missing_ok=True)
