"""What if: a plan again with more load, a host more or less, other headroom, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hanok.consolidation.fleet import Fleet, make_server
from hanok.consolidation.offers import Choice, Effort, Judge, choose, names_by_host
from hanok.consolidation.planner import Impossible
from hanok.consolidation.request import Headroom, Host, HostKind, Plan
from hanok.consolidation.sizing import Sizing
from hanok.errors import InvalidInput
from hanok.model.plan import Objective

CHANGES = "load=1.5, memory=1.2, hosts=+1, hosts=-1, headroom=99:0.2, failures=1, without=HOST"
ROUNDS = 5
MOST_RESERVE = 0.9


@dataclass(frozen=True)
class Case:
    """One change: its ``text`` (``load=1.5``), what is changed, and to what."""

    text: str
    change: str
    value: str


@dataclass(frozen=True, eq=False)
class Tried:
    """What came of a case: the fleet as it was changed, and its plan or why there is none.

    ``note`` says what more was found, such as the headroom that is left.
    """

    case: Case
    fleet: Fleet
    choice: Choice | None
    note: str = ""


def parse_case(text: str) -> Case:
    """Return the case that ``text`` says. Raises InvalidInput with the ones that there are."""
    change, found, value = text.partition("=")
    case = Case(text, change, value)
    try:
        if not found:
            raise ValueError
        if change in ("load", "memory") and not 0 < float(value) <= 100:
            raise ValueError
        if change == "hosts" and int(value) == 0:
            raise ValueError
        if change == "failures" and int(value) < 0:
            raise ValueError
        if change == "headroom":
            _headroom(value)
        if change not in ("load", "memory", "hosts", "headroom", "failures", "without"):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"{text!r} is no case", field="--case", expected=f"one such as {CHANGES}"
        ) from None
    return case


def _headroom(value: str) -> Headroom:
    percentile, _, reserve = value.rpartition(":")
    found = Headroom(float(percentile or 100), float(reserve))
    if not (0 < found.percentile <= 100 and 0 <= found.reserve < 1):
        raise ValueError
    return found


def try_case(
    case: Case, fleet: Fleet, base: Plan, effort: Effort, objective: Objective, seed: int
) -> Tried:
    """Return what came of ``case``, changed from ``fleet`` and its plan ``base``.

    Raises InvalidInput for a host that is not there.
    """
    if case.change == "hosts":
        return _other_hosts(case, fleet, base, effort, objective, seed)
    changed = _CHANGES[case.change](fleet, case.value)
    known = (base,) if case.change == "headroom" and _looser(fleet, changed) else ()
    try:
        return Tried(case, changed, solve(changed, effort, objective, seed, known))
    except Impossible as error:
        return Tried(case, changed, None, "; ".join(cause.text for cause in error.causes))


def solve(
    fleet: Fleet,
    effort: Effort,
    objective: Objective,
    seed: int = 0,
    known: Sequence[Plan] = (),
    show: Callable[[Plan], None] = lambda plan: None,
) -> Choice:
    """Return the best plan of ``fleet``. Raises Impossible, InvalidInput."""
    judge = Judge(fleet.request, fleet.hosts.costs, objective)
    return choose(fleet.request, fleet.offers, judge, effort, seed=seed, known=known, show=show)


def _looser(before: Fleet, after: Fleet) -> bool:
    """Return whether all that kept the old headroom keeps the new one."""
    old, new = before.request.rules.headroom, after.request.rules.headroom
    return new.percentile <= old.percentile and new.reserve <= old.reserve


def _load(fleet: Fleet, value: str) -> Fleet:
    factor = float(value)
    loads = {name: load * np.float32(factor) for name, load in fleet.loads.items()}
    traffic = {
        name: {resource: load * np.float32(factor) for resource, load in one.items()}
        for name, one in fleet.traffic.items()
    }
    sizings = {
        name: replace(sizing, vcpus=max(1, math.ceil(sizing.vcpus * factor)))
        for name, sizing in fleet.sizings.items()
    }
    return _with_servers(replace(fleet, loads=loads, traffic=traffic), sizings)


def _memory(fleet: Fleet, value: str) -> Fleet:
    factor = float(value)
    sizings = {
        name: replace(sizing, memory=math.ceil(sizing.memory * factor))
        for name, sizing in fleet.sizings.items()
    }
    return _with_servers(fleet, sizings)


def _with_servers(fleet: Fleet, sizings: dict[str, Sizing]) -> Fleet:
    servers = tuple(
        make_server(
            server.name,
            {"cpu": fleet.loads[server.name], **fleet.traffic.get(server.name, {})},
            sizings[server.name],
        )
        for server in fleet.request.servers
    )
    return replace(fleet, sizings=sizings, request=replace(fleet.request, servers=servers))


def _new_headroom(fleet: Fleet, value: str) -> Fleet:
    return with_headroom(fleet, _headroom(value))


def with_headroom(fleet: Fleet, headroom: Headroom) -> Fleet:
    """Return ``fleet`` under another headroom."""
    rule = fleet.servers.rules.headroom.model_copy(
        update={"percentile": headroom.percentile, "reserve": headroom.reserve}
    )
    rules = fleet.servers.rules.model_copy(update={"headroom": rule})
    servers = fleet.servers.model_copy(update={"rules": rules})
    asked = replace(fleet.request, rules=replace(fleet.request.rules, headroom=headroom))
    return replace(fleet, servers=servers, request=asked)


def _failures(fleet: Fleet, value: str) -> Fleet:
    rules = replace(fleet.request.rules, failures=int(value))
    return replace(fleet, request=replace(fleet.request, rules=rules))


def _without(fleet: Fleet, value: str) -> Fleet:
    hosts = tuple(host for host in fleet.request.hosts if host.name != value)
    if len(hosts) == len(fleet.request.hosts):
        raise InvalidInput(
            f"there is no host at hand called {value!r}",
            field="--case",
            expected=", ".join(host.name for host in fleet.request.hosts[:20]) or "no 'without'",
        )
    return replace(fleet, request=replace(fleet.request, hosts=hosts))


_CHANGES: dict[str, Callable[[Fleet, str], Fleet]] = {
    "load": _load,
    "memory": _memory,
    "headroom": _new_headroom,
    "failures": _failures,
    "without": _without,
}


def _other_hosts(
    case: Case, fleet: Fleet, base: Plan, effort: Effort, objective: Objective, seed: int
) -> Tried:
    """Try the hosts of ``base`` and some more or less, and nothing else.

    With more, the most headroom is looked for that they allow: the load is spread. With less than
    suffice, the headroom is what gives way.
    """
    number = int(case.value)
    hosts = _more(fleet, base, number) if number > 0 else _less(fleet, base, -number)
    rule = fleet.request.rules.headroom
    fixed = replace(fleet, request=replace(fleet.request, hosts=(*hosts, *base.spares)), offers=())
    part = replace(effort, steps=max(1, effort.steps // (ROUNDS + 1)))
    known = (base,) if number > 0 else ()
    low, high = (rule.reserve, MOST_RESERVE) if number > 0 else (0.0, rule.reserve)
    try:
        best = (fixed, solve(fixed, part, objective, seed, known))
        if number < 0:
            return Tried(case, *best)
    except Impossible as error:
        if number > 0:
            raise
        why = "; ".join(cause.text for cause in error.causes)
        best = None
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        changed = with_headroom(fixed, Headroom(rule.percentile, middle))
        try:
            best, low = (changed, solve(changed, part, objective, seed)), middle
        except Impossible:
            high = middle
    if best is None:
        return Tried(case, fixed, None, why)
    reserve = best[0].request.rules.headroom.reserve
    return Tried(case, *best, note=f"with {reserve:.0%} of CPU free instead of {rule.reserve:.0%}")


def _more(fleet: Fleet, base: Plan, number: int) -> tuple[Host, ...]:
    kind = _usual(fleet, base)
    return (*base.hosts, *(Host(f"more-{n + 1}", kind, "more") for n in range(number)))


def _usual(fleet: Fleet, base: Plan) -> HostKind:
    """Return the kind of host that is bought, or at hand where none is."""
    at_hand = {host.name for host in fleet.request.hosts}
    new = [host.kind for host in base.hosts if host.name not in at_hand]
    return (new or [host.kind for host in base.hosts])[-1]


def _less(fleet: Fleet, base: Plan, number: int) -> tuple[Host, ...]:
    """Return the hosts without those that hold least VMs; those that VMs are pinned to go last."""
    names = names_by_host(base.placement)
    pinned = {name for pin in fleet.request.rules.pins.values() for name in pin}
    order = sorted(base.hosts, key=lambda one: (one.name in pinned, len(names[one.name])))
    gone = {host.name for host in order[:number]}
    return tuple(host for host in base.hosts if host.name not in gone)
