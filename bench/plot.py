"""Draws what the part ``many`` of the group clones measured, from a run's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_BLUE, _GREY, _ORANGE = "#1f5fa8", "#8a8a8a", "#c4601a"


def plot_clones(source: Path, target: Path) -> None:
    """Draw clones against seconds, memory and idle CPU. Raises ValueError without that series."""
    content = json.loads(source.read_text())
    rows: list[dict[str, float]] = content.get("series", {}).get("clones", [])
    looks = [row for row in rows if "memory" in row]
    if not looks:
        raise ValueError(f"{source} has no clones: run the part many first")
    # Slow to import, and needed for nothing else.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "hanok", "font.size": 10, "axes.grid": True})
    mpl.rcParams.update({"grid.color": "#dddddd", "axes.axisbelow": True})
    figure = Figure(figsize=(11, 3.8), layout="constrained", facecolor="white")
    seconds, memory, cpu = figure.subplots(1, 3)
    _draw_seconds(seconds, rows)
    _draw_memory(memory, looks)
    _draw_cpu(cpu, looks)
    for axes in (seconds, memory, cpu):
        axes.set_xlabel("running clones of micro, 256 MiB each")
        axes.set_xlim(0, max(row["clones"] for row in rows))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_caption(content["machine"]), fontsize=9, color="#444444")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def _draw_seconds(axes: Any, rows: list[dict[str, float]]) -> None:
    axes.set_title("Seconds for one more")
    values = [row["seconds"] for row in rows]
    axes.plot(_clones(rows), values, color=_BLUE, marker=".", linewidth=1.2)
    axes.set_ylim(top=1.25 * max(values))
    axes.set_ylabel("s, each of a batch of ten")


def _draw_memory(axes: Any, looks: list[dict[str, float]]) -> None:
    axes.set_title("Memory")
    sold = [row["memory_sold"] / _GIB for row in looks]
    taken = [row["memory"] / _GIB for row in looks]
    axes.plot(_clones(looks), sold, color=_GREY, linestyle="--", label="what the guests have")
    axes.plot(_clones(looks), taken, color=_BLUE, marker="o", label="what it takes (PSS)")
    each = looks[-1]["proportional"] / _MIB
    axes.annotate(
        f"{each:.0f} MiB a clone",
        (looks[-1]["clones"], taken[-1]),
        xytext=(-6, 8),
        textcoords="offset points",
        ha="right",
        color=_BLUE,
    )
    axes.set_ylabel("GiB")
    axes.legend(loc="upper left", frameon=False)


def _draw_cpu(axes: Any, looks: list[dict[str, float]]) -> None:
    axes.set_title("CPU while all are idle")
    machines = [100 * row["idle_cpu"] for row in looks]
    others = [100 * row["idle_cpu_others"] for row in looks]
    axes.plot(_clones(looks), machines, color=_BLUE, marker="o", label="the clones")
    axes.plot(_clones(looks), others, color=_ORANGE, marker="s", label="daemon and network")
    axes.set_ylabel("% of one core")
    axes.legend(loc="center left", frameon=False)


def _clones(rows: list[dict[str, float]]) -> list[float]:
    return [row["clones"] for row in rows]


def _caption(machine: dict[str, Any]) -> str:
    gib = machine["memory"] / _GIB
    return (
        f"{machine['cpus']} CPUs, {machine['cpu']}, {gib:.0f} GiB, Linux {machine['kernel']}, "
        f"QEMU {machine['qemu'].partition('version ')[2].partition(' ')[0]}"
    )
