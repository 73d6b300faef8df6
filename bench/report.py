"""Figures, what was promised of them, and how both are shown."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.machine import describe_machine


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``limit`` is what docs/SPECIFICATION.md promises at most."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    samples: tuple[float, ...] = ()
    remark: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.limit is None or self.value <= self.limit


@dataclass
class Report:
    """What a run measured: figures, and series for plots (rows of numbers by name)."""

    figures: list[Figure] = field(default_factory=list)
    series: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        """Add a figure."""
        self.figures.append(figure)

    def median(
        self,
        name: str,
        samples: Sequence[float],
        unit: str = "s",
        *,
        limit: float | None = None,
        remark: str = "",
    ) -> float:
        """Add the median of ``samples`` and return it."""
        value = statistics.median(samples)
        self.add(Figure(name, value, unit, limit, tuple(samples), remark))
        return value

    @property
    def kept(self) -> bool:
        """Whether every promise is kept."""
        return all(figure.kept for figure in self.figures)

    def write(self, folder: Path) -> Path:
        """Write the figures as JSON, beside what the machine is; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"
        content = {
            "machine": describe_machine(),
            "figures": [{**asdict(figure), "kept": figure.kept} for figure in self.figures],
            "series": self.series,
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path

    def show(self, console: Console) -> None:
        """Print the figures as a table."""
        table = Table("what", "median", "spread", "at most", "", "remark")
        for figure in self.figures:
            table.add_row(
                figure.name,
                _text(figure.value, figure.unit),
                _spread(figure),
                "" if figure.limit is None else _text(figure.limit, figure.unit),
                "" if figure.limit is None else ("kept" if figure.kept else "BROKEN"),
                figure.remark,
            )
        console.print(table)


def _text(value: float, unit: str) -> str:
    digits = {"MiB": 0, "%": 1, "": 0}.get(unit, 2 if value >= 1 else 3)
    return f"{value:.{digits}f} {unit}".rstrip()


def _spread(figure: Figure) -> str:
    if len(figure.samples) < 2:
        return ""
    return f"{min(figure.samples):.2f} to {max(figure.samples):.2f}, n={len(figure.samples)}"
