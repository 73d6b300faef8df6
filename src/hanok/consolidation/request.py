"""What a plan is asked for and what it says: servers, hosts, rules, placements.

Resources go by name. ``load`` is a series, one number an interval, all servers over the same
intervals: loads that do not peak together may share a host. ``size`` is reserved whole, at all
times (memory, disk). Units are the caller's, the same for servers and hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.vectors import Bound, Floats

Series = NDArray[np.float32] | Floats
MEMORY = "memory"
RACK_UNITS = 42


@dataclass(frozen=True, eq=False)
class Server:
    """A server to be turned into a VM: its load by resource over time, and what it reserves."""

    name: str
    load: Mapping[str, Series] = field(default_factory=dict)
    size: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class HostKind:
    """A model of host. A resource that ``capacity`` does not name is not counted on it.

    ``watts`` are those at 0, 10, ... 100 % CPU load. ``overhead`` is what the hypervisor takes of a
    host (Dom0 on Type 1, the host system on Type 2), ``overhead_vm`` what it takes for each VM.
    """

    name: str
    capacity: Mapping[str, float]
    watts: tuple[float, ...] = ()
    price: float = 0.0
    rack_units: int = 1
    overhead: Mapping[str, float] = field(default_factory=dict)
    overhead_vm: Mapping[str, float] = field(default_factory=dict)
    most_vms: int | None = None


@dataclass(frozen=True, eq=False)
class Host:
    """One host, at hand or to be bought, and the rack that it stands in."""

    name: str
    kind: HostKind
    rack: str = ""


@dataclass(frozen=True)
class Headroom:
    """How much of a host stays free: its load at ``percentile`` of the time leaves ``reserve``.

    100 and 0.0: the whole host may be used, and is never asked for more. 99 and 0.2: in all but
    1 % of the intervals at most 80 % are used.
    """

    percentile: float = 100.0
    reserve: float = 0.0

    def exceptions(self, intervals: int) -> int:
        """Return in how many of ``intervals`` a host may be asked for more."""
        return int(intervals * (100.0 - self.percentile) / 100.0 + 1e-9)


@dataclass(frozen=True)
class Spread:
    """At most ``most`` of these servers stand in one rack."""

    servers: frozenset[str]
    most: int


@dataclass(frozen=True)
class Rules:
    """What every plan must keep.

    ``failures``: so many spare hosts, each able to take all VMs of any used one. ``together``: sets
    of servers that share a host; ``apart``: sets of which no two do. ``pins``: the hosts that a
    server may be on. ``memory_factor``: how often memory is sold, 1 is never oversold.
    """

    headroom: Headroom = field(default_factory=Headroom)
    failures: int = 0
    together: tuple[frozenset[str], ...] = ()
    apart: tuple[frozenset[str], ...] = ()
    spread: tuple[Spread, ...] = ()
    pins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    memory_factor: float = 1.0


@dataclass(frozen=True, eq=False)
class PlanRequest:
    """What to plan: ``servers`` onto ``hosts`` at hand, then onto hosts bought of ``offer``.

    ``others`` are kinds that may be bought as well: the checker and the bound know them, a search
    buys of one kind. ``units`` by resource are for what people read.
    """

    servers: tuple[Server, ...]
    hosts: tuple[Host, ...] = ()
    offer: HostKind | None = None
    rules: Rules = field(default_factory=Rules)
    others: tuple[HostKind, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)

    def amount(self, resource: str, value: float) -> str:
        """Return ``value`` of ``resource`` for people."""
        return f"{value:.4g} {self.units.get(resource, '')}".rstrip()


@dataclass(frozen=True, eq=False)
class Plan:
    """Where each server goes, and how far from perfect that can be at most.

    ``hosts`` are those in use, ``spares`` those kept for failures. ``bound`` counts hosts in use.
    """

    placement: Mapping[str, str]
    hosts: tuple[Host, ...]
    spares: tuple[Host, ...]
    bound: Bound
    steps: int

    @property
    def gap(self) -> float:
        """By how much of the bound the hosts in use are above it."""
        return (len(self.hosts) - self.bound.bins) / self.bound.bins if self.bound.bins else 0.0


def bought(offer: HostKind, number: int, side_by_side: int = 1) -> Host:
    """Return the bought host ``number`` (from 0).

    So many racks ``side_by_side`` are filled at the same time, then as many others.
    """
    row, column = divmod(number, side_by_side)
    rack = row * offer.rack_units // RACK_UNITS * side_by_side + column
    return Host(f"{offer.name}-{number + 1}", offer, f"new-{rack + 1}")


def racks_needed(rules: Rules) -> int:
    """Return over how many racks the rules spread servers, at least 1."""
    return max([1, *(-(-len(rule.servers) // rule.most) for rule in rules.spread)])


def room(kind: HostKind, rules: Rules, resource: str) -> float:
    """Return how much of ``resource`` VMs may use on a host, beside their own overhead."""
    free = kind.capacity[resource] - kind.overhead.get(resource, 0.0)
    return max(0.0, free * (rules.memory_factor if resource == MEMORY else 1.0))


def watts_at(kind: HostKind, share: Floats) -> Floats:
    """Return the watts of a host at a ``share`` of its CPU load, straight between measured points.

    Load above what the host can do costs what full load costs.
    """
    points = np.linspace(0.0, 1.0, len(kind.watts))
    return np.interp(np.clip(share, 0.0, 1.0), points, kind.watts)
