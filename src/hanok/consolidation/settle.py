"""Placing the servers that rules tie to places: pins, racks, and those that share a host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.diagnose import Cause
from hanok.consolidation.request import Host, PlanRequest
from hanok.consolidation.series import overload
from hanok.consolidation.tables import Tables
from hanok.consolidation.vectors import Ints


class Homeless(Exception):
    """A server under rules found no host; ``cause`` says which and by what rules."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.text)
        self.cause = cause


@dataclass
class _State:
    hosts: Sequence[Host]
    tables: Tables
    loads: NDArray[np.int32]
    sets_on: list[set[int]]
    racks: dict[int, Counter[str]] = field(default_factory=dict)


def settle(request: PlanRequest, hosts: Sequence[Host], tables: Tables, bins: Ints) -> Cause | None:
    """Write the host of each item under a rule of place into ``bins``.

    The item with the fewest hosts to choose from comes first, and goes where most is used already.
    One that fits on none of them goes where rules of place let it, and the cause of that is
    returned: a search may still make room. Raises Homeless when the rules leave one no host.
    """
    crowded = None
    names = [{request.servers[i].name for i in one} for one in tables.members]
    allowed = {
        item: hosts_of
        for item, of in enumerate(names)
        if (hosts_of := _allowed(request, of, hosts)) is not None
    }
    if not allowed:
        return None
    state = _State(hosts, tables, np.zeros(tables.capacity.shape, np.int32), [set() for _ in hosts])
    spreads = [rule.servers for rule in request.rules.spread]
    sizes = tables.items.max(axis=1, initial=0)
    for item in sorted(allowed, key=lambda one: (len(allowed[one]), -sizes[one], one)):
        mine = {n: len(of & names[item]) for n, of in enumerate(spreads) if of & names[item]}
        most = {n: request.rules.spread[n].most for n in mine}
        host, fits = _choose(state, item, allowed[item], mine, most)
        if host is None:
            raise Homeless(_cause(sorted(names[item]), bool(mine)))
        if not fits:
            crowded = crowded or _cause(sorted(names[item]), bool(mine))
        bins[item] = host
        state.loads[host] += tables.items[item]
        state.sets_on[host] |= _sets(tables, item)
        for number, count in mine.items():
            state.racks.setdefault(number, Counter())[hosts[host].rack] += count
    return crowded


def _allowed(request: PlanRequest, names: set[str], hosts: Sequence[Host]) -> list[int] | None:
    pins = [request.rules.pins[name] for name in sorted(names) if name in request.rules.pins]
    if not pins and not any(rule.servers & names for rule in request.rules.spread):
        return None
    return [n for n, host in enumerate(hosts) if all(host.name in pin for pin in pins)]


def _sets(tables: Tables, item: int) -> set[int]:
    return {int(number) for number in tables.groups[item] if number >= 0}


def _choose(
    state: _State, item: int, allowed: list[int], mine: dict[int, int], most: dict[int, int]
) -> tuple[int | None, bool]:
    """Return the host for an item, and whether it fits there beside those that it has."""
    tables = state.tables
    best, fullest = None, -1
    emptiest, least = None, 0
    for host in allowed:
        rack = state.hosts[host].rack
        taken = {number: state.racks.get(number, Counter())[rack] for number in mine}
        if any(taken[number] + count > most[number] for number, count in mine.items()):
            continue
        if _sets(tables, item) & state.sets_on[host]:
            continue
        used = int(state.loads[host].max(initial=0))
        if emptiest is None or used < least:
            emptiest, least = host, used
        if used > fullest and _fits(state, item, host):
            best, fullest = host, used
            if used == 0:
                break  # all that follow are empty too, or were seen
    return (emptiest, False) if best is None else (best, True)


def _fits(state: _State, item: int, host: int) -> bool:
    tables = state.tables
    load = state.loads[host] + tables.items[item]
    capacity = tables.capacity[host]
    return overload(load, capacity, tables.times, tables.intervals, tables.exceptions, 1) == 0


def _cause(names: list[str], spread: bool) -> Cause:
    rules = "its pins, rules of racks and of apart" if spread else "its pins and rules of apart"
    who = ", ".join(names)
    text = f"no host was found for {who} under {rules} beside those placed before it"
    return Cause(f"servers.{names[0]}", text, tuple(names))
