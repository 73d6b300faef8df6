"""How many vCPUs and how much memory a VM gets, from what its server was seen to use, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hanok.consolidation.vectors import Floats
from hanok.model.fleet import Rightsizing, ServerEntry, SizingRule
from hanok.units import MIB, format_size

STEP = 256 * MIB
"""Memory is given in steps of this many bytes."""
SATURATED = 0.95


@dataclass(frozen=True)
class Seen:
    """What is known of a server: its sizes, and samples (empty: none) without gaps.

    ``cpu`` is in its own cores, ``memory`` in bytes.
    """

    cores: int
    memory: int
    disk: int | None
    cpu: Floats
    used_memory: Floats


@dataclass(frozen=True)
class Sizing:
    """What a VM gets (bytes), the reason in words, and whether its server was at its limit."""

    vcpus: int
    memory: int
    disk: int | None
    reason: str
    saturated: bool = False


def size_vm(entry: ServerEntry, seen: Seen, rule: Rightsizing, speed: float, most: int) -> Sizing:
    """Return the size of the VM of a server.

    ``speed`` is that of a core of the slowest host it may get, ``most`` the cores of the largest:
    no VM has more vCPUs.
    """
    vcpus, why_cpu, busy = _vcpus(entry, seen, rule.vcpus, speed, most)
    memory, why_memory, full = _memory(entry, seen, rule)
    return Sizing(vcpus, memory, seen.disk, f"{why_cpu}; {why_memory}", busy or full)


def _vcpus(
    entry: ServerEntry, seen: Seen, rule: SizingRule, speed: float, most: int
) -> tuple[int, str, bool]:
    whole = seen.cores * entry.speed / speed
    if entry.vm.vcpus is not None:
        return entry.vm.vcpus, f"{entry.vm.vcpus} vCPUs as the servers file says", False
    if not seen.cpu.size:
        count = min(most, max(1, math.ceil(whole - 1e-9)))
        return count, f"{count} vCPUs as it had, nothing was measured", False
    used = float(np.percentile(seen.cpu, rule.percentile))
    if used >= SATURATED * seen.cores:
        count = min(most, max(1, math.ceil(whole - 1e-9)))
        return count, f"{count} vCPUs: it used all of its {seen.cores} cores at times", True
    wanted = used * (1 + rule.margin) * entry.speed / speed
    count = min(most, max(1, math.ceil(min(wanted, whole) - 1e-9)))
    text = (
        f"{count} vCPU{'s' * (count != 1)}: {used:.2f} of {seen.cores} cores used at the "
        f"{_ordinal(rule.percentile)} percentile, {rule.margin:.0%} more"
    )
    if entry.speed != speed:
        text += f", for cores {speed / entry.speed:.2g} times as fast"
    return count, text, False


def _memory(entry: ServerEntry, seen: Seen, rule: Rightsizing) -> tuple[int, str, bool]:
    if entry.vm.memory is not None:
        size = entry.vm.memory
        return size, f"{format_size(size)} of memory as the servers file says", False
    if not seen.used_memory.size:
        return seen.memory, f"{format_size(seen.memory)} as it had, its use was not measured", False
    used = float(np.percentile(seen.used_memory, rule.memory.percentile))
    if used >= SATURATED * seen.memory:
        return seen.memory, f"{format_size(seen.memory)} as it had: all of it was used", True
    wanted = max(used * (1 + rule.memory.margin), float(rule.least_memory))
    size = min(seen.memory, math.ceil(wanted / STEP) * STEP)
    at = _ordinal(rule.memory.percentile)
    most = "at most" if rule.memory.percentile >= 100 else f"at the {at} percentile"
    return (
        size,
        f"{format_size(size)}: {format_size(int(used))} of {format_size(seen.memory)} used {most}, "
        f"{rule.memory.margin:.0%} more",
        False,
    )


def _ordinal(number: float) -> str:
    if number != int(number):
        return f"{number:g}th"
    whole = int(number)
    ending = "th" if 10 <= whole % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(whole % 10, "th")
    return f"{whole}{ending}"
