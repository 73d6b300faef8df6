"""From servers, hosts and usages, as files say them, to what the planner is asked.

CPU is counted in cores of speed 1.0, memory and disk in GiB, vCPUs by number, traffic in MiB/s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hanok.consolidation.energy import kind_curve
from hanok.consolidation.request import (
    Headroom,
    Host,
    HostKind,
    PlanRequest,
    Rules,
    Series,
    Server,
    Spread,
)
from hanok.consolidation.sizing import Seen, Sizing, size_vm
from hanok.consolidation.traces import Grid, Trace, choose_grid, resample
from hanok.consolidation.traffic import TRAFFIC_WORDS, rates_of, trace_of, traffic_of
from hanok.consolidation.vectors import Floats
from hanok.errors import InvalidInput
from hanok.model.fleet import (
    HostKindEntry,
    HostsFile,
    ServerEntry,
    ServersFile,
    default_overhead,
    default_overhead_vm,
)
from hanok.model.usage import Metric, Usage
from hanok.model.validation import did_you_mean
from hanok.units import GIB

UNITS = {
    "cpu": "cores",
    "memory": "GiB",
    "disk": "GiB",
    "vcpus": "vCPUs",
    **dict.fromkeys(TRAFFIC_WORDS, "MiB/s"),
}
MUCH_MISSING = 0.1
NAMED = 5
Told = Callable[[str, float | None], None]


def quiet(message: str, fraction: float | None) -> None:
    """Tell nobody how far it is."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """All that is known before planning.

    ``request`` asks for the servers that move, onto hosts at hand; ``offers`` are the kinds that
    can be bought. ``loads`` (cores of speed 1.0, on ``grid``) and ``seen`` are of all servers,
    ``traffic`` (MiB/s, by resource) of those where it was measured and a kind of host limits it.
    ``findings`` are what a person should look at.
    """

    servers: ServersFile
    hosts: HostsFile
    request: PlanRequest
    offers: tuple[HostKind, ...]
    loads: Mapping[str, Series]
    seen: Mapping[str, Seen]
    sizings: Mapping[str, Sizing]
    grid: Grid
    findings: tuple[str, ...]
    traffic: Mapping[str, Mapping[str, Series]] = dataclasses.field(default_factory=dict)

    @property
    def stays(self) -> tuple[str, ...]:
        """The servers that are not moved."""
        return tuple(name for name, entry in self.servers.servers.items() if entry.stays)


def make_fleet(
    servers: ServersFile,
    hosts: HostsFile,
    usages: Iterable[Usage],
    *,
    fold: bool = False,
    tell: Told = quiet,
) -> Fleet:
    """Return what to plan.

    Raises InvalidInput, with the field, for names that do not exist, servers of unknown size, and
    two usages of one server.
    """
    kinds = {name: make_kind(name, entry, servers) for name, entry in hosts.kinds.items()}
    check_hosts(hosts)
    by_name, findings = _match(servers, usages)
    grid = choose_grid(
        [trace for usage in by_name.values() if (trace := cpu_trace(usage)) is not None], fold=fold
    )
    usable = _usable_kinds(hosts)
    speed, most = min(kind.speed for kind in usable), max(kind.cores for kind in usable)
    limited = {name for kind in usable for name in rates_of(kind)}
    counted = {name for kind in hosts.kinds.values() for name in rates_of(kind)}
    traffic: dict[str, Mapping[str, Series]] = {}
    loads: dict[str, Series] = {}
    seen: dict[str, Seen] = {}
    sizings: dict[str, Sizing] = {}
    for number, (name, entry) in enumerate(servers.servers.items()):
        if number % 100 == 0:
            tell(f"{number} of {len(servers.servers)} servers read", number / len(servers.servers))
        usage = by_name.get(name)
        seen[name] = look(name, entry, usage)
        loads[name] = load_of(entry, seen[name], usage, grid)
        traffic[name] = traffic_of(usage, grid, counted)
        sizings[name] = size_vm(entry, seen[name], servers.rightsizing, speed, most)
    findings += [*_odd(servers, by_name, sizings), *_unseen(servers, traffic, limited)]
    request = PlanRequest(
        servers=tuple(
            make_server(name, {"cpu": loads[name], **traffic[name]}, sizings[name])
            for name, entry in servers.servers.items()
            if not entry.stays
        ),
        hosts=tuple(
            Host(name, kinds[entry.kind], entry.rack) for name, entry in hosts.at_hand.items()
        ),
        rules=make_rules(servers, hosts),
        units=UNITS,
    )
    offers = tuple(kinds[name] for name in dict.fromkeys(hosts.offers))
    return Fleet(
        servers, hosts, request, offers, loads, seen, sizings, grid, tuple(findings), traffic
    )


def make_kind(name: str, entry: HostKindEntry, servers: ServersFile) -> HostKind:
    """Return the kind as the planner counts it."""
    taken = entry.overhead or default_overhead(entry)
    per_vm = entry.overhead_vm if entry.overhead_vm is not None else default_overhead_vm(entry)
    capacity = {
        "cpu": entry.cores * entry.speed,
        "memory": entry.memory / GIB,
        "vcpus": entry.cores * servers.rules.vcpus_per_core,
        **rates_of(entry),
    }
    if entry.disk is not None:
        capacity["disk"] = entry.disk / GIB
    limits = [one for one in (entry.most_vms, servers.rules.most_vms) if one is not None]
    return HostKind(
        name,
        capacity,
        watts=kind_curve(entry),
        price=entry.price or 0.0,
        rack_units=max(1, entry.rack_units),
        overhead={"cpu": taken.cores * entry.speed, "memory": (taken.memory or 0) / GIB},
        overhead_vm={"memory": per_vm / GIB},
        most_vms=min(limits, default=None),
    )


def make_server(name: str, load: Mapping[str, Series], sizing: Sizing) -> Server:
    """Return the server as the planner counts it; ``load`` is by resource."""
    size = {"memory": sizing.memory / GIB, "vcpus": float(sizing.vcpus)}
    if sizing.disk is not None:
        size["disk"] = sizing.disk / GIB
    return Server(name, load, size)


def check_hosts(hosts: HostsFile) -> None:
    """Raise InvalidInput when a host or an offer names no kind, or a name would be there twice."""
    named = [
        *((f"at_hand.{name}.kind", entry.kind) for name, entry in hosts.at_hand.items()),
        *((f"offers.{number}", kind) for number, kind in enumerate(hosts.offers)),
    ]
    for field, kind in named:
        if kind not in hosts.kinds:
            raise InvalidInput(
                f"there is no kind of host {kind!r}",
                field=field,
                expected=f"one of {', '.join(list(hosts.kinds)[:20])}",
                hint=did_you_mean(kind, hosts.kinds),
            )
    for name in hosts.at_hand:
        kind, _, number = name.rpartition("-")
        if kind in hosts.offers and number.isdecimal():
            raise InvalidInput(
                f"{name} is how a host that is bought will be called",
                field=f"at_hand.{name}",
                expected="a name that is not an offer's with a number",
            )


def _usable_kinds(hosts: HostsFile) -> list[HostKindEntry]:
    names = {*hosts.offers, *(entry.kind for entry in hosts.at_hand.values())}
    return [hosts.kinds[name] for name in sorted(names)]


def _match(servers: ServersFile, usages: Iterable[Usage]) -> tuple[dict[str, Usage], list[str]]:
    """Return the usage of each server, and what was found odd."""
    wanted = {entry.usage or name: name for name, entry in servers.servers.items()}
    found: dict[str, Usage] = {}
    unknown = []
    for usage in usages:
        name = wanted.get(usage.server)
        if name is None:
            unknown.append(usage.server)
        elif name in found:
            raise InvalidInput(
                f"there are two usages of {usage.server}",
                field="--usage",
                expected="one file a server",
            )
        else:
            found[name] = usage
    if not unknown:
        return found, []
    return found, [f"{_some(unknown)}: measured, but not in the servers file; left out"]


def cpu_trace(usage: Usage) -> Trace | None:
    """Return the CPU of ``usage`` in its own cores, or None when none was measured."""
    return trace_of(usage, Metric.CPU)


def _measured(usage: Usage | None, metric: Metric) -> Floats:
    trace = trace_of(usage, metric) if usage is not None else None
    if trace is None:
        return np.zeros(0)
    measured: Floats = trace.values[~np.isnan(trace.values)]
    return measured


def look(name: str, entry: ServerEntry, usage: Usage | None) -> Seen:
    """Return what is known of a server. Raises InvalidInput when its size is not."""
    cores = entry.cores or (usage.sizes.cores if usage is not None else None)
    memory = entry.memory or (usage.sizes.memory if usage is not None else None)
    if cores is None:
        raise _unknown_size(name, "cores", "8")
    if memory is None:
        raise _unknown_size(name, "memory", "32G")
    disk = entry.disk or (usage.sizes.disk if usage is not None else None)
    return Seen(cores, memory, disk, _measured(usage, Metric.CPU), _measured(usage, Metric.MEMORY))


def _unknown_size(name: str, field: str, example: str) -> InvalidInput:
    return InvalidInput(
        f"nothing says what {field} {name} has",
        field=f"servers.{name}.{field}",
        expected=f"it here ({field}: {example}), or in its usage file",
    )


def load_of(entry: ServerEntry, seen: Seen, usage: Usage | None, grid: Grid) -> Series:
    """Return the CPU load on ``grid`` in cores of speed 1.0; all of it where none was measured."""
    trace = cpu_trace(usage) if usage is not None else None
    if trace is None:
        return np.full(grid.count, seen.cores * entry.speed, np.float32)
    return (resample(trace, grid) * entry.speed).astype(np.float32)


def make_rules(servers: ServersFile, hosts: HostsFile) -> Rules:
    """Return the rules, with groups replaced by their servers. Raises InvalidInput for names."""
    rules = servers.rules
    return Rules(
        headroom=Headroom(rules.headroom.percentile, rules.headroom.reserve),
        failures=rules.failures,
        together=tuple(
            _together(servers, names, f"rules.together.{number}")
            for number, names in enumerate(rules.together)
        ),
        apart=tuple(
            _moving(servers, names, f"rules.apart.{number}")
            for number, names in enumerate(rules.apart)
        ),
        spread=tuple(
            Spread(_moving(servers, rule.servers, f"rules.spread.{number}.servers"), rule.most)
            for number, rule in enumerate(rules.spread)
        ),
        pins={
            name: frozenset(_pin(hosts, pin, f"servers.{name}.pins") for pin in entry.pins)
            for name, entry in servers.servers.items()
            if entry.pins and not entry.stays
        },
        memory_factor=rules.memory_factor,
    )


def _named(servers: ServersFile, names: Sequence[str], field: str) -> frozenset[str]:
    groups: dict[str, set[str]] = {}
    for name, entry in servers.servers.items():
        if entry.group is not None:
            groups.setdefault(entry.group, set()).add(name)
    found: set[str] = set()
    for name in names:
        if name in servers.servers:
            found.add(name)
        elif name in groups:
            found |= groups[name]
        else:
            raise InvalidInput(
                f"there is no server and no group {name!r}",
                field=field,
                expected="names of servers or groups of this file",
                hint=did_you_mean(name, [*servers.servers, *groups]),
            )
    return frozenset(found)


def _moving(servers: ServersFile, names: Sequence[str], field: str) -> frozenset[str]:
    return frozenset(n for n in _named(servers, names, field) if not servers.servers[n].stays)


def _together(servers: ServersFile, names: Sequence[str], field: str) -> frozenset[str]:
    found = _named(servers, names, field)
    staying = sorted(name for name in found if servers.servers[name].stays)
    if staying:
        raise InvalidInput(
            f"{staying[0]} stays where it is and cannot share a host",
            field=field,
            expected="servers that move",
        )
    return found


def _pin(hosts: HostsFile, pin: str, field: str) -> str:
    if pin in hosts.at_hand:
        return pin
    raise InvalidInput(
        f"there is no host {pin!r} at hand",
        field=field,
        expected="a host that is at hand; to keep servers apart or together there are rules",
        hint=did_you_mean(pin, hosts.at_hand),
    )


def _odd(
    servers: ServersFile, usages: Mapping[str, Usage], sizings: Mapping[str, Sizing]
) -> list[str]:
    """Return what a person should know of the measurements."""
    findings = []
    unmeasured = [n for n in servers.servers if n not in usages or cpu_trace(usages[n]) is None]
    if unmeasured:
        findings.append(
            f"{_some(unmeasured)}: no CPU was measured; planned as if all cores were always busy"
        )
    full = [n for n, sizing in sizings.items() if sizing.saturated]
    if full:
        findings.append(f"{_some(full)}: at the limit at times; may want more than was measured")
    gaps = [
        name
        for name, usage in usages.items()
        if (trace := cpu_trace(usage)) is not None and trace.missing > MUCH_MISSING
    ]
    if gaps:
        findings.append(f"{_some(gaps)}: more than {MUCH_MISSING:.0%} of the samples are gaps")
    return findings


def _unseen(
    servers: ServersFile,
    traffic: Mapping[str, Mapping[str, Series]],
    limited: Collection[str],
) -> list[str]:
    """Return whose traffic counts as none, since nobody measured it."""
    findings = []
    for resource in sorted(limited):
        names = [
            name
            for name, entry in servers.servers.items()
            if not entry.stays and resource not in traffic[name]
        ]
        if names:
            text = f"no {TRAFFIC_WORDS[resource]} was measured; counted as none"
            findings.append(f"{_some(names)}: {text}")
    return findings


def _some(names: Sequence[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
