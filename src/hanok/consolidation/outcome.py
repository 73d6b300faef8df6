"""From a plan to plan.json: before and after, every host's day, every VM's reasons."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from hanok.consolidation.energy import (
    HOST_PEAK_CORE,
    NEW_IDLE,
    OLD_IDLE,
    SERVER_PEAK,
    Machine,
    energy_of,
)
from hanok.consolidation.explain import Filled, fill_hosts, limit_of, reasons
from hanok.consolidation.fleet import Fleet, Told, quiet
from hanok.consolidation.forecast import Day, forecast
from hanok.consolidation.offers import Choice
from hanok.consolidation.request import Host
from hanok.consolidation.traffic import METRICS, TRAFFIC_WORDS, rates_of
from hanok.consolidation.vectors import Floats
from hanok.model.plan import (
    Bound,
    Energy,
    Forecast,
    Grid,
    Inputs,
    PlanFile,
    PlanHost,
    PlanVm,
    Search,
    Side,
    Traffic,
)
from hanok.units import MIB


def make_plan_file(
    fleet: Fleet, choice: Choice, inputs: Inputs, search: Search, *, tell: Told = quiet
) -> PlanFile:
    """Return all that is to be said about ``choice``."""
    answer = choice.plan
    filled = fill_hosts(choice.request, answer, fleet.grid.count)
    tell("looking for what else each VM could do", None)
    why = reasons(choice.request, filled, fleet.grid)
    hosts = []
    for number, one in enumerate(filled):
        tell(f"{number} of {len(filled)} hosts forecast", number / len(filled))
        hosts.append(_host(fleet, choice, one))
    hosts += [_spare(fleet, host) for host in answer.spares]
    vms = tuple(_vm(fleet, name, host, why[name]) for name, host in answer.placement.items())
    return PlanFile(
        inputs=inputs.model_copy(update={"digest": digest_of(fleet)}),
        search=search,
        grid=Grid(
            start=datetime.fromtimestamp(fleet.grid.start, UTC),
            interval=fleet.grid.interval,
            intervals=fleet.grid.count,
            folded=fleet.grid.folded,
        ),
        vms=vms,
        hosts=tuple(hosts),
        stays=fleet.stays,
        bound=Bound(hosts=answer.bound.bins, reason=answer.bound.reason, gap=answer.gap),
        before=before(fleet),
        after=after(fleet, filled, answer.spares),
        currency=fleet.hosts.costs.currency,
        assumptions=assumptions(fleet),
        findings=fleet.findings,
    )


def digest_of(fleet: Fleet) -> str:
    """Return what changes when anything that was planned from does."""
    text = hashlib.sha256()
    for model in (fleet.servers, fleet.hosts):
        text.update(model.model_dump_json().encode())
    for name in sorted(fleet.loads):
        text.update(name.encode() + np.ascontiguousarray(fleet.loads[name]).tobytes())
        text.update(repr(fleet.sizings[name]).encode())
        for resource, load in sorted(fleet.traffic.get(name, {}).items()):
            text.update(resource.encode() + np.ascontiguousarray(load).tobytes())
    return text.hexdigest()


def _vm(fleet: Fleet, name: str, host: str, why: str) -> PlanVm:
    sizing, seen = fleet.sizings[name], fleet.seen[name]
    return PlanVm(
        name=name,
        host=host,
        vcpus=sizing.vcpus,
        memory=sizing.memory,
        disk=sizing.disk,
        cores_before=seen.cores,
        memory_before=seen.memory,
        why_here=why,
        why_size=sizing.reason,
    )


def _host(fleet: Fleet, choice: Choice, filled: Filled) -> PlanHost:
    host = filled.host
    entry = fleet.hosts.kinds[host.kind.name]
    capacity = host.kind.capacity["cpu"] - host.kind.overhead.get("cpu", 0.0)
    day = forecast([s.load["cpu"] for s in filled.servers], fleet.grid, capacity)
    watts = energy_of([_machine(fleet, host, filled.load)], NEW_IDLE, fleet.hosts.costs).watts
    return PlanHost(
        name=host.name,
        kind=host.kind.name,
        rack=host.rack,
        bought=host.name not in fleet.hosts.at_hand,
        vms=len(filled.servers),
        shares={name: round(share, 4) for name, share in filled.shares.items()},
        limit=limit_of(choice.request, filled, fleet.grid),
        watts=round(watts, 1),
        forecast=_forecast(fleet, day, capacity / entry.speed, entry.speed),
        traffic=_traffic(fleet, filled),
    )


def _traffic(fleet: Fleet, filled: Filled) -> dict[Traffic, Forecast]:
    """Return the day of disks and network, in bytes a second."""
    found: dict[Traffic, Forecast] = {}
    for resource in METRICS:
        loads = [s.load[resource] for s in filled.servers if resource in s.load]
        if resource in filled.host.kind.capacity and loads:
            capacity = filled.host.kind.capacity[resource]
            day = forecast(loads, fleet.grid, capacity)
            found[resource] = _forecast(fleet, day, capacity * MIB, 1 / MIB)
    return found


def _forecast(fleet: Fleet, day: Day, capacity: float, speed: float) -> Forecast:
    reserve = fleet.request.rules.headroom.reserve
    return Forecast(
        step=day.step,
        mean=_rounded(day.mean / speed),
        high=_rounded(day.high / speed),
        room=round(capacity * (1.0 - reserve), 3),
        capacity=round(capacity, 3),
        risk=round(day.risk, 6),
        overload=round(day.overload, 6),
    )


def _rounded(values: Floats) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else round(float(value), 3) for value in values)


def _spare(fleet: Fleet, host: Host) -> PlanHost:
    idle = energy_of([_machine(fleet, host, np.zeros(1))], NEW_IDLE, fleet.hosts.costs).watts
    return PlanHost(
        name=host.name,
        kind=host.kind.name,
        rack=host.rack,
        bought=host.name not in fleet.hosts.at_hand,
        spare=True,
        limit="kept for a failure",
        watts=round(idle, 1),
    )


def _machine(fleet: Fleet, host: Host, load: Floats) -> Machine:
    entry = fleet.hosts.kinds[host.kind.name]
    share = (load + host.kind.overhead.get("cpu", 0.0)) / host.kind.capacity["cpu"]
    return Machine(entry.watts, HOST_PEAK_CORE * entry.cores, share, entry.rack_units, entry.price)


def _servers(fleet: Fleet, names: Sequence[str]) -> list[Machine]:
    machines = []
    for name in names:
        entry = fleet.servers.servers[name]
        share = fleet.loads[name] / (fleet.seen[name].cores * entry.speed)
        machines.append(Machine(entry.watts, SERVER_PEAK, share, entry.rack_units))
    return machines


def before(fleet: Fleet) -> Side:
    """Return what all servers take as they are."""
    return _side(fleet, _servers(fleet, list(fleet.servers.servers)), 0.0)


def after(fleet: Fleet, filled: Sequence[Filled], spares: Sequence[Host]) -> Side:
    """Return what the hosts take, spare ones idle, and the servers that stay."""
    machines = [_machine(fleet, one.host, one.load) for one in filled]
    machines += [_machine(fleet, host, np.zeros(1)) for host in spares]
    hosts = [*(one.host for one in filled), *spares]
    new = [host for host in hosts if host.name not in fleet.hosts.at_hand]
    prices = [fleet.hosts.kinds[host.kind.name].price for host in new]
    known = [price for price in prices if price is not None]
    purchase = sum(known) if len(known) == len(prices) else None
    return _side(fleet, [*machines, *_servers(fleet, fleet.stays)], purchase)


def _side(fleet: Fleet, machines: Sequence[Machine], purchase: float | None) -> Side:
    units = sum(machine.rack_units for machine in machines)

    def energy(idle_share: float) -> Energy:
        found = energy_of(machines, idle_share, fleet.hosts.costs)
        return Energy(
            idle_share=idle_share,
            watts=round(found.watts, 1),
            kwh_year=round(found.kwh_year, 1),
            money_year=round(found.money_year + units * fleet.hosts.costs.rack_unit_year, 2),
        )

    return Side(
        hosts=len(machines),
        rack_units=units,
        old_idle=energy(OLD_IDLE),
        new_idle=energy(NEW_IDLE),
        purchase=purchase,
    )


def assumptions(fleet: Fleet) -> tuple[str, ...]:
    """Return what was taken for granted, in sentences."""
    grid, costs, rules = fleet.grid, fleet.hosts.costs, fleet.servers.rules
    said = []
    minutes = f"{grid.interval / 60:g} minutes"
    if grid.folded:
        said.append(
            f"The servers were not measured at the same time: each is folded onto one day of "
            f"{minutes} each, with the highest load seen at a time of day. Watts are too high then."
        )
    else:
        start = datetime.fromtimestamp(grid.start, UTC)
        said.append(
            f"Planned on the time in which all were measured: {grid.days:.3g} days from "
            f"{start:%Y-%m-%d %H:%M} UTC, in intervals of {minutes}."
        )
    said.append(
        f"CPU: a host's load leaves {rules.headroom.reserve:.0%} of it free in "
        f"{rules.headroom.percentile:g} % of the intervals. Memory is "
        + (
            "never oversold."
            if rules.memory_factor == 1
            else f"sold {rules.memory_factor:g} times."
        )
    )
    said.append(_traffic_assumption(fleet))
    said += _power_assumptions(fleet)
    said.append(
        f"A kWh costs {costs.kwh:g} {costs.currency}, a rack unit {costs.rack_unit_year:g} "
        f"{costs.currency} a year; each watt of a machine takes {costs.pue:g} at the meter "
        f"(cooling); hosts are kept for {costs.years:g} years. Spare hosts run idle."
    )
    return tuple(said)


def _traffic_assumption(fleet: Fleet) -> str:
    used = {*fleet.hosts.offers, *(entry.kind for entry in fleet.hosts.at_hand.values())}
    names = {name: rates_of(fleet.hosts.kinds[name]) for name in sorted(used)}
    limited = [name for name, rates in names.items() if rates]
    if not limited:
        return "Disk and network traffic is no limit: no host says what it can move."
    rest = sorted({w for name in limited for r, w in TRAFFIC_WORDS.items() if r not in names[name]})
    text = f"Traffic is limited on {', '.join(limited)}, with the headroom of CPU"
    return f"{text}, but for {', '.join(rest)}." if rest else f"{text}."


def _power_assumptions(fleet: Fleet) -> list[str]:
    servers = list(fleet.servers.servers.values())
    no_peak = sum(entry.watts is None for entry in servers)
    no_idle = sum(
        entry.watts is None or (entry.watts.curve is None and entry.watts.idle is None)
        for entry in servers
    )
    used = {*fleet.hosts.offers, *(entry.kind for entry in fleet.hosts.at_hand.values())}
    kinds = sorted(name for name in used if fleet.hosts.kinds[name].watts is None)
    said = []
    if no_peak:
        said.append(f"{no_peak} servers say nothing of power: {SERVER_PEAK:g} W at full load each.")
    if no_idle:
        said.append(
            f"{no_idle} servers do not say what they take idle: shown with {OLD_IDLE:.0%} of the "
            f"peak (servers of 2007) and with {NEW_IDLE:.0%} (of 2024)."
        )
    if kinds:
        said.append(
            f"{', '.join(kinds)}: {HOST_PEAK_CORE:g} W a core at full load, idle power as above."
        )
    return said
