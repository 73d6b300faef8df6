"""Rewrites a foreign disk as a qcow2 file of our own, by qemu-img in a jail.

What is kept was written by the qemu-img of this host: no snapshot, bitmap, backing file or odd
feature of the file that came is in it. qemu-img sees that one file and an empty folder; a size
limit ends what would unpack to more than there is room for.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import CommandFailed, DiskFull, HostError, InvalidInput, TimedOut
from hanok.filesystems import disk_full, file_system_of
from hanok.images.filing import take_file
from hanok.images.foreign.boot import HEAD_SIZE, firmware_of
from hanok.images.foreign.formats import ForeignDisk, check_size
from hanok.images.jail import Jail
from hanok.images.progress import Report
from hanok.images.qcow2 import read_virtual_size
from hanok.model.image import ForeignFormat
from hanok.model.vm import Firmware
from hanok.proc import Limits, Runner, require_program
from hanok.units import GIB, MIB

_TIME_LIMIT = 3600.0
_MEMORY = 2 * GIB
_KEPT_FREE = 1 * GIB
# What a file may unpack to, in times its size and beyond that: packed disks of systems were seen to
# have 2 to 20 times theirs, bombs have ten thousand times.
_MOST_TIMES = 64
_MOST_BEYOND = 256 * MIB
# The slowest that qemu-img was seen to be, bytes a CPU second: it may take no longer than by that.
_SLOWEST = 8 * MIB
_LEAST_SECONDS = 60
_NAME, _HEAD = "disk.qcow2", "head"
_SECTOR = 512


def source_node(disk: ForeignDisk, filename: str) -> str:
    """Return how qemu-img is told of the disk: its format said, and nothing below it. Pure."""
    file: dict[str, object] = {"driver": "file", "filename": filename, "locking": "off"}
    if disk.place is not None:
        offset, length = disk.place
        whole = -(-length // _SECTOR) * _SECTOR  # a tar fills up to that with zeros
        file = {"driver": "raw", "offset": offset, "size": whole, "read-only": True, "file": file}
    node: dict[str, object] = {"driver": str(disk.format), "read-only": True, "file": file}
    if disk.format is not ForeignFormat.RAW:
        node["backing"] = None
    return f"json:{json.dumps(node, ensure_ascii=False)}"


@dataclass(frozen=True)
class Converted:
    """A disk that is ours now: its file, its virtual size in bytes and by what it boots."""

    file: str
    size: int
    firmware: tuple[Firmware, ...]


async def convert(
    disk: ForeignDisk, jail: Jail, target: Path, runner: Runner, report: Report
) -> Converted:
    """Write the disk in ``jail`` to the qcow2 file ``target``.

    Raises InvalidInput when qemu-img cannot read it or it unpacks to too much, DiskFull when
    there is no room here, TimedOut after an hour.
    """
    require_program("qemu-img", "qemu-utils")
    room = _room(target.parent)
    packed = disk.place[1] if disk.place is not None else jail.source.stat().st_size
    most = min(room, _MOST_TIMES * packed + _MOST_BEYOND)
    seconds = min(round(_TIME_LIMIT), _LEAST_SECONDS + min(most, disk.size) // _SLOWEST)
    given, made = jail.given(), jail.made(_NAME)
    report("converting the disk", None)
    # -n would not say the size; -W and more coroutines gain nothing on one file.
    command = ["qemu-img", "convert", "-q", "-O", "qcow2", source_node(disk, given), made]
    try:
        await runner.run(
            jail.argv(command),
            timeout=_TIME_LIMIT,
            limits=Limits(cpu_seconds=seconds, memory=_MEMORY, file_size=most),
            cwd=Path("/"),
        )
    except CommandFailed as error:
        raise _explain(error, disk, jail, most, bomb=most < room) from error
    except TimedOut as error:
        raise TimedOut("the disk was not converted within an hour") from error
    owner = os.geteuid() if jail.account is None else jail.account.uid
    take_file(jail.out / _NAME, target, owner)
    size = read_virtual_size(target)
    check_size(size)
    return Converted(target.name, size, await _boot_ways(target, jail, runner))


async def make_empty(size: int, target: Path, runner: Runner) -> Converted:
    """Write a disk of ``size`` bytes of nothing to the qcow2 file ``target``."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(target), str(size)]
    await runner.run(argv, timeout=60, limits=Limits(cpu_seconds=30, memory=_MEMORY))
    target.chmod(0o644)
    return Converted(target.name, size, ())


async def _boot_ways(target: Path, jail: Jail, runner: Runner) -> tuple[Firmware, ...]:
    """Return by what the converted disk boots, reading its beginning in the same jail."""
    reading = Jail((target,), jail.folder, jail.account)
    given, made = reading.given(), reading.made(_HEAD)
    sizes = [f"bs={HEAD_SIZE}", "count=1"]
    command = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", *sizes, f"if={given}", f"of={made}"]
    limits = Limits(cpu_seconds=30, memory=_MEMORY, file_size=16 * MIB)
    await runner.run(reading.argv(command), timeout=60, limits=limits, cwd=Path("/"))
    return firmware_of((jail.out / _HEAD).read_bytes()[:HEAD_SIZE])


def _room(folder: Path) -> int:
    """Return the bytes that a disk may take here. Raises DiskFull when there are none."""
    free = file_system_of(folder).free - _KEPT_FREE
    if free <= 0:
        raise disk_full(folder, "the disk", _KEPT_FREE + MIB, field="file")
    return free


def _explain(
    error: CommandFailed, disk: ForeignDisk, jail: Jail, most: int, *, bomb: bool
) -> InvalidInput | DiskFull | HostError:
    try:
        written = (jail.out / _NAME).stat().st_size
    except FileNotFoundError:
        written = 0
    if bomb and written >= most - 16 * MIB:
        return InvalidInput(
            f"the disk unpacks to more than {_MOST_TIMES} times the size of its file",
            field="file",
            expected="a disk of a system",
            hint="if it is one: qemu-img convert -O raw FILE disk.raw, and import that",
        )
    if written >= most - 16 * MIB or "No space left on device" in error.message:
        return disk_full(
            jail.folder, "what the disk unpacks to", max(most, disk.size) + _KEPT_FREE, field="file"
        )
    reason = error.message.rpartition("qemu-img: ")[2].strip() or error.message
    return InvalidInput(
        f"the file cannot be read as a {disk.format} disk: {reason[:300]}",
        field="file",
        expected="a disk that is whole",
    )
