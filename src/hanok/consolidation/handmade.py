"""Plans as files say them, made by ``hanok plan`` or by a person, for the checker.

Nothing of the search is used: a plan is judged by what it says and by the inputs alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from hanok.consolidation.checker import Fault, check_plan
from hanok.consolidation.fleet import Fleet, make_kind, make_server
from hanok.consolidation.request import Host, HostKind, Plan, PlanRequest, Server
from hanok.consolidation.sizing import Sizing
from hanok.consolidation.vectors import Bound
from hanok.errors import InvalidInput
from hanok.model.plan import HandMade, HandVm, PlanFile
from hanok.model.validation import did_you_mean
from hanok.units import format_size


def check_file(fleet: Fleet, content: PlanFile | HandMade) -> tuple[Fault, ...]:
    """Return all that is wrong with the plan in ``content``. Raises InvalidInput for bad names."""
    hand = by_hand(content) if isinstance(content, PlanFile) else content
    request, answer = plan_of(fleet, hand)
    faults = [*check_plan(request, answer), *_check_sizes(fleet, hand)]
    if isinstance(content, PlanFile):
        faults.extend(_check_claims(content, answer))
    return tuple(faults)


def by_hand(file: PlanFile) -> HandMade:
    """Return what plan.json assigns, as a person would write it."""
    assignment = {
        vm.name: {"host": vm.host, "vcpus": vm.vcpus, "memory": vm.memory} for vm in file.vms
    }
    buy = {host.name: {"kind": host.kind, "rack": host.rack} for host in file.hosts if host.bought}
    spares = [host.name for host in file.hosts if host.spare]
    return HandMade.model_validate({"assignment": assignment, "buy": buy, "spares": spares})


def plan_of(fleet: Fleet, hand: HandMade) -> tuple[PlanRequest, Plan]:
    """Return the request and the plan that ``hand`` stands for."""
    hosts = {host.name: host for host in fleet.request.hosts}
    kinds = {kind.name: kind for kind in fleet.offers}
    for name, entry in hand.buy.items():
        hosts.setdefault(name, Host(name, _kind(fleet, kinds, name, entry.kind), entry.rack))
    placement = {name: vm.host for name, vm in hand.assignment.items()}
    for name, vm in hand.assignment.items():
        if vm.host not in hosts:
            raise _no_host(f"assignment.{name}.host", vm.host, hosts)
    for number, name in enumerate(hand.spares):
        if name not in hosts:
            raise _no_host(f"spares.{number}", name, hosts)
    spares = tuple(hosts[name] for name in hand.spares)
    used = tuple(hosts[name] for name in dict.fromkeys(placement.values()))
    servers = tuple(_sized(fleet, server, hand.assignment) for server in fleet.request.servers)
    request = replace(fleet.request, servers=servers, others=fleet.offers)
    return request, Plan(placement, used, spares, Bound(0, "made by hand"), 0)


def _no_host(field: str, name: str, hosts: Mapping[str, Host]) -> InvalidInput:
    return InvalidInput(
        f"there is no host {name!r}",
        field=field,
        expected="a host at hand, or one that is named under buy",
        hint=did_you_mean(name, hosts),
    )


def _kind(fleet: Fleet, kinds: dict[str, HostKind], host: str, name: str) -> HostKind:
    if name not in kinds:
        if name not in fleet.hosts.kinds:
            raise InvalidInput(
                f"there is no kind of host {name!r}",
                field=f"buy.{host}.kind",
                expected=f"one of {', '.join(list(fleet.hosts.kinds)[:20])}",
                hint=did_you_mean(name, fleet.hosts.kinds),
            )
        kinds[name] = make_kind(name, fleet.hosts.kinds[name], fleet.servers)
    return kinds[name]


def _sized(fleet: Fleet, server: Server, assignment: Mapping[str, HandVm]) -> Server:
    given = assignment.get(server.name)
    own = fleet.sizings[server.name]
    if given is None:
        return server
    sizing = Sizing(given.vcpus or own.vcpus, given.memory or own.memory, own.disk, "")
    return make_server(server.name, server.load, sizing)


def _check_sizes(fleet: Fleet, hand: HandMade) -> Iterator[Fault]:
    """Find VMs that are smaller than what their servers were seen to use."""
    rule = fleet.servers.rightsizing
    fastest = max(entry.speed for entry in fleet.hosts.kinds.values())
    for name, vm in sorted(hand.assignment.items()):
        if name not in fleet.seen or name not in fleet.servers.servers:
            continue
        seen, entry = fleet.seen[name], fleet.servers.servers[name]
        if vm.memory is not None and seen.used_memory.size and entry.vm.memory is None:
            used = float(np.percentile(seen.used_memory, rule.memory.percentile))
            if vm.memory < min(used, seen.memory):
                what = f"{format_size(vm.memory)} of memory, {format_size(int(used))} were used"
                yield Fault("size", name, what)
        if vm.vcpus is not None and seen.cpu.size and entry.vm.vcpus is None:
            busy = float(np.percentile(seen.cpu, rule.vcpus.percentile)) * entry.speed / fastest
            if vm.vcpus < busy - 1e-9:
                yield Fault("size", name, f"{vm.vcpus} vCPUs, {busy:.2f} were used")


def _check_claims(file: PlanFile, answer: Plan) -> Iterator[Fault]:
    """Find what plan.json says of itself and is not so."""
    used = {host.name for host in answer.hosts}
    counts = {host.name: 0 for host in file.hosts}
    for vm in file.vms:
        counts[vm.host] = counts.get(vm.host, 0) + 1
    for host in file.hosts:
        if host.vms != counts[host.name]:
            what = f"is said to have {host.vms} VMs, and has {counts[host.name]}"
            yield Fault("claims", host.name, what)
    missing = sorted(used - {host.name for host in file.used})
    for name in missing:
        yield Fault("claims", name, "has VMs and is not among the hosts in use")
    if file.bound.hosts > len(used):
        what = f"the bound of {file.bound.hosts} hosts is above the {len(used)} that are used"
        yield Fault("claims", "plan", what)
    names = Counter(vm.name for vm in file.vms)
    for name in sorted(name for name, count in names.items() if count > 1):
        yield Fault("complete", name, "is there twice")
