"""Writes a disk as a whole to one file, by qemu-img in a jail: what users carry elsewhere.

A VM's disk is the guest's, and the process that ran it may have had other plans: its format and
what it stands on are said, its header is read by code of ours first, and qemu-img sees nothing
else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import CommandFailed, HostError, TimedOut
from hanok.filesystems import disk_full
from hanok.images.jail import Jail
from hanok.images.progress import Report
from hanok.model.image import ExportFormat
from hanok.proc import Limits, Runner, require_program
from hanok.units import GIB, MIB

_NAME = "disk"
_MEMORY = 2 * GIB
_MEASURE_SECONDS = 120
# The slowest that qemu-img was seen to be, bytes a second: it may take no longer than by that.
_SLOWEST = 8 * MIB
_LEAST_SECONDS = 600
# What VMDK and rounding take beyond what qcow2 was measured to take.
_BEYOND = 64 * MIB
_LOOK = 0.5
_SECTOR = 512


@dataclass(frozen=True)
class Source:
    """A disk to be written: how qemu-img is told of it, its virtual size in bytes."""

    node: str
    size: int


async def measure(source: Source, jail: Jail, runner: Runner) -> int:
    """Return the bytes that the disk takes as qcow2, of which raw and VMDK take hardly more.

    Raises HostError when it cannot be read.
    """
    require_program("qemu-img", "qemu-utils")
    command = ["qemu-img", "measure", "--output", "json", "-O", "qcow2", source.node]
    limits = Limits(cpu_seconds=_MEASURE_SECONDS, memory=_MEMORY)
    try:
        done = await runner.run(
            jail.argv(command), timeout=2 * _MEASURE_SECONDS, limits=limits, cwd=Path("/")
        )
    except CommandFailed as error:
        raise _unreadable(error) from error
    return int(json.loads(done.stdout)["required"])


async def write_disk(
    source: Source, jail: Jail, format: ExportFormat, needed: int, runner: Runner, report: Report
) -> Path:
    """Write the disk to a file of the jail's, make that ours and return it.

    ``needed`` is what ``measure`` said. Raises HostError when it cannot be read, DiskFull and
    TimedOut.
    """
    made = jail.out / _NAME
    most = source.size if format is ExportFormat.RAW else needed
    seconds = _LEAST_SECONDS + needed // _SLOWEST
    command = ["qemu-img", "convert", "-q", "-O", str(format), source.node, jail.made(_NAME)]
    limits = Limits(cpu_seconds=seconds, memory=_MEMORY, file_size=most + _BEYOND)
    watch = asyncio.create_task(_tell(made, needed, report))
    try:
        await runner.run(jail.argv(command), timeout=seconds, limits=limits, cwd=Path("/"))
    except CommandFailed as error:
        if "No space left on device" in error.message:
            raise disk_full(jail.folder, "the exported disk", needed) from error
        raise _unreadable(error) from error
    except TimedOut as error:
        raise TimedOut(f"the disk was not written within {seconds // 60} minutes") from error
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    await asyncio.to_thread(_take, made, os.geteuid() if jail.account is None else jail.account.uid)
    return made


async def _tell(path: Path, whole: int, report: Callable[[str, float | None], None]) -> None:
    """Report how much of ``whole`` bytes has been written to ``path``, until it is cancelled."""
    while True:
        hundredth = 0
        with contextlib.suppress(OSError):
            hundredth = min(99, 100 * path.stat().st_blocks * _SECTOR // max(whole, 1))
        report(f"{hundredth} of 100 percent written", hundredth / 100)
        await asyncio.sleep(_LOOK)


def _take(path: Path, owner: int) -> None:
    """Make the file that uid ``owner`` wrote ours alone, and durable. Raises HostError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"qemu-img left no disk: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != owner:
            raise HostError("qemu-img left something else than a plain file")
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(error: CommandFailed) -> HostError:
    reason = error.message.rpartition("qemu-img: ")[2].strip() or error.message
    return HostError(
        f"the disk cannot be read: {reason[:300]}",
        expected="a disk that is whole",
        hint="start the VM and look at its file system",
    )
