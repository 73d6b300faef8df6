"""Which hosts to buy: every kind on offer is tried, the best is searched longer, then mixed.

What is best is the caller's: fewest hosts, least money over the years, or fewest watts. A first,
short search of each kind decides which one gets the rest of the effort. In the answer each bought
host becomes of the cheapest kind that takes its VMs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hanok.consolidation.checker import check_plan
from hanok.consolidation.energy import HOURS
from hanok.consolidation.meter import Meter
from hanok.consolidation.planner import Impossible, plan
from hanok.consolidation.request import (
    RACK_UNITS,
    Host,
    HostKind,
    Plan,
    PlanRequest,
    Rules,
    Server,
    watts_at,
)
from hanok.consolidation.series_bound import hosts_bound
from hanok.consolidation.tables import make_tables
from hanok.consolidation.vectors import Bound, Floats
from hanok.model.fleet import Costs
from hanok.model.plan import Objective

FIRST_SHARE = 0.1
"""Of the effort, for a first look at all kinds together."""
Show = Callable[[Plan], None]
Key = tuple[float, ...]


@dataclass(frozen=True)
class Effort:
    """What a search may take: moves, seconds of ``clock``, until ``stop``; ``spent`` is told."""

    steps: int
    seconds: float | None = None
    clock: Callable[[], float] = lambda: 0.0
    stop: Callable[[], bool] = lambda: False
    spent: Callable[[int], None] = lambda steps: None

    def part(self, share: float) -> Meter:
        """Return a meter for a ``share`` of it."""
        seconds = None if self.seconds is None else self.seconds * share
        meter = _Heard(
            steps=max(1, int(self.steps * share)),
            seconds=seconds,
            clock=self.clock,
            stop=self.stop,
        )
        meter.listener = self.spent
        return meter


class _Heard(Meter):
    """A meter whose count somebody hears."""

    listener: Callable[[int], None]

    def spend(self, steps: int) -> None:
        """See Meter.spend."""
        super().spend(steps)
        self.listener(steps)


@dataclass(frozen=True, eq=False)
class Choice:
    """A plan, what was asked of the checker for it, and the moves tried in all."""

    plan: Plan
    request: PlanRequest
    steps: int


class Judge:
    """Compares plans by an objective. ``money`` is a year's: purchase by years, energy, racks."""

    def __init__(self, request: PlanRequest, costs: Costs, objective: Objective) -> None:
        self._loads = {server.name: server.load.get("cpu") for server in request.servers}
        self._at_hand = {host.name for host in request.hosts}
        self._costs = costs
        self._objective = objective

    def key(self, answer: Plan) -> Key:
        """Return what is smaller for a better plan."""
        names = names_by_host(answer.placement)
        hosts = [*answer.hosts, *answer.spares]
        watts = sum(self.watts(host, names.get(host.name, ())) for host in hosts)
        money = sum(self.money(host, names.get(host.name, ())) for host in hosts)
        return self._order(len(hosts), money, watts)

    def host_key(self, host: Host, names: Iterable[str]) -> Key:
        """Return the same of one host with these VMs."""
        names = tuple(names)
        return self._order(1, self.money(host, names), self.watts(host, names))

    def _order(self, hosts: int, money: float, watts: float) -> Key:
        orders: dict[str, Key] = {
            "hosts": (hosts, money, watts),
            "money": (money, hosts, watts),
            "watts": (watts, hosts, money),
        }
        return tuple(round(value, 6) for value in orders[self._objective])

    def watts(self, host: Host, names: Iterable[str]) -> float:
        """Return the mean watts of ``host`` with these VMs."""
        kind = host.kind
        loads = [load for name in names if (load := self._loads[name]) is not None]
        total = np.zeros(1) if not loads else np.array(loads).sum(axis=0, dtype=np.float64)
        whole = kind.capacity.get("cpu", 0.0)
        if not kind.watts or not whole:
            return 0.0
        share: Floats = (total + kind.overhead.get("cpu", 0.0)) / whole
        return float(watts_at(kind, share).mean())

    def money(self, host: Host, names: Iterable[str]) -> float:
        """Return what ``host`` costs a year."""
        costs = self._costs
        price = 0.0 if host.name in self._at_hand else host.kind.price
        energy = self.watts(host, names) * HOURS / 1_000 * costs.pue * costs.kwh
        return price / costs.years + energy + host.kind.rack_units * costs.rack_unit_year


def names_by_host(placement: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the VMs on each host."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, host in placement.items():
        found[host].append(name)
    return found


def choose(
    request: PlanRequest,
    offers: Sequence[HostKind],
    judge: Judge,
    effort: Effort,
    *,
    seed: int = 0,
    known: Iterable[Plan] = (),
    show: Show = lambda plan: None,
) -> Choice:
    """Return the best plan on ``request.hosts`` and hosts bought of any of ``offers``.

    ``known`` are plans of the same request that are candidates as well. Raises Impossible, for the
    largest kind, when no kind gives a plan; InvalidInput as ``planner.plan`` does.
    """
    asked = replace(request, offer=None, others=tuple(offers))
    shown = _Shown(asked, tuple(offers), judge, show)
    known = tuple(known)
    if len(offers) <= 1:
        one = replace(asked, offer=offers[0] if offers else None)
        meter = effort.part(1.0)
        found = plan(one, meter, seed=seed, known=known, show=shown.better)
        return _finish(one, offers, judge, [found, *known], meter.spent)
    first = FIRST_SHARE / len(offers)
    tried: list[tuple[Key, HostKind, Plan]] = []
    refused: list[tuple[float, Impossible]] = []
    spent = 0
    for kind in offers:
        meter = effort.part(first)
        try:
            found = plan(replace(asked, offer=kind), meter, seed=seed, show=shown.better)
            tried.append((judge.key(mixed(asked, offers, judge, found)), kind, found))
        except Impossible as error:
            refused.append((sum(kind.capacity.values()), error))
        spent += meter.spent
    if not tried and not known:
        raise max(refused, key=lambda one: one[0])[1]
    candidates = [*known, *(found for _, _, found in tried)]
    if tried:
        _, kind, start = min(tried, key=lambda one: one[0])
        meter = effort.part(1.0 - FIRST_SHARE)
        longer = replace(asked, offer=kind)
        candidates.append(plan(longer, meter, seed=seed, known=[start], show=shown.better))
        spent += meter.spent
    return _finish(asked, offers, judge, candidates, spent)


class _Shown:
    """Shows plans only when they are better than all before, with the bound over all offers."""

    def __init__(
        self, request: PlanRequest, offers: tuple[HostKind, ...], judge: Judge, show: Show
    ) -> None:
        self._request = request
        self._offers = offers
        self._judge = judge
        self._show = show
        self._best: Key | None = None
        self._bound: Bound | None = None

    def better(self, answer: Plan) -> None:
        """Show ``answer`` if it is better."""
        key = self._judge.key(answer)
        if self._best is not None and key >= self._best:
            return
        self._best = key
        if len(self._offers) > 1 and self._bound is None:
            # It holds for plans of more hosts too: they have more than it says.
            self._bound = bound_of_all(self._request, self._offers, len(answer.hosts))
        self._show(replace(answer, bound=self._bound or answer.bound))


def _finish(
    request: PlanRequest,
    offers: Sequence[HostKind],
    judge: Judge,
    candidates: Sequence[Plan],
    spent: int,
) -> Choice:
    best = min((mixed(request, offers, judge, one) for one in candidates), key=judge.key)
    best = numbered(request, offers, best)
    if len(offers) > 1:
        best = replace(best, bound=bound_of_all(request, offers, len(best.hosts)))
    return Choice(replace(best, steps=spent), request, spent)


def bound_of_all(request: PlanRequest, offers: Sequence[HostKind], count: int) -> Bound:
    """Return how many hosts any plan uses, of whatever kinds; ``count`` is that of a known plan.

    A plan with fewer hosts has fewer of each kind, so that ``count`` of each are enough to look at.
    """
    stock = [Host(f"{kind.name}-{n + 1}", kind) for kind in offers for n in range(count)]
    hosts = [*request.hosts, *stock]
    found = hosts_bound(make_tables(request, hosts, lenient=True))
    return found if found.bins <= count else replace(found, bins=count)


def mixed(request: PlanRequest, offers: Sequence[HostKind], judge: Judge, answer: Plan) -> Plan:
    """Return ``answer`` with each bought host of the best kind that takes its VMs.

    Names of hosts that rules pin servers to stay. The answer keeps every rule, or is the old one.
    """
    at_hand = {host.name for host in request.hosts}
    pinned = {name for pin in request.rules.pins.values() for name in pin}
    servers = {server.name: server for server in request.servers}
    names = names_by_host(answer.placement)
    hosts = []
    for host in answer.hosts:
        if host.name in at_hand or host.name in pinned:
            hosts.append(host)
            continue
        on = [servers[name] for name in names[host.name]]
        kinds = [
            kind
            for kind in offers
            if kind is not host.kind
            and kind.rack_units <= host.kind.rack_units
            and _takes(request, kind, on)
        ]
        options = [host, *(replace(host, kind=kind) for kind in kinds)]
        hosts.append(min(options, key=lambda one: judge.host_key(one, names[one.name])))
    other = replace(answer, hosts=tuple(hosts))
    if judge.key(other) >= judge.key(answer):
        return answer
    checked = replace(request, offer=None, others=tuple(offers))
    return answer if check_plan(checked, other) else other


def _takes(request: PlanRequest, kind: HostKind, servers: Sequence[Server]) -> bool:
    """Return whether a host of ``kind`` takes all of ``servers``."""
    host = Host("one", kind)
    rules = Rules(request.rules.headroom, memory_factor=request.rules.memory_factor)
    asked = PlanRequest(tuple(servers), (host,), rules=rules)
    placement = {server.name: host.name for server in servers}
    return not check_plan(asked, Plan(placement, (host,), (), Bound(0, ""), 0))


def numbered(request: PlanRequest, offers: Sequence[HostKind], answer: Plan) -> Plan:
    """Return ``answer`` with bought hosts called KIND-1, KIND-2, ..., racks filled in that order.

    Where servers are pinned to bought hosts nothing is renamed; under rules of racks, hosts stay
    in theirs.
    """
    at_hand = {host.name for host in request.hosts}
    pinned = {name for pin in request.rules.pins.values() for name in pin}
    if pinned - at_hand:
        return answer
    counts: dict[str, int] = defaultdict(int)
    units = 0
    renamed: dict[str, Host] = {}
    order = [kind.name for kind in offers]
    bought_ones = [h for h in (*answer.hosts, *answer.spares) if h.name not in at_hand]
    for host in sorted(bought_ones, key=lambda one: order.index(one.kind.name)):
        counts[host.kind.name] += 1
        height = host.kind.rack_units
        if units % RACK_UNITS + height > RACK_UNITS:
            units += RACK_UNITS - units % RACK_UNITS
        rack = host.rack if request.rules.spread else f"new-{units // RACK_UNITS + 1}"
        units += height
        renamed[host.name] = Host(f"{host.kind.name}-{counts[host.kind.name]}", host.kind, rack)

    def new(host: Host) -> Host:
        return renamed.get(host.name, host)

    placement = {
        name: renamed[host].name if host in renamed else host
        for name, host in answer.placement.items()
    }
    return replace(
        answer,
        placement=placement,
        hosts=tuple(new(host) for host in answer.hosts),
        spares=tuple(new(host) for host in answer.spares),
    )
