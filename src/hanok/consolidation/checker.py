"""The independent checker of answers: it looks at the assignment alone.

Written apart from the search and sharing none of its code: it imports the models and numpy, adds up
anew in whole numbers, and reports all that is wrong instead of stopping at the first. It judges
plans made by hand just as well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hanok.consolidation.request import MEMORY, Host, Plan, PlanRequest, Rules, Server


@dataclass(frozen=True)
class Fault:
    """One thing that an answer does wrong: the ``rule`` it breaks, ``where``, and ``what``."""

    rule: str
    where: str
    what: str


def check_packing(
    sizes: Sequence[Sequence[int]], capacity: Sequence[int], bins: Sequence[int]
) -> tuple[Fault, ...]:
    """Return what is wrong with a packing: ``bins`` holds the bin of each item of ``sizes``."""
    if len(bins) != len(sizes):
        return (Fault("complete", "items", f"{len(bins)} of {len(sizes)} items have a bin"),)
    contents: dict[int, list[int]] = defaultdict(list)
    for item, bin_ in enumerate(bins):
        contents[bin_].append(item)
    faults = [
        Fault("complete", f"item {item}", f"is in bin {bin_}, which does not exist")
        for item, bin_ in enumerate(bins)
        if bin_ < 0
    ]
    for bin_, items in sorted(contents.items()):
        for dimension, most in enumerate(capacity):
            total = sum(int(sizes[item][dimension]) for item in items)
            if total > most:
                what = f"dimension {dimension} holds {total}, {most} is its capacity"
                faults.append(Fault("capacity", f"bin {bin_}", what))
    return tuple(faults)


def check_plan(request: PlanRequest, plan: Plan) -> tuple[Fault, ...]:
    """Return every rule of ``request`` that ``plan`` breaks, with the host or server."""
    hosts = {host.name: host for host in (*request.hosts, *plan.hosts, *plan.spares)}
    faults = [*_check_complete(request, plan, hosts), *_check_hosts(request, plan)]
    on: dict[str, list[Server]] = defaultdict(list)
    for server in request.servers:
        if plan.placement.get(server.name) in hosts:
            on[plan.placement[server.name]].append(server)
    for name, servers in sorted(on.items()):
        faults.extend(_check_host(request, hosts[name], servers))
    faults.extend(_check_places(request.rules, plan, hosts))
    faults.extend(_check_failures(request.rules, plan))
    return tuple(faults)


def _check_complete(request: PlanRequest, plan: Plan, hosts: Mapping[str, Host]) -> Iterator[Fault]:
    names = {server.name for server in request.servers}
    for name in sorted(names - plan.placement.keys()):
        yield Fault("complete", name, "has no host")
    for name in sorted(plan.placement.keys() - names):
        yield Fault("complete", name, "is no server that was asked for")
    used = {host.name for host in plan.hosts}
    for name, host in sorted(plan.placement.items()):
        if host not in hosts:
            yield Fault("complete", name, f"is on {host}, which does not exist")
        elif host not in used:
            yield Fault("complete", name, f"is on {host}, which is not among the hosts in use")


def _check_hosts(request: PlanRequest, plan: Plan) -> Iterator[Fault]:
    at_hand = {host.name: host for host in request.hosts}
    seen: set[str] = set()
    for host in (*plan.hosts, *plan.spares):
        if host.name in seen:
            yield Fault("hosts", host.name, "is there twice")
        seen.add(host.name)
        is_offered = host.kind in (request.offer, *request.others)
        if at_hand.get(host.name, host) != host or not (host.name in at_hand or is_offered):
            yield Fault("hosts", host.name, "is neither at hand nor offered")


def _check_host(request: PlanRequest, host: Host, servers: Sequence[Server]) -> Iterator[Fault]:
    rules, kind, amount = request.rules, host.kind, request.amount
    if kind.most_vms is not None and len(servers) > kind.most_vms:
        yield Fault("most_vms", host.name, f"{len(servers)} VMs, at most {kind.most_vms}")
    for resource, whole in sorted(kind.capacity.items()):
        free = whole - kind.overhead.get(resource, 0.0)
        if resource == MEMORY:
            free *= rules.memory_factor
        own = kind.overhead_vm.get(resource, 0.0) * len(servers)
        series = [s.load[resource] for s in servers if resource in s.load]
        if series:
            load = np.sum([np.asarray(one, np.float64) for one in series], axis=0) + own
            free *= 1.0 - rules.headroom.reserve
            over = int((load > max(free, 0.0) * (1 + TOLERANCE)).sum())
            may = int(load.size * (100.0 - rules.headroom.percentile) / 100.0 + 1e-9)
            if over > may:
                what = (
                    f"{resource} over {amount(resource, free)} in {over} of {load.size} "
                    f"intervals, may in {may}; at most {amount(resource, float(load.max()))}"
                )
                yield Fault("headroom", host.name, what)
        else:
            size = sum(server.size.get(resource, 0.0) for server in servers) + own
            if size > max(free, 0.0) * (1 + TOLERANCE):
                yield Fault(
                    "capacity",
                    host.name,
                    f"{resource}: {amount(resource, size)} of {amount(resource, free)}",
                )


def _check_places(rules: Rules, plan: Plan, hosts: Mapping[str, Host]) -> Iterator[Fault]:
    place = plan.placement
    for number, names in enumerate(rules.together):
        if len({place.get(name) for name in names}) > 1:
            yield Fault("together", f"rules.together.{number}", "is on several hosts")
    for number, names in enumerate(rules.apart):
        if len({place.get(name) for name in names}) < len(names):
            yield Fault("apart", f"rules.apart.{number}", "has two servers on one host")
    for number, rule in enumerate(rules.spread):
        racks = Counter(
            hosts[place[name]].rack for name in rule.servers if place.get(name) in hosts
        )
        for rack, count in sorted(racks.items()):
            if count > rule.most:
                what = f"{count} servers in rack {rack or 'without name'}, at most {rule.most}"
                yield Fault("spread", f"rules.spread.{number}", what)
    for name, allowed in sorted(rules.pins.items()):
        if place.get(name) not in allowed:
            where = place.get(name, "no host")
            yield Fault("pins", name, f"is on {where}, not where it is pinned to")


def _check_failures(rules: Rules, plan: Plan) -> Iterator[Fault]:
    if len(plan.spares) < rules.failures:
        what = f"{len(plan.spares)} spare hosts for {rules.failures} failures"
        yield Fault("failures", "plan", what)
    for spare in plan.spares:
        if spare.name in plan.placement.values():
            yield Fault("failures", spare.name, "is a spare and has VMs")
        for host in plan.hosts:
            if not _takes_all_of(spare, host):
                yield Fault("failures", spare.name, f"cannot take all VMs of {host.name}")


def _takes_all_of(spare: Host, host: Host) -> bool:
    most, needed = spare.kind.most_vms, host.kind.most_vms
    if most is not None and (needed is None or most < needed):
        return False
    return all(
        resource in host.kind.capacity
        and _net(spare, resource) >= _net(host, resource)
        and spare.kind.overhead_vm.get(resource, 0.0) <= host.kind.overhead_vm.get(resource, 0.0)
        for resource in spare.kind.capacity
    )


def _net(host: Host, resource: str) -> float:
    return host.kind.capacity[resource] - host.kind.overhead.get(resource, 0.0)


TOLERANCE = 1e-9
"""Sums of floating-point numbers differ by their order; anything above is a fault."""
