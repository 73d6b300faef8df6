"""Samples of different servers on one grid of time.

**The grid.** Where all servers were measured at the same time for at least a day (or for nearly all
of a shorter time), that common time is planned on, as it was: what peaked together still does.
Otherwise each is folded onto one day, by UTC time of day, and each time of day holds the highest
load that was seen at it: who was measured last month still peaks at its hour.

**Intervals.** 5 minutes, or the finest interval measured if that is longer. Finer samples are
averaged, longer ones held. Long times are planned in longer intervals, at most 2,016 of them (a
week at 5 minutes), each with the *highest* of its averages: no peak is averaged away.

**Gaps.** Up to an hour: the higher of the samples beside it. Longer: the highest at the same time
of other days; where there is none, the 95th percentile of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.vectors import Floats

DAY = 86_400.0
FINEST = 300.0
INTERVALS = (300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0)
MOST_INTERVALS = 2_016
SHORT_GAP = 3_600.0
NEARLY_ALL = 0.9
UNSEEN_PERCENTILE = 95.0


@dataclass(frozen=True, eq=False)
class Trace:
    """Samples from ``start`` (seconds since 1970, UTC), one every ``interval`` s; NaN is a gap."""

    start: float
    interval: float
    values: Floats

    @property
    def end(self) -> float:
        """When the last sample ends."""
        return self.start + self.interval * self.values.size

    @property
    def missing(self) -> float:
        """The share of samples that are gaps."""
        return float(np.isnan(self.values).mean()) if self.values.size else 1.0


@dataclass(frozen=True)
class Grid:
    """``count`` intervals of ``interval`` s from ``start``; ``folded``: they are times of a day."""

    start: float
    interval: float
    count: int
    folded: bool = False

    @property
    def times_of_day(self) -> Floats:
        """The second of the UTC day at which each interval starts."""
        times = self.start + self.interval * np.arange(self.count, dtype=np.float64)
        wrapped: Floats = np.mod(times, DAY)
        return wrapped

    @property
    def days(self) -> float:
        """How many days the grid spans."""
        return self.count * self.interval / DAY


def choose_grid(traces: Sequence[Trace], *, fold: bool = False) -> Grid:
    """Return the grid of ``traces`` as the module says; ``fold`` wants one day in any case."""
    if not traces:
        return Grid(0.0, 3_600.0, 24, folded=True)
    finest = max(FINEST, min(trace.interval for trace in traces))
    start = max(trace.start for trace in traces)
    common = min(trace.end for trace in traces) - start
    longest = max(trace.end - trace.start for trace in traces)
    is_common = common >= DAY or (common >= NEARLY_ALL * longest and common >= 2 * finest)
    if fold or not is_common:
        interval = next((one for one in INTERVALS if one >= finest), INTERVALS[-1])
        return Grid(0.0, interval, round(DAY / interval), folded=True)
    wanted = [finest, *(one for one in INTERVALS if one > finest and one % finest == 0)]
    interval = next((one for one in wanted if common / one <= MOST_INTERVALS), wanted[-1])
    first = np.ceil(round(start / interval, 6)) * interval
    count = int((start + common - first) / interval + 1e-9)
    if count < 1:
        first, count = start, 1
    return Grid(float(first), interval, min(count, MOST_INTERVALS))


def resample(trace: Trace, grid: Grid) -> Floats:
    """Return ``trace`` on ``grid``, with its gaps filled. A trace without a sample is all zero."""
    filled = fill_gaps(trace)
    if grid.folded:
        return _fold(Trace(trace.start, trace.interval, filled), grid)
    fine = max(FINEST, trace.interval) if grid.interval > FINEST else grid.interval
    parts = max(1, int(grid.interval / fine + 1e-9))
    step = grid.interval / parts
    means = _means(filled, trace, grid.start, step, grid.count * parts)
    highest: Floats = means.reshape(grid.count, parts).max(axis=1)
    return highest


def fill_gaps(trace: Trace) -> Floats:
    """Return the samples without gaps, as the module says."""
    values = trace.values.astype(np.float64, copy=True)
    gaps = np.isnan(values)
    if not gaps.any():
        return values
    if gaps.all():
        return np.zeros(values.size)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], gaps, [False]]).astype(np.int8)))
    usual = float(np.percentile(values[~gaps], UNSEEN_PERCENTILE))
    by_time = _highest_by_time(trace, gaps)
    for first, end in edges.reshape(-1, 2):
        beside = [values[at] for at in (first - 1, end) if 0 <= at < values.size]
        if (end - first) * trace.interval <= SHORT_GAP:
            values[first:end] = max(beside)
        else:
            other = by_time[np.arange(first, end) % by_time.size]
            values[first:end] = np.where(np.isnan(other), usual, other)
    return values


def _highest_by_time(trace: Trace, gaps: NDArray[np.bool_]) -> Floats:
    """Return the highest sample at each time of day, NaN where there is none."""
    per_day = max(1, round(DAY / trace.interval))
    slots = np.full(per_day, -np.inf)
    where = np.flatnonzero(~gaps)
    np.maximum.at(slots, where % per_day, trace.values[where])
    return np.where(np.isneginf(slots), np.nan, slots)


def _means(filled: Floats, trace: Trace, start: float, step: float, count: int) -> Floats:
    """Return the mean of each of ``count`` steps from ``start``, held beyond the ends."""
    sums = np.concatenate([[0.0], np.cumsum(filled)]) * trace.interval
    times = trace.start + trace.interval * np.arange(filled.size + 1)
    edges = np.clip(start + step * np.arange(count + 1), times[0], times[-1])
    widths = np.diff(edges)
    means = np.diff(np.interp(edges, times, sums)) / np.where(widths > 0, widths, 1.0)
    nearest = np.clip(((edges[:-1] - trace.start) / trace.interval).astype(int), 0, filled.size - 1)
    # A difference of sums can come out a hair below nothing.
    held: Floats = np.where(widths > 0, np.maximum(means, 0.0), filled[nearest])
    return held


def _fold(trace: Trace, grid: Grid) -> Floats:
    """Return the highest mean of each time of day; times never seen hold the 95th percentile."""
    first = np.floor(trace.start / grid.interval)
    count = int(np.ceil(trace.end / grid.interval) - first)
    means = _means(trace.values, trace, float(first * grid.interval), grid.interval, count)
    slots = np.full(grid.count, -np.inf)
    np.maximum.at(slots, ((first + np.arange(count)) % grid.count).astype(int), means)
    usual = float(np.percentile(trace.values, UNSEEN_PERCENTILE))
    return np.where(np.isneginf(slots), usual, slots)
