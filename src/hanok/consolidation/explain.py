"""Why each VM is where it is, and what limits each host, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.request import (
    Host,
    Plan,
    PlanRequest,
    Rules,
    Series,
    Server,
    room,
)
from hanok.consolidation.traces import Grid
from hanok.consolidation.traffic import TRAFFIC_WORDS
from hanok.consolidation.vectors import Floats

MOST_WORK = 3_000_000_000
"""Above so many comparisons nobody is told where else a VM could go."""
FULL = 0.9
NAMED = 3
_WORDS = {"cpu": "CPU", "vcpus": "vCPUs", **TRAFFIC_WORDS}


@dataclass(frozen=True, eq=False)
class Filled:
    """A host with its servers: ``loads`` over time, and the shares of what may be used."""

    host: Host
    servers: tuple[Server, ...]
    loads: Mapping[str, Floats]
    shares: Mapping[str, float]

    @property
    def load(self) -> Floats:
        """The CPU's load over time."""
        return self.loads["cpu"]

    def busiest(self, resource: str = "cpu") -> int:
        """Return the interval in which most is used."""
        load = self.loads[resource]
        return int(np.argmax(load)) if load.size else 0

    @property
    def tightest_load(self) -> str:
        """The load over time of which the largest share is used."""
        return max(self.loads, key=lambda name: self.shares.get(name, 0.0))


def fill_hosts(request: PlanRequest, answer: Plan, intervals: int) -> list[Filled]:
    """Return each host of ``answer`` in use with its servers."""
    on: dict[str, list[Server]] = {host.name: [] for host in answer.hosts}
    for server in request.servers:
        on[answer.placement[server.name]].append(server)
    return [_fill(request.rules, host, tuple(on[host.name]), intervals) for host in answer.hosts]


def _fill(rules: Rules, host: Host, servers: tuple[Server, ...], intervals: int) -> Filled:
    over_time = {"cpu", *(name for server in servers for name in server.load)}
    loads = {
        resource: sum_of([s.load[resource] for s in servers if resource in s.load], intervals)
        for resource in sorted(over_time)
    }
    shares: dict[str, float] = {}
    for resource in host.kind.capacity:
        free = room(host.kind, rules, resource)
        if resource in loads:
            load = loads[resource]
            free *= 1.0 - rules.headroom.reserve
            used = float(np.sort(load)[load.size - 1 - rules.headroom.exceptions(load.size)])
        else:
            own = host.kind.overhead_vm.get(resource, 0.0) * len(servers)
            used = sum(server.size.get(resource, 0.0) for server in servers) + own
        shares[resource] = used / free if free > 0 else 0.0
    if host.kind.most_vms is not None:
        shares["VMs"] = len(servers) / host.kind.most_vms
    return Filled(host, servers, loads, shares)


def sum_of(series: Sequence[Series], intervals: int) -> Floats:
    """Return loads added up."""
    total = np.zeros(intervals)
    for one in series:
        total = total + one
    return total


def limit_of(request: PlanRequest, filled: Filled, grid: Grid) -> str:
    """Return what stops one more VM on this host."""
    if not filled.shares:
        return ""
    first = max(filled.shares, key=lambda name: filled.shares[name])
    share = filled.shares[first]
    text = f"{_WORDS.get(first, first)} {share:.0%}"
    if first in filled.host.kind.capacity:
        free = room(filled.host.kind, request.rules, first)
        if first in filled.loads:
            free *= 1.0 - request.rules.headroom.reserve
        text += f" of {request.amount(first, free)}"
    elif filled.host.kind.most_vms is not None:
        text += f" of {filled.host.kind.most_vms}"
    if first in filled.loads:
        text += f", busiest {when(grid, filled.busiest(first))}"
    return text if share >= FULL else f"not full: {text}"


def when(grid: Grid, interval: int) -> str:
    """Return the time of an interval, as people say it."""
    moment = datetime.fromtimestamp(grid.start + interval * grid.interval, UTC)
    if grid.folded or grid.days <= 1:
        return moment.strftime("%H:%M UTC")
    return moment.strftime("%a %H:%M UTC")


def reasons(request: PlanRequest, filled: Sequence[Filled], grid: Grid) -> dict[str, str]:
    """Return for each server why it is on its host."""
    others = _alternatives(request, filled)
    by_rule = _by_rule(request)
    found = {}
    for one in filled:
        for server in one.servers:
            parts = list(by_rule.get(server.name, ()))
            parts.append(_beside(one, server, grid))
            parts.append(_traffic_beside(one, server, grid))
            if server.name in others:
                parts.append(_elsewhere(others[server.name], len(filled)))
            found[server.name] = "; ".join(part for part in parts if part)
    return found


def _by_rule(request: PlanRequest) -> dict[str, list[str]]:
    """Return the rules about places that each server is under, in words."""
    rules = request.rules
    found: dict[str, list[str]] = {}
    for name, pins in rules.pins.items():
        found.setdefault(name, []).append(f"pinned to {_list(sorted(pins), ' or ')}")
    for number, names in enumerate(rules.together):
        for name in names:
            rest = sorted(names - {name})
            found.setdefault(name, []).append(f"with {_list(rest)} (rules.together.{number})")
    for number, names in enumerate(rules.apart):
        for name in names:
            rest = sorted(names - {name})
            if rest:
                found.setdefault(name, []).append(
                    f"apart from {_list(rest)} (rules.apart.{number})"
                )
    for number, rule in enumerate(rules.spread):
        for name in rule.servers:
            text = f"at most {rule.most} of {len(rule.servers)} a rack (rules.spread.{number})"
            found.setdefault(name, []).append(text)
    return found


def _list(names: Sequence[str], last: str = ", ") -> str:
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return last.join(names)


def _beside(filled: Filled, server: Server, grid: Grid) -> str:
    if "cpu" not in server.load:
        return ""
    load = np.asarray(server.load["cpu"], np.float64)
    peak = int(np.argmax(load))
    if len(filled.servers) == 1:
        return f"alone on {filled.host.name}"
    others = float(filled.load[peak] - load[peak])
    busiest = float(filled.load.max() - load[filled.busiest()])
    text = f"peaks at {load[peak]:.1f} cores {when(grid, peak)}, when the others use {others:.1f}"
    if others < FULL * busiest:
        text += f" (they reach {busiest:.1f} {when(grid, filled.busiest())})"
    return text


def _traffic_beside(filled: Filled, server: Server, grid: Grid) -> str:
    """Say what the server moves, on a host where that is scarcer than CPU."""
    resource = filled.tightest_load
    if resource == "cpu" or resource not in server.load or len(filled.servers) == 1:
        return ""
    load = np.asarray(server.load[resource], np.float64)
    peak = int(np.argmax(load))
    others = float(filled.loads[resource][peak] - load[peak])
    return (
        f"{_WORDS[resource]} of up to {load[peak]:.3g} MiB/s {when(grid, peak)}, when the others "
        f"have {others:.3g}"
    )


def _elsewhere(count: int, hosts: int) -> str:
    if hosts <= 1:
        return ""
    if not count:
        return "no other host in use has room for it"
    return f"{count} other host{'s' * (count != 1)} would have room"


def _alternatives(request: PlanRequest, filled: Sequence[Filled]) -> dict[str, int]:
    """Return on how many other hosts in use each server would find room as well."""
    if not filled or not filled[0].load.size:
        return {}
    servers = [server for one in filled for server in one.servers]
    resources = sorted({name for one in filled for name in one.loads})
    intervals = filled[0].load.size
    if len(servers) * len(filled) * len(resources) * intervals > MOST_WORK:
        return {}
    rules = request.rules
    free = {resource: _free_over_time(rules, filled, resource) for resource in resources}
    may = rules.headroom.exceptions(intervals)
    counts = {}
    for at, one in enumerate(filled):
        for server in one.servers:
            fits = np.arange(len(filled)) != at
            for resource, load in server.load.items():
                over = np.asarray(load, np.float32) > free[resource]
                fits &= over.sum(axis=1) <= may
            counts[server.name] = sum(
                _sizes_fit(rules, filled[other], server) for other in np.flatnonzero(fits).tolist()
            )
    return counts


def _free_over_time(rules: Rules, filled: Sequence[Filled], resource: str) -> NDArray[np.float32]:
    """Return what is free of a load's resource on each host in each interval."""
    intervals = filled[0].load.size
    loads = np.array([f.loads.get(resource, np.zeros(intervals)) for f in filled], np.float32)
    rooms = [
        room(f.host.kind, rules, resource) * (1.0 - rules.headroom.reserve)
        if resource in f.host.kind.capacity
        else np.inf
        for f in filled
    ]
    free: NDArray[np.float32] = np.array(rooms, np.float32)[:, None] * np.float32(1 + 1e-6) - loads
    return free


def _sizes_fit(rules: Rules, filled: Filled, server: Server) -> bool:
    """Return whether what ``server`` reserves fits beside what a host has; rules of place aside."""
    kind = filled.host.kind
    for resource in kind.capacity:
        if resource in server.load or resource in filled.loads:
            continue
        free = room(kind, rules, resource)
        more = server.size.get(resource, 0.0) + kind.overhead_vm.get(resource, 0.0)
        if filled.shares[resource] * free + more > free * (1 + 1e-9):
            return False
    return kind.most_vms is None or len(filled.servers) < kind.most_vms
