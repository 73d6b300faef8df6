"""Samples of unlike intervals and spans come onto one grid, and no peak is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.consolidation.traces import (
    DAY,
    MOST_INTERVALS,
    Trace,
    choose_grid,
    fill_gaps,
    resample,
)

NONE = float("nan")


def trace(values: list[float], interval: float = 3_600.0, start: float = 0.0) -> Trace:
    return Trace(start, interval, np.array(values, np.float64))


def test_the_common_time_is_planned_on() -> None:
    one, other = trace([1.0] * 72), trace([2.0] * 72, start=6 * 3_600.0)
    grid = choose_grid([one, other])
    assert (grid.start, grid.interval, grid.count) == (6 * 3_600.0, 3_600.0, 66)
    assert not grid.folded


def test_times_that_do_not_meet_are_folded_onto_a_day() -> None:
    busy = [0.0] * 24
    busy[9] = 5.0
    march, april = trace(busy), trace([*busy, *busy], start=30 * DAY)
    grid = choose_grid([march, april])
    assert grid.folded
    assert (grid.interval, grid.count) == (3_600.0, 24)
    for one in (march, april):
        assert resample(one, grid)[9] == 5.0
        assert resample(one, grid).sum() == 5.0


def test_short_measurements_at_the_same_time_stay_as_they_are() -> None:
    grid = choose_grid([trace([1.0] * 24, 300.0), trace([1.0] * 23, 300.0)])
    assert not grid.folded
    assert grid.count == 23


def test_finer_samples_are_averaged_and_longer_ones_held() -> None:
    fine = trace([1.0, 3.0] * 1_440, 60.0)
    coarse = trace([4.0, 8.0] * 24, 3_600.0)
    grid = choose_grid([fine, coarse])
    assert grid.interval == 300.0
    assert resample(fine, grid)[:2] == pytest.approx([1.8, 2.2])
    assert set(resample(coarse, grid)) == {4.0, 8.0}


def test_a_long_time_is_planned_in_longer_intervals_that_keep_peaks() -> None:
    values = [1.0] * 8_640  # thirty days at five minutes
    values[5_000] = 9.0
    grid = choose_grid([trace(values, 300.0)])
    assert grid.interval == 1_800.0
    assert grid.count <= MOST_INTERVALS
    assert resample(trace(values, 300.0), grid).max() == pytest.approx(9.0)


def test_gaps_are_filled_by_what_is_beside_or_by_other_days() -> None:
    short = trace([1.0, NONE, 3.0, 1.0], 900.0)
    assert fill_gaps(short).tolist() == [1.0, 3.0, 3.0, 1.0]
    day = [float(hour) for hour in range(24)]
    gap = [*day[:8], *[NONE] * 6, *day[14:]]
    assert fill_gaps(trace([*day, *gap])).tolist() == [*day, *day]
    lonely = fill_gaps(trace([1.0] * 10 + [NONE] * 5 + [2.0] * 9))
    assert lonely[10:15].tolist() == pytest.approx([2.0] * 5)
    assert fill_gaps(trace([NONE] * 4)).tolist() == [0.0] * 4


def test_no_trace_and_no_common_start() -> None:
    assert choose_grid([]).count == 24
    odd = trace([1.0] * 49, start=700.0)
    grid = choose_grid([odd])
    assert grid.start == 3_600.0
    assert grid.start + grid.count * grid.interval <= odd.end


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(0, 64, width=32), min_size=30, max_size=120),
    st.sampled_from([60.0, 300.0, 900.0, 3_600.0]),
    st.integers(0, 5_000),
    st.booleans(),
)
def test_what_is_resampled_lies_between_the_samples(
    values: list[float], interval: float, start: int, fold: bool
) -> None:
    one = trace(values, interval, float(start))
    grid = choose_grid([one], fold=fold)
    found = resample(one, grid)
    assert found.size == grid.count
    assert np.isfinite(found).all()
    assert found.min() >= min(values) - 1e-6
    assert found.max() <= max(values) + 1e-6
