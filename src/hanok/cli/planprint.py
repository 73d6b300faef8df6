"""How plans look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from hanok.cli.output import Cell, Output
from hanok.errors import NotFound
from hanok.model.plan import Energy, Forecast, PlanFile, PlanHost, PlanVm, Side
from hanok.model.validation import did_you_mean
from hanok.units import format_size

MOST_VMS = 50
RISKY = 0.01
TRAFFIC = {"disk_io": ">DISK I/O", "network_in": ">NET IN", "network_out": ">NET OUT"}


def print_plan(out: Output, plan: PlanFile, *, wide: bool = False) -> None:
    """Print the hosts, the VMs (all of them when ``wide``), before and after, and what to know."""
    out.line(headline(plan))
    out.line(bound_line(plan))
    out.line()
    print_hosts(out, plan)
    if wide or len(plan.vms) <= MOST_VMS:
        out.line()
        print_vms(out, plan.vms)
    out.line()
    print_sides(out, plan)
    for finding in plan.findings:
        out.line(f"Note: {finding}")


def headline(plan: PlanFile) -> str:
    """Return what came of it, in one sentence."""
    spares = f" and {count(len(plan.spares), 'spare')}" if plan.spares else ""
    stay = "stays" if len(plan.stays) == 1 else "stay"
    stays = f"; {count(len(plan.stays), 'server')} {stay}" if plan.stays else ""
    servers, hosts = count(len(plan.vms), "server"), count(len(plan.used), "host")
    return f"{servers} fit on {hosts}{spares}{stays}"


def bound_line(plan: PlanFile) -> str:
    """Return how far from perfect the plan can be."""
    bound = plan.bound
    least = f"at least {bound.hosts} by {bound.reason}"
    return f"Best possible: {least}; gap {bound.gap:.1%}" + (
        " (stopped early)" if plan.search.stopped else ""
    )


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def print_hosts(out: Output, plan: PlanFile) -> None:
    """Print a line for each host."""
    moved = [one for one in TRAFFIC if any(one in host.shares for host in plan.hosts)]
    titles = ("HOST", "KIND", "RACK", ">VMS", ">CPU", ">MEMORY")
    more = tuple(TRAFFIC[name] for name in moved)
    rows = [_host_row(host, moved) for host in plan.hosts]
    out.table((*titles, *more, ">WATTS", ">RISK", "LIMIT"), rows)


def _host_row(host: PlanHost, moved: Sequence[str]) -> list[Cell | str]:
    risk = host.forecast.risk if host.forecast is not None else None
    return [
        Cell(host.name, "dim" if host.spare else "bold"),
        host.kind + (" (to buy)" if host.bought else ""),
        host.rack or "-",
        str(host.vms),
        share(host.shares.get("cpu")),
        share(host.shares.get("memory")),
        *(share(host.shares.get(name)) for name in moved),
        f"{host.watts:.0f}",
        Cell(percent(risk), "yellow" if risk is not None and risk > RISKY else None),
        host.limit,
    ]


def share(value: float | None) -> str:
    """Return a share of what may be used."""
    return "-" if value is None else f"{value:.0%}"


def percent(value: float | None) -> str:
    """Return a small share of time."""
    if value is None:
        return "-"
    return "<0.01%" if 0 < value < 0.0001 else f"{value:.2%}"


def print_vms(out: Output, vms: Sequence[PlanVm]) -> None:
    """Print a line for each VM."""
    titles = ("VM", "HOST", ">VCPUS", ">BEFORE", ">MEMORY", ">BEFORE")
    rows = [
        (
            Cell(vm.name, "bold"),
            vm.host,
            str(vm.vcpus),
            str(vm.cores_before),
            format_size(vm.memory),
            format_size(vm.memory_before),
        )
        for vm in vms
    ]
    out.table(titles, rows)


def print_sides(out: Output, plan: PlanFile) -> None:
    """Print before and after."""
    titles = ("", ">BEFORE", ">AFTER", ">SAVED")
    out.table(titles, [[Cell(row[0], "bold"), *row[1:]] for row in side_rows(plan)])


def side_rows(plan: PlanFile) -> list[tuple[str, str, str, str]]:
    """Return before, after and saved; energy twice where the idle power is not known."""
    before, after = plan.before, plan.after
    rows = [
        _row("machines", before.hosts, after.hosts),
        _row("rack units", before.rack_units, after.rack_units),
    ]
    for name, ending in _assumed(before, after):
        one, other = _energy(before, name), _energy(after, name)
        rows += [
            _row(f"watts{ending}", one.watts, other.watts),
            _row(f"kWh a year{ending}", one.kwh_year, other.kwh_year),
            _row(f"{plan.currency} a year{ending}", one.money_year, other.money_year),
        ]
    bought = sum(host.bought for host in plan.hosts)
    if bought:
        price = "unknown" if after.purchase is None else f"{after.purchase:,.0f}"
        rows.append((f"{plan.currency} for {count(bought, 'host')}", "-", price, "-"))
    return rows


def _assumed(before: Side, after: Side) -> list[tuple[str, str]]:
    same = before.old_idle.watts == before.new_idle.watts
    if same and after.old_idle.watts == after.new_idle.watts:
        return [("new_idle", "")]
    old, new = before.old_idle.idle_share, before.new_idle.idle_share
    return [("old_idle", f" (idle {old:.0%})"), ("new_idle", f" (idle {new:.0%})")]


def _energy(side: Side, name: str) -> Energy:
    return side.old_idle if name == "old_idle" else side.new_idle


def _row(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    saved = f"{1 - after / before:.0%}" if before else "-"
    return name, f"{before:,.0f}", f"{after:,.0f}", saved


def find(plan: PlanFile, name: str) -> PlanVm | PlanHost:
    """Return the VM or the host called ``name``. Raises NotFound."""
    everything: list[PlanVm | PlanHost] = [*plan.vms, *plan.hosts]
    found = next((one for one in everything if one.name == name), None)
    if found is None:
        known = [one.name for one in everything]
        raise NotFound(f"the plan has no VM and no host {name!r}", hint=did_you_mean(name, known))
    return found


def print_one(out: Output, plan: PlanFile, one: PlanVm | PlanHost) -> None:
    """Print everything about one VM or one host."""
    if isinstance(one, PlanHost):
        _print_host(out, plan, one)
        return
    out.pairs(
        [
            ("VM", Cell(one.name, "bold")),
            ("host", one.host),
            ("why here", one.why_here),
            ("size", f"{one.vcpus} vCPUs, {format_size(one.memory)}"),
            ("why this size", one.why_size),
            ("before", f"{one.cores_before} cores, {format_size(one.memory_before)}"),
        ]
    )


def _traffic_pair(name: str, forecast: Forecast) -> tuple[str, str]:
    highest = max((value for value in forecast.high if value is not None), default=0.0)
    used = f"up to {format_size(round(highest))}/s of {format_size(round(forecast.capacity))}/s"
    return TRAFFIC[name].lstrip(">").lower(), f"{used}, risk {percent(forecast.risk)}"


def _print_host(out: Output, plan: PlanFile, host: PlanHost) -> None:
    forecast = host.forecast
    risk = None
    if forecast is not None:
        risk = f"{percent(forecast.risk)} of the time (as measured {percent(forecast.overload)})"
    used = ", ".join(f"{name} {value:.0%}" for name, value in host.shares.items())
    out.pairs(
        [
            ("host", Cell(host.name, "bold")),
            ("kind", host.kind + (" (to buy)" if host.bought else "")),
            ("rack", host.rack or None),
            ("used", used or None),
            ("limit", host.limit),
            ("risk of overload", risk),
            *(_traffic_pair(name, one) for name, one in host.traffic.items()),
            ("watts", f"{host.watts:.0f}"),
        ]
    )
    vms = [vm for vm in plan.vms if vm.host == host.name]
    if vms:
        out.line()
        print_vms(out, vms)
