"""What this machine is: figures mean nothing without it."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import subprocess
from pathlib import Path


def describe_machine() -> dict[str, str | int]:
    """Return the processor, its number, memory (bytes) and the versions that matter."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "commit": _first_line("git", "describe", "--always", "--dirty"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


def resident(pid: int) -> int:
    """Return the bytes of memory that process ``pid`` holds (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory of its own")


def touch_memory(size: int) -> None:
    """Use ``size`` bytes of this machine's free memory and give them back.

    Where the machine is a VM that reports its free pages, they are its host's until somebody uses
    them, and the first use of each costs 8 us (seen): as if what uses them had become slower.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for place in range(0, size, mmap.PAGESIZE):
            memory[place] = 1


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, of each of its threads to the nanosecond.

    A thread or process that has ended meanwhile counts nothing.
    """
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def proportional(pid: int) -> int:
    """Return the bytes of memory of a process, what it shares counted by its share (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory of its own")


def available() -> int:
    """Return the bytes of memory that the machine has left (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo does not say what is available")
