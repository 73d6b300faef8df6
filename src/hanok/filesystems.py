"""File systems that fill up: which one holds a path, how full it is, and the error when it is.

What is free counts as it does for those without privileges: VMs write as accounts of their own.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import DiskFull
from hanok.units import MIB, format_size

LOST_AND_FOUND = "lost+found"  # which file systems of their own have: nothing of ours
WARN_PERCENT = 80
CRITICAL_PERCENT = 90
# Below this a file system counts as full: what is written next would not fit.
NEARLY_NOTHING = 16 * MIB
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system: where, its size and what is free of it in bytes."""

    mount: Path
    size: int
    free: int
    device: int

    @property
    def percent(self) -> int:
        """How full it is, rounded up as ``df`` does."""
        return 100 if self.size <= 0 else -(-100 * (self.size - self.free) // self.size)

    @property
    def level(self) -> str:
        """See level_of."""
        return level_of(self.percent)


def level_of(percent: int) -> str:
    """Return ``ok``, ``warning`` from 80 % on, or ``critical`` from 90 % on."""
    if percent >= CRITICAL_PERCENT:
        return "critical"
    return "warning" if percent >= WARN_PERCENT else "ok"


def file_system_of(path: Path) -> FileSystem:
    """Return the file system that holds ``path``, or will once its folders are made."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    device = place.stat().st_dev
    while place != place.parent and place.parent.stat().st_dev == device:
        place = place.parent
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    free = found.f_bavail * found.f_frsize
    return FileSystem(place, used + free, free, device)


def disk_full(path: Path, what: str, needed: int, *, field: str | None = None) -> DiskFull:
    """Return the error that there is no room for ``what``, which needs ``needed`` bytes."""
    found = file_system_of(path)
    missing = max(needed - found.free, MIB)
    return DiskFull(
        f"there is no room for {what}: it needs {format_size(needed)}, and the file system"
        f" {found.mount} has {format_size(found.free)} left",
        field=field,
        expected=f"{format_size(missing)} more on {found.mount}",
        hint="free some of it; 'hanok host show' tells what uses it",
    )


def full_error(error: BaseException, path: Path | None = None) -> DiskFull | None:
    """Return what an error, or its cause, says of a full file system; None for any other error."""
    found = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(found, OSError) or found.errno not in _FULL:
        return None
    named = found.filename2 or found.filename
    where = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
    if where is None:
        return DiskFull(
            "a file system of this host is full",
            hint="'hanok host show' tells which; free some of it",
        )
    return disk_full(where, where.name or "it", NEARLY_NOTHING)


def is_full(path: Path) -> bool:
    """Whether next to nothing is left where ``path`` is."""
    return file_system_of(path).free < NEARLY_NOTHING
