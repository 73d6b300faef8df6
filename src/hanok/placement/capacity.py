"""What a host can give away, what is given away, and what is left.

Resources, always in this order: ``memory`` in bytes, with policy shared ``real-memory`` in bytes,
``cpus`` in vCPUs, ``disk`` in bytes.

- memory: physical memory minus the reserve. A VM takes its RAM *and* its overhead. With policy
  shared that many times ``memory_factor``: more is sold than there is.
- real-memory: what is available on the host *now*, measured, minus ``shared_reserve``. A VM takes
  what it costs now (``Demand.cost_now``) until it has started; then it is in what was measured.
- cpus: host CPUs times the overcommit ratio, rounded down.
- disk: what is free on the disk *now* minus the reserve. Disks are thin, so a VM that exists counts
  what its disks may still grow by (``Demand.disk``: virtual size minus what is allocated), and a
  new one its whole virtual size. As a guest writes, free space and its demand shrink together and
  the room stays the same: every disk can be written full, no guest ever meets a full host disk.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hanok.model.host import CapacityPolicy, Demand, HostResources, MemoryPolicy, Room, Usage

MEMORY = "memory"
REAL_MEMORY = "real-memory"
CPUS = "cpus"
DISK = "disk"

# 100 times 1.15 is 114.99999999999999 in floating point; nobody means 114 CPUs by that.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Amounts:
    """An amount of every resource: bytes of memory, real memory and disk, vCPUs."""

    memory: int
    cpus: int
    disk: int
    real: int = 0

    def of(self, resource: str) -> int:
        """Return the amount of ``resource``, one of those that ``counted`` names."""
        return {
            MEMORY: self.memory,
            REAL_MEMORY: self.real,
            CPUS: self.cpus,
            DISK: self.disk,
        }[resource]

    def minus(self, other: Amounts) -> Amounts:
        """Return what is left of this without ``other``; may be negative."""
        return Amounts(
            memory=self.memory - other.memory,
            cpus=self.cpus - other.cpus,
            disk=self.disk - other.disk,
            real=self.real - other.real,
        )


def counted(policy: CapacityPolicy) -> tuple[str, ...]:
    """Return the resources that ``policy`` counts, in order."""
    if policy.memory_policy is MemoryPolicy.SHARED:
        return (MEMORY, REAL_MEMORY, CPUS, DISK)
    return (MEMORY, CPUS, DISK)


def capacity(resources: HostResources, policy: CapacityPolicy) -> Amounts:
    """Return what of a host may be given to VMs; never negative."""
    memory = max(0, resources.memory - policy.reserve_memory)
    if policy.memory_policy is MemoryPolicy.SHARED:
        memory = math.floor(memory * policy.memory_factor)
    return Amounts(
        memory=memory,
        cpus=math.floor(resources.cpus * policy.cpu_ratio + _ROUNDING),
        disk=max(0, resources.disk_free - policy.reserve_disk),
        real=max(0, resources.memory - policy.shared_reserve),
    )


def usage(demands: Iterable[Demand]) -> Usage:
    """Return the sum of what VMs take."""
    vms = cpus = memory = overhead = disk = coming = 0
    for demand in demands:
        vms += 1
        cpus += demand.cpus
        memory += demand.memory
        overhead += demand.overhead
        disk += demand.disk
        coming += _cost_now(demand)
    return Usage(vms=vms, cpus=cpus, memory=memory, overhead=overhead, disk=disk, coming=coming)


def _cost_now(demand: Demand) -> int:
    return demand.memory + demand.overhead if demand.cost_now is None else demand.cost_now


def needs(demand: Demand | Usage) -> Amounts:
    """Return what ``demand`` takes of each resource, its overhead counted as memory."""
    return Amounts(
        memory=demand.memory + demand.overhead,
        cpus=demand.cpus,
        disk=max(0, demand.disk),
        real=demand.coming if isinstance(demand, Usage) else _cost_now(demand),
    )


def left(resources: HostResources, policy: CapacityPolicy, used: Usage) -> Amounts:
    """Return capacity minus usage; negative where more is given away than there is.

    That happens when a reserve was raised, memory was taken out, or others filled the disk.
    """
    return capacity(resources, policy).minus(_taken(resources, used))


def _taken(resources: HostResources, used: Usage) -> Amounts:
    """Return what is used: of real memory also what other programs use."""
    taken = needs(used)
    measured = max(0, resources.memory - resources.available)
    return Amounts(
        memory=taken.memory, cpus=taken.cpus, disk=taken.disk, real=measured + taken.real
    )


def rooms(resources: HostResources, policy: CapacityPolicy, used: Usage) -> tuple[Room, ...]:
    """Return capacity, use and what is free of each resource; ``free`` is never negative."""
    have, taken = capacity(resources, policy), _taken(resources, used)
    return tuple(
        Room(
            resource=name,
            capacity=have.of(name),
            used=taken.of(name),
            free=max(0, have.of(name) - taken.of(name)),
        )
        for name in counted(policy)
    )


def clone_cost(whole: Demand, memory_used: int, measured: Sequence[int]) -> int:
    """Return the bytes of real memory that one more instant clone takes now.

    ``measured`` is the proportional memory of other clones of the template: their median, since
    one that works hard says little of a new one. Without any, half of the overhead that is counted
    for safety, and a quarter of the template's memory that is not zero: more than was seen of idle
    Linux guests. Never more than ``whole``, all that it can come to take.
    """
    most = whole.memory + whole.overhead
    if measured:
        return min(most, math.ceil(statistics.median(measured)))
    return min(most, whole.overhead // 2 + memory_used // 4)
