"""The figures of a report, by matplotlib: as SVG for HTML, as PNG for PDF; the same each time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hanok.model.plan import Forecast, PlanFile, PlanHost, Traffic
from hanok.units import MIB

BEFORE, AFTER, BAND = "#94a3b8", "#0f766e", "#99d5cf"
ROOM, CAPACITY, INK, FAINT = "#d97706", "#b91c1c", "#1f2937", "#e5e7eb"
RESOURCES = (
    ("cpu", "CPU", "#0f766e", "o"),
    ("memory", "memory", "#7c3aed", "s"),
    ("disk", "disk", "#d97706", "D"),
    ("vcpus", "vCPUs", "#64748b", "v"),
    ("disk_io", "disk traffic", "#b45309", "^"),
    ("network_in", "received", "#2563eb", "<"),
    ("network_out", "sent", "#0891b2", ">"),
)
COLUMNS = 3
WIDTH = 10.5
RISKY = 0.01
DPI = 170
PLACES = 5  # digits of a place in a figure, whose width is 1
_STYLE: Any = {  # matplotlib has a type with every name there is
    "font.size": 9.0,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "text.color": INK,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hanok",
}


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is written, with words for those who cannot see it."""

    alt: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]

    @property
    def ratio(self) -> float:
        """Its height as a share of its width."""
        return self.size[1] / self.size[0]

    def svg(self) -> str:
        """Return it as an SVG element."""
        text = self._save("svg").decode()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        """Return it as a PNG file."""
        return self._save("png")

    def _save(self, kind: str) -> bytes:
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        target = io.BytesIO()
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            self.draw(figure)
            _settle(figure)
            figure.savefig(target, format=kind, dpi=DPI, metadata=metadata)
        return target.getvalue()


def _settle(figure: Figure) -> None:
    """Lay ``figure`` out and round its places, so that the same plan gives the same bytes.

    The solver of the layout goes through its variables in the order of their addresses: the last
    bits of what it finds differ from run to run, and matplotlib names clip paths by all bits.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(at, PLACES) for at in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def draw_sides(plan: PlanFile) -> Drawing:
    """Return machines, rack units, watts, kWh and money before and after."""
    before, after = plan.before, plan.after
    counts = [
        ("machines", [before.hosts], [after.hosts]),
        ("rack units", [before.rack_units], [after.rack_units]),
    ]
    pairs = [
        ("watts", "watts"),
        ("kWh a year", "kwh_year"),
        (f"{plan.currency} a year", "money_year"),
    ]
    energy = [
        (
            title,
            [getattr(before.old_idle, name), getattr(before.new_idle, name)],
            [getattr(after.old_idle, name), getattr(after.new_idle, name)],
        )
        for title, name in pairs
    ]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 5, width_ratios=[1, 1, 1.7, 1.7, 1.7])
        for at, (title, one, other) in zip(axes, [*counts, *energy], strict=True):
            _bars(at, title, one, other)

    alt = "Machines, rack units, watts, kWh and money before and after"
    return Drawing(alt, (WIDTH, 2.5), draw)


def _bars(axes: Axes, title: str, before: Sequence[float], after: Sequence[float]) -> None:
    """Draw one or two pairs of bars: with two, by old and by new idle power."""
    names = [""] if len(before) == 1 else ["old idle\npower", "new idle\npower"]
    for at, (one, other) in enumerate(zip(before, after, strict=True)):
        for shift, value, colour in ((-0.2, one, BEFORE), (0.2, other, AFTER)):
            axes.bar(at + shift, value, width=0.36, color=colour)
            axes.text(at + shift, value, _short(value), ha="center", va="bottom", fontsize=8)
    axes.set_title(title, pad=10)
    if len(before) == 1:
        axes.set_xticks([-0.2, 0.2], ["before", "after"])
    else:
        axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.12)


def _short(value: float) -> str:
    for size, ending in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e6 if ending == 'M' else 1e3):.3g}{ending}"
    return f"{value:,.0f}"


def draw_shares(hosts: Sequence[PlanHost]) -> Drawing:
    """Return how much of each resource is used on each host."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, label, colour, marker in RESOURCES:
            places = [at for at, host in enumerate(hosts) if name in host.shares]
            shares = [100 * hosts[at].shares[name] for at in places]
            if places:
                axes.scatter(shares, places, c=colour, marker=marker, label=label, s=34, zorder=3)
        axes.hlines(range(len(hosts)), 0, 100, color=FAINT, linewidth=1, zorder=1)
        axes.axvline(100, color=CAPACITY, linewidth=1)
        axes.set_yticks(range(len(hosts)), [host.name for host in hosts])
        axes.set_ylim(len(hosts) - 0.4, -0.6)
        axes.set_xlim(0, 104)
        axes.set_xlabel("% of what VMs may use")
        figure.legend(loc="outside upper right", ncols=len(RESOURCES), frameon=False)

    size = (WIDTH, 0.9 + 0.26 * len(hosts))
    return Drawing("What is used of each resource on each host", size, draw)


def draw_forecasts(hosts: Sequence[PlanHost], traffic: Traffic | None = None) -> Drawing:
    """Return the days of some hosts, beside and below each other: of CPU, or of ``traffic``."""
    rows = -(-len(hosts) // COLUMNS)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= len(hosts):
                axes.set_visible(False)
                continue
            host = hosts[number]
            forecast = host.forecast if traffic is None else host.traffic.get(traffic)
            if forecast is not None:
                _day(axes, host.name, forecast, 1.0 if traffic is None else MIB)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False)

    names = ", ".join(host.name for host in hosts)
    what = "CPU" if traffic is None else traffic.replace("_", " ")
    return Drawing(f"{what} over a day on {names}", (WIDTH, 0.5 + 1.75 * rows), draw)


def _day(axes: Axes, name: str, forecast: Forecast, unit: float) -> None:
    hours = [at * forecast.step / 3_600 for at in range(len(forecast.mean))]
    mean = [float("nan") if value is None else value / unit for value in forecast.mean]
    high = [float("nan") if value is None else value / unit for value in forecast.high]
    room, capacity = forecast.room / unit, forecast.capacity / unit
    axes.fill_between(hours, mean, high, color=BAND, linewidth=0, label="up to the highest")
    axes.plot(hours, mean, color=AFTER, linewidth=1.4, label="mean")
    axes.axhline(room, color=ROOM, linewidth=1, linestyle="--", label="may be used")
    axes.axhline(capacity, color=CAPACITY, linewidth=1, label="there is")
    risk = forecast.risk * 100
    text = "<0.01 %" if 0 < risk < 0.01 else f"{risk:.2f} %"
    axes.set_title(name, loc="left")
    colour = CAPACITY if forecast.risk > RISKY else "#4b5563"
    axes.set_title(f"risk {text}", loc="right", fontsize=8, fontweight="normal", color=colour)
    axes.set_xlim(0, 24)
    axes.set_xticks([0, 6, 12, 18, 24])
    highest = max([capacity, *(value / unit for value in forecast.high if value is not None)])
    axes.set_ylim(0, highest * 1.08)
