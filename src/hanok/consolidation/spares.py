"""Which hosts VMs may use, and which stay free for the failure of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hanok.consolidation.request import Host, PlanRequest, bought, racks_needed


@dataclass(frozen=True, eq=False)
class Shelf:
    """Hosts that may be used, those at hand first and the most capable of them before others."""

    usable: tuple[Host, ...]
    spares: tuple[Host, ...]
    all: tuple[Host, ...]
    """Hosts that some choice of spares may use: bounds are over these."""


def choose_spares(request: PlanRequest, offered: int) -> Shelf:
    """Return the choice of spares that leaves most hosts, ``offered`` of them from the offer.

    Every spare can take all VMs of any usable host, so that N+k holds whichever hosts fail.
    """
    failures = request.rules.failures
    hosts = sorted(request.hosts, key=_capability)
    if request.offer is not None:
        racks = racks_needed(request.rules)
        hosts += [bought(request.offer, number, racks) for number in range(offered + failures)]
    if not failures:
        return Shelf(tuple(hosts), (), tuple(hosts))
    shelves = [_without(hosts, spares) for spares in _candidates(hosts, failures)]
    none = Shelf((), (), tuple(hosts))
    return max(shelves, key=lambda one: (_pins_kept(request, one), len(one.usable)), default=none)


def _pins_kept(request: PlanRequest, shelf: Shelf) -> int:
    """Return of how many pinned servers a host that they may be on is usable."""
    names = {host.name for host in shelf.usable}
    return sum(not names.isdisjoint(pin) for pin in request.rules.pins.values())


def _capability(host: Host) -> tuple[float, ...]:
    capacity = host.kind.capacity
    return tuple(-capacity[name] for name in sorted(capacity))


def _candidates(hosts: Sequence[Host], count: int) -> Iterator[list[Host]]:
    by_kind: dict[str, list[Host]] = {}
    for host in hosts:
        by_kind.setdefault(host.kind.name, []).append(host)
    for alike in by_kind.values():
        yield alike[:count]
    yield list(hosts[:count])


def _without(hosts: Sequence[Host], spares: list[Host]) -> Shelf:
    names = {spare.name for spare in spares}
    usable = [
        host
        for host in hosts
        if host.name not in names and all(_covers(spare, host) for spare in spares)
    ]
    return Shelf(tuple(usable), tuple(spares), tuple(hosts))


def _covers(spare: Host, host: Host) -> bool:
    """Return whether whatever fits on ``host`` fits on ``spare``."""
    mine, its = spare.kind, host.kind
    if mine is its:
        return True
    if mine.most_vms is not None and (its.most_vms is None or its.most_vms > mine.most_vms):
        return False
    return all(
        resource in its.capacity
        and capacity - mine.overhead.get(resource, 0.0)
        >= its.capacity[resource] - its.overhead.get(resource, 0.0)
        and mine.overhead_vm.get(resource, 0.0) <= its.overhead_vm.get(resource, 0.0)
        for resource, capacity in mine.capacity.items()
    )
