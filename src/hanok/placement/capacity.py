"""What a host can give away, what is given away, and what is left.

Three resources, always in this order: ``memory`` and ``disk`` in bytes, ``cpus`` in vCPUs.

- memory: physical memory minus the reserve. A VM takes its RAM *and* its overhead.
- cpus: host CPUs times the overcommit ratio, rounded down.
- disk: what is free on the disk *now* minus the reserve. Disks are thin, so a VM that exists counts
  what its disks may still grow by (``Demand.disk``: virtual size minus what is allocated), and a
  new one its whole virtual size. As a guest writes, free space and its demand shrink together and
  the room stays the same: every disk can be written full, no guest ever meets a full host disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hanok.model.host import CapacityPolicy, Demand, HostResources, Room, Usage

MEMORY = "memory"
CPUS = "cpus"
DISK = "disk"
RESOURCES = (MEMORY, CPUS, DISK)

# 100 times 1.15 is 114.99999999999999 in floating point; nobody means 114 CPUs by that.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Amounts:
    """An amount of every resource: bytes of memory and disk, vCPUs."""

    memory: int
    cpus: int
    disk: int

    def of(self, resource: str) -> int:
        """Return the amount of ``resource``, one of RESOURCES."""
        return {MEMORY: self.memory, CPUS: self.cpus, DISK: self.disk}[resource]


def capacity(resources: HostResources, policy: CapacityPolicy) -> Amounts:
    """Return what of a host may be given to VMs; never negative."""
    return Amounts(
        memory=max(0, resources.memory - policy.reserve_memory),
        cpus=math.floor(resources.cpus * policy.cpu_ratio + _ROUNDING),
        disk=max(0, resources.disk_free - policy.reserve_disk),
    )


def usage(demands: Iterable[Demand]) -> Usage:
    """Return the sum of what VMs take."""
    vms = cpus = memory = overhead = disk = 0
    for demand in demands:
        vms += 1
        cpus += demand.cpus
        memory += demand.memory
        overhead += demand.overhead
        disk += demand.disk
    return Usage(vms=vms, cpus=cpus, memory=memory, overhead=overhead, disk=disk)


def needs(demand: Demand | Usage) -> Amounts:
    """Return what ``demand`` takes of each resource, its overhead counted as memory."""
    return Amounts(
        memory=demand.memory + demand.overhead, cpus=demand.cpus, disk=max(0, demand.disk)
    )


def left(resources: HostResources, policy: CapacityPolicy, used: Usage) -> Amounts:
    """Return capacity minus usage; negative where more is given away than there is.

    That happens when a reserve was raised, memory was taken out, or others filled the disk.
    """
    have, taken = capacity(resources, policy), needs(used)
    return Amounts(
        memory=have.memory - taken.memory,
        cpus=have.cpus - taken.cpus,
        disk=have.disk - taken.disk,
    )


def rooms(resources: HostResources, policy: CapacityPolicy, used: Usage) -> tuple[Room, ...]:
    """Return capacity, use and what is free of each resource; ``free`` is never negative."""
    have, taken, free = capacity(resources, policy), needs(used), left(resources, policy, used)
    return tuple(
        Room(
            resource=name,
            capacity=have.of(name),
            used=taken.of(name),
            free=max(0, free.of(name)),
        )
        for name in RESOURCES
    )
