"""What a table tells of measured servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hanok.model.usage import Metric, Usage

_HIGH = 0.95


@dataclass(frozen=True)
class Level:
    """Peak, mean and 95th percentile of a metric, in its unit."""

    peak: float
    mean: float
    p95: float


def level(series: Sequence[float | None]) -> Level | None:
    """Return the level of a series, gaps left out; None when all of it is gaps.

    The percentile is the smallest value that at least 95 % of all values do not exceed (nearest
    rank), so it is a value that was measured.
    """
    known = sorted(value for value in series if value is not None)
    if not known:
        return None
    rank = max(0, math.ceil(_HIGH * len(known)) - 1)
    return Level(known[-1], math.fsum(known) / len(known), known[rank])


@dataclass(frozen=True)
class Summary:
    """One server: ``span`` in seconds, ``gaps`` the share of intervals in which CPU is not known.

    Where there is no CPU at all, of any metric.
    """

    usage: Usage
    span: float
    gaps: float
    cpu: Level | None
    memory: Level | None


def summarize(usage: Usage) -> Summary:
    """Return what is to be told of ``usage``."""
    metric = Metric.CPU if Metric.CPU in usage.samples else next(iter(usage.samples), None)
    gaps = usage.gaps(metric) / usage.length if metric is not None and usage.length else 0.0
    return Summary(
        usage=usage,
        span=usage.length * usage.interval,
        gaps=gaps,
        cpu=level(usage.samples.get(Metric.CPU, ())),
        memory=level(usage.samples.get(Metric.MEMORY, ())),
    )
