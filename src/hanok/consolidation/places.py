"""Rules of place as tables for the search: hosts that pins allow, racks to spread over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.compiled import compiled
from hanok.consolidation.request import Host, PlanRequest
from hanok.consolidation.vectors import Ints


class Places(NamedTuple):
    """Which bins items may be in.

    ``pins`` is an item's row of ``allowed`` (rows, bins), -1 where any will do. A row of ``rules``
    names the spreads that an item is under, -1 for none, and ``counts`` how many of their servers
    the item is; a rack holds at most ``most`` of each. ``racks`` is the rack of each bin.
    """

    pins: Ints
    allowed: NDArray[np.bool_]
    rules: Ints
    counts: Ints
    most: Ints
    racks: Ints

    @property
    def is_ruled(self) -> bool:
        """Whether there is any rule of place."""
        return bool(self.allowed.shape[0] or self.most.size)

    def part(self, items: Ints, bins: Ints) -> Places:
        """Return what is said of some items on some bins, numbered anew."""
        return Places(
            np.ascontiguousarray(self.pins[items]),
            np.ascontiguousarray(self.allowed[:, bins]),
            np.ascontiguousarray(self.rules[items]),
            np.ascontiguousarray(self.counts[items]),
            self.most,
            np.ascontiguousarray(self.racks[bins]),
        )

    def in_racks(self, bins: Ints) -> Ints:
        """Return how many servers of each spread stand in each rack; bin -1 is none."""
        found = np.zeros((self.most.size, int(self.racks.max(initial=0)) + 1), np.int64)
        for item in np.flatnonzero((self.rules >= 0).any(axis=1) & (bins >= 0)):
            move_racks(self, found, int(item), -1, int(bins[item]))
        return found

    def choices(self, item: int) -> int:
        """Return on how many bins pins allow the item."""
        pin = self.pins[item]
        return int(self.allowed[pin].sum()) if pin >= 0 else int(self.racks.size)


def make_places(
    request: PlanRequest, hosts: Sequence[Host], members: Sequence[Sequence[int]]
) -> Places:
    """Return the places of items, which are servers by number, on ``hosts``."""
    names = [[request.servers[index].name for index in one] for one in members]
    rows: dict[frozenset[str], int] = {}
    pins = np.full(len(members), -1, np.int64)
    for item, of in enumerate(names) if request.rules.pins else ():
        mine = [request.rules.pins[name] for name in of if name in request.rules.pins]
        if mine:
            pins[item] = rows.setdefault(frozenset.intersection(*mine), len(rows))
    allowed = np.array([[host.name in pin for host in hosts] for pin in rows], np.bool_)
    rules, counts = _spreads(request, names)
    racks = {rack: number for number, rack in enumerate(dict.fromkeys(h.rack for h in hosts))}
    return Places(
        pins,
        allowed.reshape(len(rows), len(hosts)),
        rules,
        counts,
        np.array([rule.most for rule in request.rules.spread], np.int64),
        np.array([racks[host.rack] for host in hosts], np.int64),
    )


def _spreads(request: PlanRequest, names: Sequence[Sequence[str]]) -> tuple[Ints, Ints]:
    of_server: dict[str, list[int]] = {}
    for number, rule in enumerate(request.rules.spread):
        for name in rule.servers:
            of_server.setdefault(name, []).append(number)
    found = [[n for name in of for n in of_server.get(name, ())] for of in names]
    width = max((len(set(one)) for one in found), default=0)
    rules = np.full((len(names), width), -1, np.int64)
    counts = np.zeros((len(names), width), np.int64)
    for item, one in enumerate(found):
        for at, number in enumerate(sorted(set(one))):
            rules[item, at], counts[item, at] = number, one.count(number)
    return rules, counts


@compiled
def may_stand(places: Places, in_rack: Ints, item: int, b: int, a: int, leaves: int) -> bool:
    """Return whether ``item`` of bin ``a`` (-1: of none) may go to ``b``, which ``leaves`` leaves.

    ``leaves`` is -1 when nobody does; else it goes to ``a``.
    """
    pin = places.pins[item]
    if pin >= 0 and not places.allowed[pin, b]:
        return False
    if a >= 0 and places.racks[a] == places.racks[b]:
        return True
    for at in range(places.rules.shape[1]):
        rule = places.rules[item, at]
        if rule < 0:
            continue
        total = in_rack[rule, places.racks[b]] + places.counts[item, at]
        if leaves >= 0:
            for other in range(places.rules.shape[1]):
                if places.rules[leaves, other] == rule:
                    total -= places.counts[leaves, other]
        if total > places.most[rule]:
            return False
    return True


@compiled
def move_racks(places: Places, in_rack: Ints, item: int, a: int, b: int) -> None:
    """Count ``item`` in the rack of bin ``b`` instead of that of ``a`` (-1: of none)."""
    for at in range(places.rules.shape[1]):
        rule = places.rules[item, at]
        if rule >= 0:
            if a >= 0:
                in_rack[rule, places.racks[a]] -= places.counts[item, at]
            in_rack[rule, places.racks[b]] += places.counts[item, at]


@compiled
def may_exchange(places: Places, in_rack: Ints, i: int, k: int, a: int, b: int) -> bool:
    """Return whether ``i`` of bin a and ``k`` of b (-1: nobody) may change places."""
    if not may_stand(places, in_rack, i, b, a, k):
        return False
    return k < 0 or may_stand(places, in_rack, k, a, b, i)


@compiled
def exchange_racks(places: Places, in_rack: Ints, i: int, k: int, a: int, b: int) -> None:
    """Count that ``i`` of bin a and ``k`` of b (-1: nobody) have changed places."""
    move_racks(places, in_rack, i, a, b)
    if k >= 0:
        move_racks(places, in_rack, k, b, a)
