"""What a host has and what is left of it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from hanok.model.architecture import host_arch
from hanok.model.base import Frozen, Size
from hanok.units import GIB, MIB


def _own_architecture() -> tuple[str, ...]:
    arch = host_arch()
    return () if arch is None else (str(arch),)


class HypervisorFacts(Frozen):
    """A hypervisor as it was found on this host."""

    name: str = Field(description="qemu, xen or fake")
    version: str
    accelerator: str = Field(description="kvm, tcg, xen or fake")
    type: int = Field(description="1: bare metal, 2: hosted")
    isolation: str = Field(description="kvm, xen or none")
    modes: tuple[str, ...]
    architectures: tuple[str, ...] = Field(
        default_factory=_own_architecture,
        description="of guests, by Debian's names; the host's first",
    )
    machine_type: str | None = None
    reason: str = Field(default="", description="why this accelerator and no other")
    confinement: str | None = Field(
        default=None, description="what device models in Dom0 are kept from; None on Type 2"
    )
    measured: bool = Field(default=True, description="whether a real guest has shown it")

    def is_own(self, arch: str) -> bool:
        """Return whether ``arch`` is the host's architecture."""
        return arch in self.architectures[:1]


class HostShare(Frozen):
    """A host that a Type 1 hypervisor divides, and what its management domain (Dom0) has of it."""

    memory: int = Field(description="bytes that the hypervisor can give, Dom0's included")
    free: int = Field(description="bytes that no domain has")
    cpus: int
    scheduler: str
    capabilities: tuple[str, ...] = Field(description="such as pv, hvm and hap")
    own_memory: int = Field(description="bytes that Dom0 has")
    own_cpus: int = Field(description="vCPUs that Dom0 has")
    own_cpu_seconds: float = Field(
        description="CPU time that Dom0 has taken since the host's start"
    )


class HostResources(Frozen):
    """What the host has, in bytes and CPUs."""

    cpus: int
    memory: int
    disk: int
    disk_free: int
    available: int = Field(default=0, description="bytes that programs could still get, measured")


class MemoryPolicy(StrEnum):
    """How memory is given to VMs.

    guaranteed: each can use all of its own, so all of it counts. shared: more may be sold than
    there is, since clones share what they do not write; what is really free is measured.
    """

    GUARANTEED = "guaranteed"
    SHARED = "shared"


class CapacityPolicy(Frozen):
    """How much of a host may be given away."""

    cpu_ratio: float = Field(default=8.0, ge=1, le=1024, description="vCPUs per host CPU")
    reserve_memory: Size = Field(default=1 * GIB, description="bytes kept for the host itself")
    reserve_disk: Size = Field(default=2 * GIB, description="bytes kept free on the disk")
    memory_policy: MemoryPolicy = MemoryPolicy.GUARANTEED
    memory_factor: float = Field(
        default=4.0, ge=1, le=64, description="shared: bytes that may be sold per byte there is"
    )
    shared_reserve: Size = Field(
        default=1 * GIB, description="shared: bytes really free after the next VM"
    )


class Demand(Frozen):
    """What one VM takes of a host, its overhead included.

    ``cost_now`` matters to policy shared: the bytes of real memory that it is about to take and
    that are not seen yet in what the host has available. None: all that it can come to take.
    """

    cpus: int
    memory: int = Field(description="bytes of guest RAM")
    overhead: int = Field(default=64 * MIB, description="bytes that virtualizing it costs")
    disk: int = 0
    cost_now: int | None = None


class Usage(Frozen):
    """Sum of what the VMs of a host take."""

    vms: int = 0
    cpus: int = 0
    memory: int = 0
    overhead: int = 0
    disk: int = 0
    coming: int = Field(default=0, description="sum of what they are about to take really")


class Room(Frozen):
    """How much is left of one resource."""

    resource: str
    capacity: float
    used: float
    free: float


class Fit(Frozen):
    """How many more VMs of a shape a host takes, and what stops the next one.

    ``cost_now``: bytes of real memory that one more clone takes now, known for templates only;
    ``measured``: on clones of that template, else it is an estimate.
    ``cost_most``: what it can come to take, all its memory and overhead.
    """

    count: int
    limit: str
    missing: int = Field(description="bytes or vCPUs that the next one lacks")
    by_resource: dict[str, int]
    rooms: tuple[Room, ...]
    policy: MemoryPolicy = MemoryPolicy.GUARANTEED
    cost_now: int | None = None
    cost_most: int | None = None
    measured: bool = False
