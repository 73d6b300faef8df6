"""Servers files and hosts files: what ``hanok plan`` plans, and onto what.

    servers:                                   hosts: (another file)
      shop-1: {cores: 8, memory: 32G}            kinds:
      shop-2: {group: shop}                        small: {cores: 32, memory: 256G, price: 7000}
    rules:                                       at_hand:
      apart: [[shop-1, shop-2]]                    host-a: {kind: small, rack: r1}
      headroom: {percentile: 99, reserve: 0.2}   offers: [small]

What a server's entry leaves out is taken from its usage file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from hanok.model.base import Frozen, Size
from hanok.units import GIB, MIB

LABEL_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$"
Label = Annotated[str, StringConstraints(pattern=LABEL_PATTERN, max_length=253)]
Number = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
MOST_SERVERS = 200_000
POINTS = 11
"""Watts are given at 0, 10, ... 100 % of the CPU."""

Watts = Annotated[tuple[Number, ...], Field(min_length=POINTS, max_length=POINTS)]


class Power(Frozen):
    """What a machine takes: watts at ``peak`` load and ``idle``, straight between them; or a curve.

    Without ``idle`` a plan shows what an old and a new machine would take. A list is the curve.
    """

    idle: Number | None = None
    peak: Number | None = None
    curve: Watts | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_curve(cls, value: Any) -> Any:
        return {"curve": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.curve is None) == (self.peak is None) or (self.curve and self.idle is not None):
            raise ValueError(f"expected peak (and idle), or a list of {POINTS} watts")
        if self.idle is not None and self.peak is not None and self.idle > self.peak:
            raise ValueError("idle is above peak; expected at most what it takes at full load")
        return self


class VmShape(Frozen):
    """What a server's VM is to have, whatever was measured."""

    vcpus: int | None = Field(default=None, ge=1, le=1024)
    memory: Size | None = None


class ServerEntry(Frozen):
    """A server that is to become a VM; what is None comes from its usage file.

    ``speed`` is that of a core, relative to 1.0 in the hosts file. ``stays``: it is not moved and
    counts before and after.
    """

    cores: int | None = Field(default=None, ge=1, le=4096)
    memory: Size | None = None
    disk: Size | None = None
    speed: float = Field(default=1.0, gt=0, le=100)
    watts: Power | None = None
    rack_units: int = Field(default=1, ge=0, le=42)
    group: Label | None = None
    pins: tuple[Label, ...] = Field(default=(), max_length=10_000)
    stays: bool = False
    usage: str | None = Field(default=None, max_length=253)
    vm: VmShape = Field(default_factory=VmShape)

    @field_validator("pins", mode="before")
    @classmethod
    def _one_pin(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class HeadroomRule(Frozen):
    """A host's load leaves ``reserve`` free in ``percentile`` % of the intervals.

    That of its CPU, and of disks and network where the host says what they can move.
    """

    percentile: float = Field(default=100.0, gt=0, le=100)
    reserve: Share = 0.1


class SpreadRule(Frozen):
    """At most ``most`` of these stand in one rack."""

    servers: tuple[Label, ...] = Field(min_length=1, max_length=MOST_SERVERS)
    most: int = Field(default=1, ge=1)


Names = Annotated[tuple[Label, ...], Field(min_length=1, max_length=MOST_SERVERS)]


class RulesEntry(Frozen):
    """What every plan must keep. Where servers are named, a group's name means all of its servers.

    ``together`` and ``apart`` are sets of servers that share a host, or of which no two do.
    ``memory_factor``: how often memory is sold; 1 is never oversold. ``vcpus_per_core`` is how
    often a core of a host is given (what the hosts' admission allows).
    """

    headroom: HeadroomRule = Field(default_factory=HeadroomRule)
    failures: int = Field(default=0, ge=0, le=100)
    together: tuple[Names, ...] = Field(default=(), max_length=10_000)
    apart: tuple[Names, ...] = Field(default=(), max_length=10_000)
    spread: tuple[SpreadRule, ...] = Field(default=(), max_length=10_000)
    most_vms: int | None = Field(default=None, ge=1)
    memory_factor: float = Field(default=1.0, ge=1, le=16)
    vcpus_per_core: float = Field(default=8.0, ge=0.1, le=1024)


class SizingRule(Frozen):
    """A size is the ``percentile`` of what was used, and ``margin`` more."""

    percentile: float = Field(default=99.0, gt=0, le=100)
    margin: float = Field(default=0.2, ge=0, le=10)


class Rightsizing(Frozen):
    """How VMs are sized."""

    vcpus: SizingRule = Field(default_factory=SizingRule)
    memory: SizingRule = Field(default_factory=lambda: SizingRule(percentile=100.0))
    least_memory: Size = 512 * MIB


class ServersFile(Frozen):
    """A servers file: the servers, and the rules that a plan of them must keep."""

    format: Literal[1] = 1
    servers: dict[Label, ServerEntry] = Field(min_length=1, max_length=MOST_SERVERS)
    rules: RulesEntry = Field(default_factory=RulesEntry)
    rightsizing: Rightsizing = Field(default_factory=Rightsizing)

    @field_validator("servers", mode="before")
    @classmethod
    def _plain_servers(cls, value: object) -> object:
        """Accept a list of names, and entries that say nothing."""
        if isinstance(value, list):
            return {name if isinstance(name, str) else str(name): {} for name in value}
        if isinstance(value, Mapping):
            return {name: {} if entry is None else entry for name, entry in value.items()}
        return value


class Overhead(Frozen):
    """What the hypervisor takes of a host: cores busy at all times, and memory."""

    cores: Number = 0.0
    memory: Size | None = None


class HostKindEntry(Frozen):
    """A model of host.

    ``hypervisor`` 1 runs on the hardware (Dom0 takes ``overhead``), 2 on a host system (which
    does). Without ``overhead`` and ``overhead_vm`` those of ``default_overhead`` hold. ``disk`` is
    not counted on a host that has none named, nor are ``disk_io`` and ``network`` (bytes a second;
    the network's in each direction). ``price`` is in the hosts file's currency.
    """

    cores: int = Field(ge=1, le=4096)
    memory: Size
    disk: Size | None = None
    disk_io: Size | None = None
    network: Size | None = None
    speed: float = Field(default=1.0, gt=0, le=100)
    watts: Power | None = None
    rack_units: int = Field(default=1, ge=0, le=42)
    price: Number | None = None
    hypervisor: Literal[1, 2] = 2
    overhead: Overhead | None = None
    overhead_vm: Size | None = None
    most_vms: int | None = Field(default=None, ge=1)


class HostEntry(Frozen):
    """A host that is there already."""

    kind: Label
    rack: str = Field(default="", max_length=100)


class Costs(Frozen):
    """What things cost besides hosts; ``years`` is how long hosts are kept.

    ``pue``: watts at the meter for each watt of a host (cooling).
    """

    currency: str = Field(default="EUR", min_length=1, max_length=8)
    kwh: Number = 0.25
    rack_unit_year: Number = 0.0
    years: float = Field(default=4.0, gt=0, le=50)
    pue: float = Field(default=1.5, ge=1, le=10)


class HostsFile(Frozen):
    """A hosts file: kinds of hosts, those at hand, and which kinds can be bought."""

    format: Literal[1] = 1
    kinds: dict[Label, HostKindEntry] = Field(min_length=1, max_length=1_000)
    at_hand: dict[Label, HostEntry] = Field(default_factory=dict, max_length=100_000)
    offers: tuple[Label, ...] = Field(default=(), max_length=100)
    costs: Costs = Field(default_factory=Costs)

    @field_validator("at_hand", mode="before")
    @classmethod
    def _plain_hosts(cls, value: object) -> object:
        """Accept the kind alone: ``host-a: small``."""
        if isinstance(value, Mapping):
            return {
                name: {"kind": entry} if isinstance(entry, str) else entry
                for name, entry in value.items()
            }
        return value

    @model_validator(mode="before")
    @classmethod
    def _something_to_use(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("at_hand") and not value.get("offers"):
            raise ValueError(
                "there is no host at hand and none on offer; expected at_hand or offers"
            )
        return value


def default_overhead(kind: HostKindEntry) -> Overhead:
    """Return what a hypervisor takes of a host of ``kind`` when its entry does not say.

    Type 1: a core, and the memory that ``hanok host prepare`` gives Dom0, a tenth from 1 to 8 GiB.
    Type 2: half a core and 2 GiB for the host system.
    """
    if kind.hypervisor == 1:
        return Overhead(cores=1.0, memory=min(8 * GIB, max(GIB, kind.memory // 10)))
    return Overhead(cores=0.5, memory=2 * GIB)


def default_overhead_vm(kind: HostKindEntry) -> int:
    """Return the bytes that each VM takes beside its memory when its host's entry does not say.

    Type 1: its device model and page tables in Dom0 and Xen. Type 2: a QEMU process.
    """
    return 64 * MIB if kind.hypervisor == 1 else 160 * MIB


DEFAULT_HOSTS = HostsFile(
    kinds={
        "generic-32": HostKindEntry(
            cores=32, memory=256 * GIB, watts=Power(idle=67, peak=320), rack_units=1
        ),
        "generic-64": HostKindEntry(
            cores=64, memory=512 * GIB, watts=Power(idle=126, peak=600), rack_units=1
        ),
    },
    offers=("generic-32", "generic-64"),
)
"""What is planned onto without a hosts file: two usual kinds, without prices.

Watts: medians of published SPECpower_ssj2008 results of 2021 to 2024 (idle about 0.21 of peak).
"""
