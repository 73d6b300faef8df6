"""From a request to a plan: a greedy one at once, then ever fewer hosts, then the best known.

Hosts at hand come first, the more capable ones before the others, then bought ones. Servers under
rules of place (pins, racks) are placed first, those that share a host as one; then all are
exchanged between hosts by ``series.anneal_series``, where the rules let them, until a host can be
given up. Large fleets are improved in parts of some hosts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

import numpy as np

from hanok.consolidation.diagnose import Cause, find_causes
from hanok.consolidation.meter import Meter
from hanok.consolidation.places import make_places, may_stand, move_racks
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
PART = 1_500
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
        self.places = make_places(request, usable, tables.members)
        over_time, sizes = np.split(tables.items, [tables.times], axis=1)
        self.weights = over_time.sum(axis=1, dtype=np.int64) + max(1, tables.times // 4) * (
            sizes.sum(axis=1, dtype=np.int64)
        )

    def start(self, *, is_last: bool) -> bool:
        """Place all: those under rules of place one by one, the others host by host.

        Returns False when the hosts did not suffice and there are more to come.
        """
        tables = self.tables
        try:
            crowded = settle(self.request, self.usable, tables, self.bins)
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
        if (homeless.size or crowded) and not is_last:
            return False
        fits = not (homeless.size or crowded) or self._squeeze(homeless)
        if not fits and self.best is None:
            raise Impossible([crowded or self._homeless(homeless)])
        if fits:
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
            everything, hosts = np.arange(len(self.bins)), np.arange(len(self.usable))
            if self._anneal(everything, hosts, homeless, steps):
                return True
            steps, worked = 2 * steps, self.meter.spent > before
        self.bins[:] = -1
        return False

    def _homeless(self, homeless: Ints) -> Cause:
        names = [self.request.servers[self.tables.members[i][0]].name for i in homeless[:3]]
        text = (
            f"{homeless.size} servers found no host in the effort given, among them "
            f"{', '.join(names)}; the hosts may still suffice"
        )
        return Cause("hosts", text, ("hosts", "effort"))

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
            if saved < parts:  # most fail: the same length again would be wasted on them
                share *= 2

    def _improve_part(self, hosts: Ints, steps: int) -> int:
        """Give up as many of ``hosts`` as searches of ``steps`` moves can; return how many."""
        items = np.flatnonzero(np.isin(self.bins, hosts))
        saved, stride = 0, 1
        held = np.zeros(0, np.int64)  # hosts that rules of place do not let go
        while hosts.size > 1 and not self.meter.is_empty:
            free = hosts[~np.isin(hosts, held)]
            stride = min(stride, free.size, hosts.size - self._least(items, hosts))
            if stride < 1:
                break
            before = self.bins.copy()
            dropped = self._least_useful(items, free, stride)
            left = hosts[~np.isin(hosts, dropped)]
            moving = items[np.isin(self.bins[items], dropped)]
            self.bins[moving] = left[np.arange(moving.size) % left.size]
            tried = self.meter.spent
            if self._anneal(items, left, moving, min(steps, self.meter.left)):
                hosts, saved, stride = left, saved + stride, 2 * stride
                continue
            self.bins = before
            if stride > 1:
                stride //= 2
            elif self.meter.spent == tried:  # its servers have no other place
                held = np.append(held, dropped)
            else:
                break
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

    def _anneal(self, items: Ints, hosts: Ints, moved: Ints, steps: int) -> bool:
        """Exchange ``items`` among ``hosts``; change ``bins`` only when all fit in the end.

        Those that were ``moved`` just now are moved on first, where rules do not let them stay.
        """
        tables = self.tables
        items = items[np.argsort(self.weights[items], kind="stable")]
        numbers = np.full(len(self.usable), -1, np.int64)
        numbers[hosts] = np.arange(hosts.size)
        bins = numbers[self.bins[items]]
        part, capacity, groups = tables.items[items], tables.capacity[hosts], tables.groups[items]
        if not self._rehouse(items, hosts, bins, moved):
            return False
        places, everywhere = self.places.part(items, hosts), self.bins.copy()
        everywhere[items] = hosts[bins]
        in_rack = self.places.in_racks(everywhere)
        done = 0
        while done < steps and not self.meter.is_empty:
            now = min(SLICE, steps - done)
            hot, cold = (HOT * (COLD / HOT) ** (at / steps) for at in (done, done + now))
            over, tried = anneal_series(
                part,
                capacity,
                bins,
                groups,
                tables.sets,
                tables.times,
                tables.intervals,
                tables.exceptions,
                now,
                hot,
                cold,
                self.random,
                places,
                in_rack,
            )
            self.meter.spend(tried)
            done += now
            if over == 0.0:
                self.bins[items] = hosts[bins]
                return True
        return False

    def _rehouse(self, items: Ints, hosts: Ints, bins: Ints, moved: Ints) -> bool:
        """Give ``moved`` items bins that rules of place and of apart allow, if there are any."""
        tables, places = self.tables, self.places
        if not tables.sets and not places.is_ruled:
            return True
        others, is_moved = self.bins.copy(), np.isin(items, moved)
        others[moved] = -1
        in_rack = places.in_racks(others)
        present: list[set[int]] = [set() for _ in hosts]
        for at in np.flatnonzero(~is_moved):
            present[bins[at]] |= self._sets(items[at])
        for at in sorted(np.flatnonzero(is_moved), key=lambda one: places.choices(int(items[one]))):
            item, mine = int(items[at]), self._sets(items[at])
            for turn in range(hosts.size):
                new = (bins[at] + turn) % hosts.size
                if not mine & present[new] and may_stand(places, in_rack, item, hosts[new], -1, -1):
                    break
            else:
                return False
            bins[at] = new
            present[new] |= mine
            move_racks(places, in_rack, item, -1, hosts[new])
        return True

    def _sets(self, item: int) -> set[int]:
        return {int(number) for number in self.tables.groups[item] if number >= 0}
