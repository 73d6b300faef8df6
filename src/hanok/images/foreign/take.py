"""Makes an image of a disk that others made: checked, rewritten, described."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from hanok.durable import sync_path
from hanok.errors import InvalidInput
from hanok.images.builder import DISK, METADATA
from hanok.images.filing import hash_file
from hanok.images.foreign.bare import HEAD_SIZE as BARE_HEAD
from hanok.images.foreign.bare import LARGEST_BARE, format_of
from hanok.images.foreign.convert import Converted, convert, make_empty
from hanok.images.foreign.formats import ForeignDisk, read_disk
from hanok.images.foreign.ova import Part, is_ova, read_ova
from hanok.images.foreign.ovf import Appliance
from hanok.images.jail import make_jail
from hanok.images.progress import Report
from hanok.images.recipes import OWN
from hanok.model.image import Appliance as Wishes
from hanok.model.image import DataDisk, ForeignFormat, Image, Imported, ImportRequest, Kernel
from hanok.model.vm import Firmware, Mode
from hanok.proc import Account, Runner
from hanok.units import MIB

_REVISION = 1
# What the smallest systems with a boot loader of their own were seen to boot with.
_MINIMUM_MEMORY = 64 * MIB
_BLOCK = 512
# Each image has a disk; this one is the smallest that a VM may have, and no VM of it sees it.
_EMPTY_DISK = 64 * MIB
_KERNEL = "kernel"


@dataclass(frozen=True)
class ForeignOrder:
    """A disk file of ours alone, with its SHA-256, and what its user says of it.

    ``pulled``: see Imported. ``memory``: bytes that its system needs to boot.
    """

    source: Path
    sha256: str
    wanted: ImportRequest
    pulled: str | None = None
    memory: int = _MINIMUM_MEMORY

    @property
    def ref(self) -> str:
        """What the image is called."""
        return f"{OWN}:{self.wanted.name}"

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, of all that the image depends on."""
        text = f"{_REVISION} {self.sha256} {self.wanted.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Found:
    """What a file turned out to be: its disks, the first boots; a number is an empty one's size.

    Of a kernel all disks are empty.
    """

    format: ForeignFormat
    disks: tuple[ForeignDisk | int, ...]
    machine: Appliance | None = None


async def take_foreign(
    order: ForeignOrder, folder: Path, account: Account | None, runner: Runner, report: Report
) -> Path:
    """Return a finished image folder inside the new folder ``folder``.

    ``account``: the uid that reads the file when we are root. Raises InvalidInput for a file that
    is no disk or appliance, or not whole in itself; NotAdmitted without room, TimedOut, HostError.
    """
    report("looking at the file", None)
    found = await asyncio.to_thread(_look, order)
    target = folder / "image"
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    jail = make_jail(order.source, folder / "jail", account)
    disks = []
    for number, disk in enumerate(found.disks):
        path = target / (DISK if number == 0 else f"disk-{number + 1}.qcow2")
        if isinstance(disk, int):
            disks.append(await make_empty(disk, path, runner))
        else:
            disks.append(await convert(disk, jail, path, runner, report))
    if found.format is ForeignFormat.KERNEL:
        await asyncio.to_thread(_keep_kernel, order.source, target)
    report("checking the result", 0.95)
    await asyncio.to_thread(_describe, order, found, disks, target)
    return target


def _look(order: ForeignOrder) -> _Found:
    kind, length = order.wanted.format, order.source.stat().st_size
    if kind is not ForeignFormat.KERNEL and order.wanted.cmdline is not None:
        raise InvalidInput(
            "only a kernel has a command line", field="cmdline", expected="format kernel with it"
        )
    with order.source.open("rb") as file:
        if kind is ForeignFormat.KERNEL:
            return _look_at_kernel(file, length)
        start = file.read(_BLOCK)
        if kind is ForeignFormat.OVA or (kind is None and is_ova(start)):
            return _look_into(file, length)
        disk = read_disk(file, length, kind)
    return _Found(disk.format, (disk,))


def _look_at_kernel(file: BinaryIO, length: int) -> _Found:
    if length > LARGEST_BARE:
        raise InvalidInput("the kernel is larger than any", field="file", expected="256 MiB")
    format_of(file.read(BARE_HEAD))
    return _Found(ForeignFormat.KERNEL, (_EMPTY_DISK,))


def _keep_kernel(source: Path, target: Path) -> None:
    """Copy the kernel as it is; QEMU reads it as the VM's own user."""
    shutil.copyfile(source, target / _KERNEL)
    (target / _KERNEL).chmod(0o644)


def _look_into(file: BinaryIO, length: int) -> _Found:
    archive = read_ova(file, length)
    disks: list[ForeignDisk | int] = []
    for disk in archive.appliance.disks:
        if disk.file is None:
            disks.append(disk.size)
            continue
        region = archive.files[disk.file]
        found = read_disk(Part(file, region), region.size, None)
        disks.append(replace(found, place=(region.offset, region.size)))
    return _Found(ForeignFormat.OVA, tuple(disks), archive.appliance)


def _describe(order: ForeignOrder, found: _Found, disks: Sequence[Converted], target: Path) -> None:
    wanted, machine = order.wanted, found.machine
    told = machine.os if machine is not None else None
    files = [disk.file for disk in disks]
    kernels = _kernels(wanted) if found.format is ForeignFormat.KERNEL else ()
    files += [kernel.vmlinuz for kernel in kernels]
    image = Image(
        id=order.id,
        ref=order.ref,
        os=wanted.os or told or f"imported from {wanted.file}",
        disk=DISK,
        disk_size=disks[0].size,
        data_disks=tuple(DataDisk(file=disk.file, size=disk.size) for disk in disks[1:]),
        imported=Imported(
            file=wanted.file, format=found.format, sha256=order.sha256, pulled=order.pulled
        ),
        appliance=_wishes(machine),
        kernels=kernels,
        firmware=()
        if kernels
        else _firmware(wanted.firmware or (machine.firmware if machine else None), disks[0]),
        agent=wanted.agent,
        ssh_user=wanted.ssh_user,
        cloud_init=wanted.cloud_init,
        minimum_memory=order.memory,
        checksums={name: hash_file(target / name) for name in files},
        created=time.time(),
        size=sum((target / name).stat().st_blocks * 512 for name in files),
    )
    path = target / METADATA
    path.write_text(image.model_dump_json(indent=2) + "\n")
    path.chmod(0o644)
    for one in (*(target / name for name in files), path, target):
        sync_path(one)


def _kernels(wanted: ImportRequest) -> tuple[Kernel, ...]:
    cmdline = wanted.cmdline or ""
    modes = (Mode.FULL,)
    return (
        Kernel(name="bare", vmlinuz=_KERNEL, initrd="", cmdline=cmdline, modes=modes, bare=True),
    )


def _wishes(machine: Appliance | None) -> Wishes | None:
    if machine is None:
        return None
    return Wishes(cpus=machine.cpus, memory=machine.memory, nics=machine.nics)


def _firmware(said: Firmware | None, found: Converted) -> tuple[Firmware, ...]:
    """Return what can boot the disk; what was said counts before what was found."""
    if said is None:
        if not found.firmware:
            raise InvalidInput(
                "the disk has neither a boot sector with a program nor an EFI system partition",
                field="file",
                expected="a disk that boots",
                hint="if it boots all the same, say by what: --firmware bios or --firmware uefi",
            )
        return found.firmware
    others = (one for one in found.firmware if one is not said)
    return (said, *others)
