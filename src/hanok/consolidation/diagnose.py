"""Why no plan is possible: the causes, each with nothing in it that could be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hanok.consolidation.request import (
    Headroom,
    Host,
    HostKind,
    PlanRequest,
    Series,
    Server,
    room,
)
from hanok.consolidation.tables import check_series, merge


@dataclass(frozen=True)
class Cause:
    """What cannot hold: the first ``field`` at fault, the reason, and all its parts."""

    field: str
    text: str
    parts: tuple[str, ...]


def smallest(parts: Sequence[str], is_impossible: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return ``parts`` without those that the impossibility does not need.

    Taking any one of the answer away makes it possible (a deletion filter: Chinneck and Dravnieks,
    ORSA Journal on Computing 3, 1991).
    """
    kept = list(parts)
    for part in parts:
        rest = [one for one in kept if one != part]
        if is_impossible(rest):
            kept = rest
    return kept


def find_causes(request: PlanRequest) -> tuple[Cause, ...]:
    """Return what makes ``request`` impossible, or nothing when no cause is known.

    What is found without a search: unknown names, servers that no host takes, rules that contradict
    each other, and too few hosts in sum. Raises InvalidInput for series of unlike length.
    """
    check_series(request.servers)
    for check in (_names, _hosts, _together_apart, _pins, _too_large, _spread, _sums):
        causes = tuple(check(request))
        if causes:
            return causes
    return ()


def _names(request: PlanRequest) -> Iterable[Cause]:
    known = {server.name for server in request.servers}
    if len(known) != len(request.servers):
        counts = Counter(server.name for server in request.servers)
        twice = min(name for name, count in counts.items() if count > 1)
        yield Cause(f"servers.{twice}", f"{twice} is there twice", (twice,))
    rules = request.rules
    named: list[tuple[str, frozenset[str]]] = [
        *((f"rules.together.{n}", names) for n, names in enumerate(rules.together)),
        *((f"rules.apart.{n}", names) for n, names in enumerate(rules.apart)),
        *((f"rules.spread.{n}", rule.servers) for n, rule in enumerate(rules.spread)),
        *((f"rules.pins.{name}", frozenset([name])) for name in rules.pins),
    ]
    for field, names in named:
        for name in sorted(names - known):
            yield Cause(field, f"{field} names {name}, which is no server", (field,))


def _hosts(request: PlanRequest) -> Iterable[Cause]:
    if request.offer is None and request.servers and len(request.hosts) <= request.rules.failures:
        text = f"{len(request.hosts)} hosts, {request.rules.failures} of them kept for failures"
        yield Cause("hosts", text, ("hosts", "rules.failures"))


def _kinds(request: PlanRequest) -> list[HostKind]:
    kinds = {host.kind.name: host.kind for host in request.hosts}
    if request.offer is not None:
        kinds[request.offer.name] = request.offer
    return list(kinds.values())


def _together_apart(request: PlanRequest) -> Iterable[Cause]:
    rules = request.rules
    together = [f"rules.together.{n}" for n in range(len(rules.together))]
    for number, apart in enumerate(rules.apart):
        for one, other in combinations(sorted(apart), 2):

            def joined(parts: Sequence[str], pair: tuple[str, str] = (one, other)) -> bool:
                sets = [rules.together[int(part.rsplit(".", 1)[1])] for part in parts]
                return _linked(pair, sets)

            if joined(together):
                parts = [*smallest(together, joined), f"rules.apart.{number}"]
                text = f"{one} and {other} are to share a host and to be apart"
                yield Cause(parts[-1], f"{text} ({', '.join(parts)})", tuple(parts))
                return


def _linked(pair: tuple[str, str], sets: Sequence[frozenset[str]]) -> bool:
    reached = {pair[0]}
    grew = True
    while grew:
        more = {name for names in sets if names & reached for name in names}
        grew = not more <= reached
        reached |= more
    return pair[1] in reached


def _items(request: PlanRequest) -> list[list[Server]]:
    members = merge(request.servers, request.rules.together)
    return [[request.servers[index] for index in one] for one in members]


def _pins(request: PlanRequest) -> Iterable[Cause]:
    pins = request.rules.pins
    if not pins:
        return
    known = {host.name for host in request.hosts}
    for item in _items(request):
        pinned = [server.name for server in item if server.name in pins]

        def disjoint(names: Sequence[str]) -> bool:
            allowed = set(known)
            for name in names:
                allowed &= pins[name]
            return not allowed

        if pinned and request.offer is None and disjoint(pinned):
            parts = [f"rules.pins.{name}" for name in smallest(pinned, disjoint)]
            who = ", ".join(server.name for server in item)
            yield Cause(parts[0], f"no host at hand is one that {who} may be on", tuple(parts))


def _too_large(request: PlanRequest) -> Iterable[Cause]:
    for item in _items(request):
        servers = {server.name: server for server in item}
        kinds = _kinds_for(request, list(servers))

        def impossible(
            names: Sequence[str],
            servers: dict[str, Server] = servers,
            kinds: list[HostKind] = kinds,
        ) -> bool:
            some = [servers[name] for name in names]
            return all(_lacks(request, some, kind) for kind in kinds)

        if impossible(list(servers)):
            names = smallest(list(servers), impossible)
            if not names:
                continue
            some = [servers[name] for name in names]
            reasons = [f"{kind.name}: {_lacks(request, some, kind)}" for kind in kinds]
            who = " with ".join(names)
            text = f"{who} fits on no host it may be on ({'; '.join(reasons) or 'there are none'})"
            yield Cause(f"servers.{names[0]}", text, tuple(f"servers.{name}" for name in names))


def _kinds_for(request: PlanRequest, names: Sequence[str]) -> list[HostKind]:
    pins = [request.rules.pins[name] for name in names if name in request.rules.pins]
    if not pins:
        return _kinds(request)
    at_hand = {h.kind.name: h.kind for h in request.hosts if all(h.name in pin for pin in pins)}
    if request.offer is not None:
        start = f"{request.offer.name}-"
        if all(any(name.startswith(start) for name in pin) for pin in pins):
            at_hand[request.offer.name] = request.offer
    return list(at_hand.values())


def _lacks(request: PlanRequest, servers: Sequence[Server], kind: HostKind) -> str:
    """Return what a host of ``kind`` lacks for all of ``servers``, nothing when it has all."""
    if kind.most_vms is not None and len(servers) > kind.most_vms:
        return f"{len(servers)} VMs, at most {kind.most_vms}"
    headroom = request.rules.headroom
    for resource in sorted(kind.capacity):
        free = room(kind, request.rules, resource)
        extra = kind.overhead_vm.get(resource, 0.0) * len(servers)
        loads = [s.load[resource] for s in servers if resource in s.load]
        if loads:
            free *= 1.0 - headroom.reserve
            needed = _needed(loads, headroom) + extra
        else:
            needed = sum(server.size.get(resource, 0.0) for server in servers) + extra
        if needed > free * (1 + 1e-9):
            return (
                f"{resource} {request.amount(resource, needed)} needed, "
                f"{request.amount(resource, free)} free"
            )
    return ""


def _needed(loads: Sequence[Series], headroom: Headroom) -> float:
    """Return the load that is over the percentile in no more intervals than may be."""
    series = loads[0] if len(loads) == 1 else np.sum(loads, axis=0, dtype=np.float64)
    skip = headroom.exceptions(series.size)
    return float(series.max() if not skip else np.sort(series)[series.size - 1 - skip])


def _spread(request: PlanRequest) -> Iterable[Cause]:
    if request.offer is not None:
        return  # more racks can be bought
    racks = {host.rack for host in request.hosts}
    for number, rule in enumerate(request.rules.spread):
        if len(rule.servers) > rule.most * len(racks):
            text = (
                f"{len(rule.servers)} servers, at most {rule.most} a rack, need more than the "
                f"{len(racks)} racks there are"
            )
            field = f"rules.spread.{number}"
            yield Cause(field, text, (field, "hosts"))
    free = len(request.hosts) - request.rules.failures
    for number, names in enumerate(request.rules.apart):
        if len(names) > free:
            field = f"rules.apart.{number}"
            text = f"{len(names)} servers that share no host need more than {free} hosts"
            yield Cause(field, text, (field, "hosts"))


def _sums(request: PlanRequest) -> Iterable[Cause]:
    if request.offer is not None:
        return
    hosts: Sequence[Host] = request.hosts
    headroom = request.rules.headroom
    for resource in sorted({name for kind in _kinds(request) for name in kind.capacity}):
        if any(resource not in host.kind.capacity for host in hosts):
            continue
        rooms = sorted(room(host.kind, request.rules, resource) for host in hosts)
        free = sum(rooms[request.rules.failures :])
        loads = [s.load[resource] for s in request.servers if resource in s.load]
        needed = sum(server.size.get(resource, 0.0) for server in request.servers)
        if loads and headroom.percentile >= 100.0:
            free *= 1.0 - headroom.reserve
            needed = float(np.sum(loads, axis=0, dtype=np.float64).max())
        elif loads:
            continue
        if needed > free * (1 + 1e-9):
            text = (
                f"all servers need {request.amount(resource, needed)} of {resource}, "
                f"the hosts have {request.amount(resource, free)}"
            )
            yield Cause("hosts", text, ("hosts",))
