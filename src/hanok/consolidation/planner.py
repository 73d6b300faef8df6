"""From a request to a plan: a greedy one at once, then ever fewer hosts, then the best known.

Hosts at hand come first, the more capable ones before the others, then bought ones. Servers under
rules on places (pins, racks, together) are placed first and stay; all others are exchanged between
hosts by ``series.anneal_series`` until a host can be given up. Large fleets are improved in
parts of some hosts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

import numpy as np

from hanok.consolidation.diagnose import Cause, find_causes
from hanok.consolidation.meter import Meter
from hanok.consolidation.request import Host, Plan, PlanRequest
from hanok.consolidation.series import anneal_series, fill
from hanok.consolidation.series_bound import hosts_bound
from hanok.consolidation.settle import Homeless, settle
from hanok.consolidation.spares import Shelf, choose_spares
from hanok.consolidation.tables import Tables, make_tables
from hanok.consolidation.vectors import Bound, Ints
from hanok.errors import NotAdmitted

HOT, COLD = 0.004, 0.0001
SLICE = 50_000
PART = 700
"""Servers that are improved at a time."""
WINDOW = 200
FEW = 64
SHORTEST = 100
"""Moves a server of the first, shortest search for a host less."""


class Impossible(NotAdmitted):
    """No plan keeps all rules; ``causes`` are those of which none can be left out."""

    def __init__(self, causes: Sequence[Cause]) -> None:
        super().__init__(
            "no plan is possible: " + "; ".join(cause.text for cause in causes),
            field=causes[0].field,
            expected="rules and hosts that allow at least one plan",
            hint="change one of: " + ", ".join(one for cause in causes for one in cause.parts),
        )
        self.causes = tuple(causes)

    @property
    def details(self) -> dict[str, object]:
        """What programs get to know besides the message."""
        return {"causes": [asdict(cause) for cause in self.causes]}


def plan(
    request: PlanRequest,
    meter: Meter,
    *,
    seed: int = 0,
    known: Iterable[Plan] = (),
    show: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """Return the plan of the fewest hosts that was found before ``meter`` was empty.

    ``known`` are plans that are candidates as well: with them the answer is never worse. ``show``
    gets each better plan at once. Raises Impossible with the causes when there is no plan, or when
    none was found (then it says so), InvalidInput for series that do not go together.
    """
    causes = find_causes(request)
    if causes:
        raise Impossible(causes)
    best = min(known, key=lambda one: len(one.hosts), default=None)
    few = min(len(request.servers), FEW + len(request.servers) // 4)
    for offered in (few, len(request.servers)):  # more than a host a server is never needed
        shelf = choose_spares(request, offered)
        usable, spares = shelf.usable, shelf.spares
        tables = make_tables(request, usable)
        bound = hosts_bound(_lenient(request, shelf, tables))
        best = best and replace(best, bound=bound)  # what was proved for other hosts is not now
        if len(spares) < request.rules.failures or (request.servers and not usable):
            if best is not None:
                return best
            text = "no choice of spare hosts can take the VMs of another that may fail"
            raise Impossible([Cause("rules.failures", text, ("rules.failures", "hosts"))])
        search = _Search(request, usable, spares, tables, bound, meter, seed, show, best)
        if search.start(is_last=offered == len(request.servers) or request.offer is None):
            search.improve()
            break
    if search.best is None:
        raise AssertionError("a search without an answer has raised before")
    return search.best


def _lenient(request: PlanRequest, shelf: Shelf, tables: Tables) -> Tables:
    """Return tables in which no server takes more, and no host has less, than in any plan."""
    overheads = {tuple(sorted(host.kind.overhead_vm.items())) for host in shelf.all}
    if not shelf.spares and len(overheads) <= 1:
        return tables
    return make_tables(request, shelf.all, lenient=True)


class _Search:
    def __init__(
        self,
        request: PlanRequest,
        usable: Sequence[Host],
        spares: tuple[Host, ...],
        tables: Tables,
        bound: Bound,
        meter: Meter,
        seed: int,
        show: Callable[[Plan], None],
        best: Plan | None,
    ) -> None:
        self.request = request
        self.usable = usable
        self.spares = spares
        self.tables = tables
        self.bound = bound
        self.meter = meter
        self.show = show
        self.best = best
        self.random = np.array([0x9E3779B97F4A7C15 ^ (seed + 1)], np.uint64)
        self.bins = np.full(len(tables.members), -1, np.int64)
        self.fixed = np.zeros(len(tables.members), np.bool_)

    def start(self, *, is_last: bool) -> bool:
        """Place all: those under rules of place one by one, the others host by host.

        Returns False when the hosts did not suffice and there are more to come.
        """
        tables = self.tables
        try:
            self.fixed = settle(self.request, self.usable, tables, self.bins)
        except Homeless as error:
            if self.best is not None or not is_last:
                return is_last
            raise Impossible([error.cause]) from error
        loads = np.zeros(tables.capacity.shape, np.int32)
        present = np.zeros((len(self.usable), tables.sets), np.int64)
        for item in np.flatnonzero(self.bins >= 0):
            loads[self.bins[item]] += tables.items[item]
            numbers = tables.groups[item]
            present[self.bins[item], numbers[numbers >= 0]] += 1
        rest = np.flatnonzero(self.bins < 0)
        hardest = np.argsort(-tables.items[rest].max(axis=1, initial=0), kind="stable")
        fill(
            tables.items,
            rest[hardest],
            self.bins,
            loads,
            tables.capacity,
            np.arange(len(self.usable)),
            tables.groups,
            present,
            tables.times,
            tables.intervals,
            tables.exceptions,
            WINDOW,
            self.random,
        )
        homeless = np.flatnonzero(self.bins < 0)
        if homeless.size and not is_last:
            return False
        if homeless.size and not self._squeeze(homeless):
            self._give_up(homeless)
        self._keep()
        self._adopt()
        return True

    def _adopt(self) -> None:
        """Go on from the best plan known, where the one just made is not it."""
        if self.best is None:
            return
        numbers = {host.name: number for number, host in enumerate(self.usable)}
        servers = self.request.servers
        hosts = [
            {self.best.placement.get(servers[one].name, "") for one in item}
            for item in self.tables.members
        ]
        if all(len(names) == 1 and names <= numbers.keys() for names in hosts):
            self.bins[:] = [numbers[min(names)] for names in hosts]

    def _squeeze(self, homeless: Ints) -> bool:
        """Search for a way to place all on the hosts that there are."""
        self.bins[homeless] = np.arange(homeless.size) % len(self.usable)
        steps, worked = SHORTEST * len(self.tables.members), True
        while worked and not self.meter.is_empty:
            before = self.meter.spent
            if self._anneal(np.arange(len(self.bins)), np.arange(len(self.usable)), steps):
                return True
            steps, worked = 2 * steps, self.meter.spent > before
        self.bins[homeless] = -1
        return False

    def _give_up(self, homeless: Ints) -> None:
        if self.best is not None:
            return
        names = [self.request.servers[self.tables.members[i][0]].name for i in homeless[:3]]
        text = (
            f"{homeless.size} servers found no host in the effort given, among them "
            f"{', '.join(names)}; the hosts may still suffice"
        )
        raise Impossible([Cause("hosts", text, ("hosts", "effort"))])

    def _keep(self) -> None:
        if (self.bins < 0).any():
            return
        used = np.unique(self.bins)
        if self.best is not None and used.size >= len(self.best.hosts):
            return
        placement = {
            self.request.servers[server].name: self.usable[self.bins[item]].name
            for item, servers in enumerate(self.tables.members)
            for server in servers
        }
        hosts = tuple(self.usable[b] for b in used)
        self.best = Plan(placement, hosts, self.spares, self.bound, self.meter.spent)
        self.show(self.best)

    def improve(self) -> None:
        """Give up hosts, part by part, with ever longer searches, until the bound or the end."""
        share = SHORTEST * PART
        while (self.bins >= 0).all() and not self.meter.is_empty:
            used = np.unique(self.bins)
            if used.size <= self.bound.bins:
                break
            parts = max(1, round(len(self.bins) / PART))
            saved, before = 0, self.meter.spent
            for part in range(parts):
                if self.meter.is_empty:
                    break
                saved += self._improve_part(used[part::parts], share)
                if np.unique(self.bins).size <= self.bound.bins:
                    break
            self._keep()
            if self.meter.spent == before:
                break  # no part has a host that could be given up
            if not saved:
                share *= 2

    def _improve_part(self, hosts: Ints, steps: int) -> int:
        """Give up as many of ``hosts`` as searches of ``steps`` moves can; return how many."""
        items = np.flatnonzero(np.isin(self.bins, hosts))
        saved, stride = 0, 1
        while hosts.size > 1 and not self.meter.is_empty:
            held = np.unique(self.bins[items[self.fixed[items]]])
            free = hosts[~np.isin(hosts, held)]
            stride = min(stride, free.size, hosts.size - self._least(items, hosts))
            if stride < 1:
                break
            before = self.bins.copy()
            dropped = self._least_useful(items, free, stride)
            left = hosts[~np.isin(hosts, dropped)]
            moving = items[np.isin(self.bins[items], dropped)]
            self.bins[moving] = left[np.arange(moving.size) % left.size]
            if self._anneal(items, left, min(steps, self.meter.left)):
                hosts, saved, stride = left, saved + stride, 2 * stride
                continue
            self.bins = before
            if stride == 1:
                break
            stride //= 2
        return saved

    def _least_useful(self, items: Ints, free: Ints, count: int) -> Ints:
        """Return the hosts to give up: the last ones, and among equal ones the emptiest."""
        fill_of = np.zeros(len(self.usable))
        sizes = self.tables.items[items].mean(axis=1) if self.tables.items.shape[1] else 0.0
        np.add.at(fill_of, self.bins[items], sizes)
        kinds = [(self.usable[b].kind.name, fill_of[b]) for b in free]
        last = kinds[-1][0]
        order = sorted(range(free.size), key=lambda at: (kinds[at][0] != last, kinds[at][1]))
        return free[np.array(order[:count], np.int64)]

    def _least(self, items: Ints, hosts: Ints) -> int:
        """Return how few of ``hosts`` these items need at least, by the sums of their sizes."""
        tables = self.tables
        if tables.exceptions or not tables.items.shape[1]:
            return 1
        total = tables.items[items].sum(axis=0, dtype=np.int64)
        room = np.sort(tables.capacity[hosts], axis=0)[::-1].cumsum(axis=0, dtype=np.int64)
        return int((room < total).sum(axis=0).max()) + 1

    def _anneal(self, items: Ints, hosts: Ints, steps: int) -> bool:
        """Exchange ``items`` among ``hosts``; change ``bins`` only when all fit in the end."""
        tables = self.tables
        numbers = np.full(len(self.usable), -1, np.int64)
        numbers[hosts] = np.arange(hosts.size)
        bins = numbers[self.bins[items]]
        movable = np.flatnonzero(~self.fixed[items])
        if not movable.size:
            return False
        part, capacity, groups = tables.items[items], tables.capacity[hosts], tables.groups[items]
        if not self._apart(bins, groups, movable):
            return False
        done = 0
        while done < steps and not self.meter.is_empty:
            now = min(SLICE, steps - done)
            hot, cold = (HOT * (COLD / HOT) ** (at / steps) for at in (done, done + now))
            over, tried = anneal_series(
                part,
                capacity,
                bins,
                movable,
                groups,
                tables.sets,
                tables.times,
                tables.intervals,
                tables.exceptions,
                now,
                hot,
                cold,
                self.random,
            )
            self.meter.spend(tried)
            done += now
            if over == 0.0:
                self.bins[items] = hosts[bins]
                return True
        return False

    def _apart(self, bins: Ints, groups: Ints, movable: Ints) -> bool:
        """Move items until no two of a set share a bin; whether that was possible."""
        if not self.tables.sets:
            return True
        count = int(bins.max()) + 1
        present: list[set[int]] = [set() for _ in range(count)]
        can_move = set(movable.tolist())
        for item in sorted(range(bins.size), key=lambda one: one in can_move):
            mine = {int(g) for g in groups[item] if g >= 0}
            if mine & present[bins[item]]:
                others = (b for b in range(count) if not mine & present[b])
                new = next(others, None) if item in can_move else None
                if new is None:
                    return False
                bins[item] = new
            present[bins[item]] |= mine
        return True
