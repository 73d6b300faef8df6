"""A request as tables of whole numbers, as the search wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hanok.consolidation.request import Host, HostKind, PlanRequest, Rules, Series, Server, room
from hanok.consolidation.series import WHOLE, Units
from hanok.consolidation.vectors import Ints
from hanok.errors import InvalidInput

UNLIMITED = 2_000_000_000
LARGEST_ITEM = 2 * WHOLE


@dataclass(frozen=True, eq=False)
class Tables:
    """Items (servers that share a host are one) and hosts, in units of the largest room (WHOLE).

    ``members`` are the indices of an item's servers; ``items`` (n, d) and ``capacity`` (h, d) have
    the loads by interval first, see ``series``, of the resources ``loads`` and then ``sizes``;
    ``groups`` are the sets that are kept apart.
    """

    members: tuple[tuple[int, ...], ...]
    items: Units
    capacity: Units
    groups: Ints
    sets: int
    loads: tuple[str, ...]
    sizes: tuple[str, ...]
    times: int
    intervals: int
    exceptions: int


def make_tables(request: PlanRequest, hosts: Sequence[Host], *, lenient: bool = False) -> Tables:
    """Return the tables of ``request`` on ``hosts``. Raises InvalidInput for bad series.

    Kinds may differ in what they take for each VM: the most counts, with ``lenient`` the least.
    """
    pick = min if lenient else max
    members = merge(request.servers, request.rules.together)
    intervals = check_series(request.servers)
    kinds = {host.kind.name: host.kind for host in hosts}
    loads, sizes = resources_of(request.servers, kinds)
    rooms = {
        name: {r: _usable(kind, request.rules, r, r in loads) for r in (*loads, *sizes)}
        for name, kind in kinds.items()
    }
    most_vms = [kind.most_vms for kind in kinds.values() if kind.most_vms is not None]
    columns, capacities = [], []
    for resource in loads:
        scale = _scale(rooms, resource)
        columns.append(
            _series(
                request.servers, members, resource, intervals, scale, _per_vm(kinds, resource, pick)
            )
        )
        row = [_in_units(rooms[host.kind.name][resource], scale) for host in hosts]
        capacities.append(np.repeat(np.array(row, np.int32)[:, None], intervals, axis=1))
    for resource in sizes:
        scale = _scale(rooms, resource)
        columns.append(
            _sizes(request.servers, members, resource, scale, _per_vm(kinds, resource, pick))[
                :, None
            ]
        )
        row = [_in_units(rooms[host.kind.name][resource], scale) for host in hosts]
        capacities.append(np.array(row, np.int32)[:, None])
    if most_vms:
        unit = WHOLE // max(1, *most_vms)
        columns.append(np.array([[len(one) * unit] for one in members], np.int32))
        row = [UNLIMITED if h.kind.most_vms is None else h.kind.most_vms * unit for h in hosts]
        capacities.append(np.array(row, np.int32)[:, None])
    groups, sets = _groups(request, members)
    return Tables(
        members=members,
        items=np.ascontiguousarray(np.hstack(columns or [np.zeros((len(members), 0), np.int32)])),
        capacity=np.ascontiguousarray(
            np.hstack(capacities or [np.zeros((len(hosts), 0), np.int32)])
        ),
        groups=groups,
        sets=sets,
        loads=tuple(loads),
        sizes=(*sizes, *(["VMs"] if most_vms else [])),
        times=len(loads) * intervals,
        intervals=max(1, intervals),
        exceptions=request.rules.headroom.exceptions(intervals),
    )


def merge(
    servers: Sequence[Server], together: Sequence[frozenset[str]]
) -> tuple[tuple[int, ...], ...]:
    """Return the indices of servers by item; sets that have a server in common are one item."""
    if not together:
        return tuple((index,) for index in range(len(servers)))
    index_of = {server.name: index for index, server in enumerate(servers)}
    root = list(range(len(servers)))

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    for names in together:
        indices = sorted(find(index_of[name]) for name in names if name in index_of)
        for index in indices[1:]:
            root[find(index)] = find(indices[0])
    items: dict[int, list[int]] = {}
    for index in range(len(servers)):
        items.setdefault(find(index), []).append(index)
    return tuple(tuple(indices) for indices in items.values())


def check_series(servers: Sequence[Server]) -> int:
    """Return the intervals of all series. Raises InvalidInput unless they are the same."""
    lengths = {series.size for server in servers for series in server.load.values()}
    if len(lengths) > 1:
        raise InvalidInput(
            f"series have {', '.join(map(str, sorted(lengths)))} intervals",
            field="servers.load",
            expected="all servers over the same intervals",
        )
    return lengths.pop() if lengths else 0


def resources_of(
    servers: Sequence[Server], kinds: Mapping[str, HostKind]
) -> tuple[list[str], list[str]]:
    """Return the names of the resources that count: loads over time, and what is reserved."""
    counted = {name for kind in kinds.values() for name in kind.capacity}
    loads = {name for server in servers for name in server.load} & counted
    extra = {name for kind in kinds.values() for name in kind.overhead_vm}
    sizes = ({name for server in servers for name in server.size} | extra) & counted
    both = loads & sizes
    if both - extra:
        raise InvalidInput(
            f"{sorted(both)[0]} is given both over time and as a size",
            field="servers",
            expected="one of the two for each resource",
        )
    return sorted(loads), sorted(sizes - loads)


def _usable(kind: HostKind, rules: Rules, resource: str, over_time: bool) -> float | None:
    if resource not in kind.capacity:
        return None
    reserve = rules.headroom.reserve if over_time else 0.0
    return room(kind, rules, resource) * (1.0 - reserve)


def _scale(rooms: Mapping[str, Mapping[str, float | None]], resource: str) -> float:
    largest = max((of[resource] or 0.0) for of in rooms.values())
    return WHOLE / largest if largest > 0 else WHOLE * 1e6


def _in_units(amount: float | None, scale: float) -> int:
    return UNLIMITED if amount is None else int(np.floor(amount * scale * (1 + 1e-12)))


def _units_of(amounts: Series, scale: float) -> Units:
    scaled = np.ceil(np.clip(amounts * scale * (1 - 1e-12), 0.0, LARGEST_ITEM))
    return scaled.astype(np.int32)


def _per_vm(
    kinds: Mapping[str, HostKind], resource: str, pick: Callable[[list[float]], float]
) -> float:
    return pick([kind.overhead_vm.get(resource, 0.0) for kind in kinds.values()] or [0.0])


def _series(
    servers: Sequence[Server],
    members: tuple[tuple[int, ...], ...],
    resource: str,
    intervals: int,
    scale: float,
    extra: float,
) -> Units:
    table = np.zeros((len(members), intervals), np.int32)
    none = np.zeros(intervals)
    for row, indices in enumerate(members):
        total = servers[indices[0]].load.get(resource, none)
        for index in indices[1:]:
            total = total + servers[index].load.get(resource, none)
        table[row] = _units_of(total + extra * len(indices), scale)
    return table


def _sizes(
    servers: Sequence[Server],
    members: tuple[tuple[int, ...], ...],
    resource: str,
    scale: float,
    extra: float,
) -> Units:
    totals = [
        sum(servers[index].size.get(resource, 0.0) + extra for index in indices)
        for indices in members
    ]
    return _units_of(np.array(totals, np.float64), scale)


def _groups(request: PlanRequest, members: tuple[tuple[int, ...], ...]) -> tuple[Ints, int]:
    if not request.rules.apart:
        return np.full((len(members), 0), -1, np.int64), 0
    item_of = {request.servers[i].name: row for row, one in enumerate(members) for i in one}
    of_item: list[list[int]] = [[] for _ in members]
    for number, names in enumerate(request.rules.apart):
        for name in sorted(names & item_of.keys()):
            of_item[item_of[name]].append(number)
    width = max(1, *(len(one) for one in of_item))
    table = np.full((len(members), width), -1, np.int64)
    for row, numbers in enumerate(of_item):
        table[row, : len(numbers)] = numbers
    return table, len(request.rules.apart)
