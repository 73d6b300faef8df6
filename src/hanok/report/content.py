"""What a report says, whatever it is written as: sections of text, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hanok.model.plan import Energy, PlanFile, PlanHost, PlanVm, Side, Traffic
from hanok.report.figures import Drawing, draw_forecasts, draw_shares, draw_sides
from hanok.units import format_size

A_PAGE = 12
"""Forecasts in a figure."""
SHARES_A_PAGE = 36
TRAFFIC: Mapping[Traffic, str] = {
    "disk_io": "disk traffic",
    "network_in": "network received",
    "network_out": "network sent",
}
MOST_FORECASTS = 240
"""Beyond it the hosts with the highest risk are drawn."""


@dataclass(frozen=True)
class Tile:
    """A number that matters, with what it is and a remark."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under ``titles``; ``right``: columns set to the right, ``widths``: of the columns."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    text: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    figures: tuple[Drawing, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...] = field(default=())


def make_report(plan: PlanFile) -> Report:
    """Return what there is to say about ``plan``."""
    return Report(
        title=f"{number(len(plan.vms))} servers on {number(len(plan.used))} hosts",
        subtitle=_subtitle(plan),
        tiles=tuple(_tiles(plan)),
        sections=tuple(_sections(plan)),
    )


def number(value: float) -> str:
    """Return a number with thousands apart."""
    return f"{value:,.0f}"


def _subtitle(plan: PlanFile) -> str:
    parts = []
    if plan.spares:
        parts.append(f"{len(plan.spares)} more kept for failures")
    if plan.stays:
        one = len(plan.stays) == 1
        parts.append("1 server stays as it is" if one else f"{len(plan.stays)} stay as they are")
    parts.append(f"effort {plan.search.effort}, seed {plan.search.seed}")
    parts.append(
        "the same input gives the same plan"
        if plan.search.reproducible
        else "stopped by time: another run may differ"
    )
    return "; ".join(parts)


def _tiles(plan: PlanFile) -> list[Tile]:
    before, after = plan.before, plan.after
    low, high = sorted(
        1 - _energy(after, old).kwh_year / max(1.0, _energy(before, old).kwh_year)
        for old in (True, False)
    )
    saved = f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
    risks = [host.forecast.risk for host in plan.used if host.forecast is not None]
    return [
        Tile("machines", f"{number(before.hosts)} → {number(after.hosts)}", "before and after"),
        Tile("rack units", f"{number(before.rack_units)} → {number(after.rack_units)}"),
        Tile("energy saved", saved, "by old and by new idle power"),
        Tile("best possible", f"{plan.bound.hosts} hosts", f"this is {plan.bound.gap:.1%} above"),
        Tile("highest risk", percent(max(risks, default=0.0)), "of time with too little CPU"),
    ]


def _energy(side: Side, old: bool) -> Energy:
    return side.old_idle if old else side.new_idle


def percent(value: float) -> str:
    """Return a share of time."""
    return "<0.01 %" if 0 < value < 0.0001 else f"{value * 100:.2f} %"


def _sections(plan: PlanFile) -> list[Section]:
    sections = [
        Section(
            "Before and after",
            (
                "Machines that run now, and those of this plan with spare hosts and servers that "
                "stay. Energy with the idle power of old servers and of new ones, where a machine "
                "does not say its own.",
            ),
            figures=(draw_sides(plan),),
            table=_sides(plan),
        ),
        Section("How far from perfect", (_bound_text(plan),)),
        Section(
            "Hosts",
            (
                "Shares are of what VMs may use beside the hypervisor and the headroom. What is "
                "fullest limits a host.",
            ),
            figures=tuple(
                draw_shares(part)
                for part in _parts([host for host in plan.hosts if host.vms], SHARES_A_PAGE)
            ),
            table=_hosts(plan),
        ),
        _forecasts(plan),
        *_traffic(plan),
        Section("Virtual machines", figures=(), table=_vms(plan.vms)),
        Section("What was assumed", points=plan.assumptions),
    ]
    if plan.findings:
        sections.append(Section("What to look at", points=plan.findings))
    return sections


def _bound_text(plan: PlanFile) -> str:
    bound = plan.bound
    reason = f"No plan under these rules uses fewer than {bound.hosts} hosts: by {bound.reason}."
    if len(plan.used) <= bound.hosts:
        return f"{reason} This plan uses {len(plan.used)}: none has fewer."
    return (
        f"{reason} This plan uses {len(plan.used)}, at most {bound.gap:.1%} more than the best "
        f"there can be. More effort may find a better one (--effort above {plan.search.effort})."
    )


def _parts(hosts: Sequence[PlanHost], size: int) -> list[Sequence[PlanHost]]:
    return [hosts[at : at + size] for at in range(0, len(hosts), size)]


def _sides(plan: PlanFile) -> Table:
    before, after = plan.before, plan.after
    rows = [
        _side("machines", before.hosts, after.hosts),
        _side("rack units", before.rack_units, after.rack_units),
    ]
    for old, name in ((True, "old idle power"), (False, "new idle power")):
        one, other = _energy(before, old), _energy(after, old)
        share = f"{name}, {one.idle_share:.0%} of peak"
        rows += [
            _side(f"watts on average ({share})", one.watts, other.watts),
            _side(f"kWh a year with cooling ({share})", one.kwh_year, other.kwh_year),
            _side(f"{plan.currency} a year ({share})", one.money_year, other.money_year),
        ]
    bought = sum(host.bought for host in plan.hosts)
    price = "not known" if after.purchase is None else number(after.purchase)
    rows.append((f"{plan.currency} for {bought} hosts to buy", "", price, ""))
    return Table(("", "before", "after", "saved"), tuple(rows), frozenset({1, 2, 3}), (5, 2, 2, 1))


def _side(name: str, before: float, after: float) -> tuple[str, ...]:
    saved = f"{1 - after / before:.0%}" if before else ""
    return name, number(before), number(after), saved


def _hosts(plan: PlanFile) -> Table:
    moved = [name for name in TRAFFIC if any(name in host.shares for host in plan.hosts)]
    named = ("cpu", "memory", "disk", *moved)
    words = ("CPU", "memory", "disk", *(TRAFFIC[name] for name in moved))
    titles = ("host", "kind", "rack", "VMs", *words, "watts", "risk", "limit")
    count = len(named)
    rows = tuple(
        (
            host.name,
            host.kind + (", to buy" if host.bought else ""),
            host.rack,
            str(host.vms),
            *(_share(host, name) for name in named),
            number(host.watts),
            "" if host.forecast is None else percent(host.forecast.risk),
            host.limit,
        )
        for host in plan.hosts
    )
    widths = (6, 7, 4, 3, 3, 4, 3, *([4] * len(moved)), 3, 4, 15)
    return Table(titles, rows, frozenset(range(3, 6 + count)), widths)


def _share(host: PlanHost, name: str) -> str:
    return f"{host.shares[name]:.0%}" if name in host.shares else ""


def _forecasts(plan: PlanFile) -> Section:
    hosts = [host for host in plan.used if host.forecast is not None]
    text = (
        "CPU of each host over a day in its cores, by UTC: mean and highest of the measured days, "
        "what VMs may use (dashed) and what there is (line). The risk is the share of time in "
        "which there is too little, if each VM did what it did an hour earlier or later, or on "
        "another of the measured days."
    )
    if len(hosts) > MOST_FORECASTS:
        hosts.sort(key=lambda host: -(host.forecast.risk if host.forecast else 0.0))
        text += f" Of {len(hosts)} hosts the {MOST_FORECASTS} with the highest risk are shown."
        hosts = hosts[:MOST_FORECASTS]
    figures = tuple(draw_forecasts(part) for part in _parts(hosts, A_PAGE))
    return Section("Forecast of a day", (text,), figures=figures)


def _traffic(plan: PlanFile) -> list[Section]:
    """Return a section for each kind of traffic that a host limits, the fullest hosts first."""
    sections = []
    for name, words in TRAFFIC.items():
        hosts = [host for host in plan.used if name in host.traffic]
        if not hosts:
            continue
        text = f"{words[0].upper()}{words[1:]} of each host in MiB a second, as above for CPU."
        hosts.sort(key=lambda host: -host.shares.get(name, 0.0))
        if len(hosts) > MOST_FORECASTS:
            text += f" Of {len(hosts)} hosts the {MOST_FORECASTS} fullest are shown."
        parts = _parts(hosts[:MOST_FORECASTS], A_PAGE)
        figures = tuple(draw_forecasts(part, name) for part in parts)
        sections.append(Section(f"Forecast of {words}", (text,), figures=figures))
    return sections


def _vms(vms: Sequence[PlanVm]) -> Table:
    titles = ("VM", "host", "vCPUs", "had", "memory", "had", "why here", "why this size")
    rows = tuple(
        (
            vm.name,
            vm.host,
            str(vm.vcpus),
            str(vm.cores_before),
            format_size(vm.memory),
            format_size(vm.memory_before),
            vm.why_here,
            vm.why_size,
        )
        for vm in vms
    )
    return Table(titles, rows, frozenset({2, 3, 4, 5}), (5, 5, 3, 2, 4, 4, 20, 18))
