"""A host's day as its VMs' loads add up to it, and the risk that they want more than there is.

A plan fits the loads as they were measured. The risk asks how much of that is luck: each VM does
what it did, but up to an hour earlier or later, and on another of the measured days, by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hanok.consolidation.request import Series
from hanok.consolidation.traces import DAY, Grid
from hanok.consolidation.vectors import Floats, Ints

STEP = 900.0
SHIFT = 3_600.0
MOST_DRAWS, LEAST_DRAWS = 64, 4
WORK = 2_000_000
"""Additions a host, about: fewer draws for longer series and more VMs."""


@dataclass(frozen=True, eq=False)
class Day:
    """Mean and highest load by time of day, one entry every ``step`` s; NaN was not measured.

    ``risk`` and ``overload`` are shares of time above the capacity: as drawn, and as measured.
    """

    step: float
    mean: Floats
    high: Floats
    risk: float
    overload: float


def forecast(loads: Sequence[Series], grid: Grid, capacity: float, seed: int = 0) -> Day:
    """Return the day of a host on which ``loads`` (cores) have ``capacity`` cores."""
    table = np.array(loads, np.float32).reshape(len(loads), grid.count)
    total = table.sum(axis=0, dtype=np.float64)
    step, mean, high = by_time_of_day(total, grid)
    over = float((total > capacity * (1 + 1e-9)).mean()) if loads else 0.0
    return Day(step, mean, high, _risk(table, grid, capacity, seed), over)


def by_time_of_day(total: Floats, grid: Grid) -> tuple[float, Floats, Floats]:
    """Return the step, and mean and highest of ``total`` at each time of day."""
    step = max(STEP, grid.interval)
    count = max(1, round(DAY / step))
    slots = (grid.times_of_day / step).astype(int) % count
    seen = np.bincount(slots, minlength=count)
    sums = np.bincount(slots, weights=total, minlength=count)
    high = np.full(count, -np.inf)
    np.maximum.at(high, slots, total)
    with np.errstate(invalid="ignore"):
        mean = np.where(seen > 0, sums / np.maximum(seen, 1), np.nan)
    return step, mean, np.where(seen > 0, high, np.nan)


def _risk(table: Series, grid: Grid, capacity: float, seed: int) -> float:
    vms, count = table.shape
    if not vms:
        return 0.0
    draws = int(np.clip(WORK // max(1, vms * count), LEAST_DRAWS, MOST_DRAWS))
    random = np.random.default_rng(seed)
    shift = max(0, int(SHIFT / grid.interval))
    per_day = round(DAY / grid.interval)
    days = 1 if grid.folded else max(1, count // per_day)
    over = 0
    for _ in range(draws):
        by: Ints = random.integers(-shift, shift + 1, (vms, 1))
        if days > 1:
            by = by + per_day * random.integers(0, days, (vms, 1))
        places = (np.arange(count) - by) % count
        total = np.take_along_axis(table, places, axis=1).sum(axis=0, dtype=np.float64)
        over += int((total > capacity * (1 + 1e-9)).sum())
    return float(over / (draws * count))
