"""A host that is short of memory: what the kernel has ended for want of it, and what there is.

Sources: proc(5), of oom_kill in /proc/vmstat; Documentation/ABI/testing/dev-kmsg and mm/oom_kill.c
of Linux for what it says; Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from hanok.units import KIB, format_size

_VMSTAT = Path("/proc/vmstat")
_LOG = Path("/dev/kmsg")
_RECORD = 8192
_MOST_RECORDS = 200_000
# Priority, number and time in microseconds come before the text.
_KILLED = re.compile(
    r"\d+,\d+,(?P<time>\d+),[^;]*;"
    r"(?P<what>Memory cgroup out of memory|Out of memory[^:]*): Killed process (?P<pid>\d+) "
    r"\((?P<name>[^\n]*?)\) .*?anon-rss:(?P<anon>\d+)kB.*?shmem-rss:(?P<shared>\d+)kB"
)
_WANT = "for want of memory"
_GROUP = "Memory cgroup out of memory"
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60
_LOOKS, _PAUSE = 5, 0.1
_CLOCKS_APART = 5_000_000  # microseconds: the log has a clock of its own


def kills() -> int:
    """Return how many processes the kernel has ended for want of memory; 0 when it does not tell.

    Those that used up what their control group may take are counted too.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


@dataclass(frozen=True)
class Mark:
    """How many processes had been ended at some time, by the kernel's clock in microseconds."""

    kills: int
    time: int


def mark() -> Mark:
    """Return the mark of now."""
    return Mark(kills(), time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def why_killed(pid: int, since: Mark | None, name: str, log: Path = _LOG) -> str:
    """Return what the kernel says of the end of process ``pid``, empty: nothing.

    ``since``: a mark of when it lived, None: there is none. ``name`` is what the process is called,
    in its first letters. May take half a second (blocks).
    """
    if since is not None and kills() <= since.kills:
        return ""
    for _ in range(_LOOKS if since is not None else 1):
        if told := _told_of(pid, since, name, log):
            return told
        if since is not None:
            time.sleep(_PAUSE)  # it is counted before it is said
    if since is None:
        return ""
    return f"the kernel has ended a process {_WANT} meanwhile: probably this one"


def tells_of_shortage(why: str) -> bool:
    """Whether ``why`` has words of ``why_killed``."""
    return _WANT in why


def _told_of(pid: int, since: Mark | None, name: str, log: Path) -> str:
    found = ""
    earliest = 0 if since is None else since.time - _CLOCKS_APART
    for record in _records(log):
        match = _KILLED.match(record)
        if match is None or int(match["time"]) < earliest:
            continue
        if int(match["pid"]) == pid and match["name"].startswith(name):
            where = "what its control group may take" if match["what"] == _GROUP else "the host"
            size = format_size((int(match["anon"]) + int(match["shared"])) * KIB)
            found = f"the kernel ended it {_WANT} in {where}; it had {size}"
    return found


def _records(log: Path) -> list[str]:
    """Return the lines of the kernel's log; none when we may not read it."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    found: list[str] = []
    try:
        while len(found) < _MOST_RECORDS:
            try:
                record = os.read(descriptor, _RECORD)
            except BrokenPipeError:  # overwritten before we came to it
                continue
            except OSError:  # BlockingIOError: that was the last one
                break
            if not record:
                break
            found += record.decode("utf-8", "replace").splitlines()
    finally:
        os.close(descriptor)
    return found


@dataclass(frozen=True)
class GroupMemory:
    """What a control group may take of memory and what it could still get, in bytes."""

    limit: int
    available: int


def group_memory(
    cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")
) -> GroupMemory | None:
    """Return the memory of the narrowest control group that we are in; None: it has no limit."""
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
                return _narrowest(cgroups / "memory", path, *names, "total_inactive_file")
            if not controllers and (cgroups / "cgroup.controllers").exists():
                return _narrowest(cgroups, path, "memory.max", "memory.current", "inactive_file")
    return None


def _narrowest(
    root: Path, path: str, limit: str, usage: str, reclaimable: str
) -> GroupMemory | None:
    """Return what is least among a group and those above it, as far as they are seen here."""
    inner = Path(os.path.normpath(path)).relative_to("/")
    found = None
    for folder in (root / inner, *(root / above for above in inner.parents)):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())  # "max" is no number
            if most >= _UNLIMITED:
                continue
            free = most - int((folder / usage).read_text()) + _stat(folder, reclaimable)
            here = GroupMemory(most, min(most, max(0, free)))
            if found is None:
                found = here
            found = GroupMemory(min(found.limit, here.limit), min(found.available, here.available))
    return found


def _stat(folder: Path, name: str) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
