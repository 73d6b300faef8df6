"""From samples to one value an interval: nothing invented, no peak flattened, order no matter."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.assess import grid
from hanok.assess.findings import Notes
from hanok.assess.grid import Track, first_and_last, on_grid, phase, spans, tidy, usual_step

BEGIN = 1_700_000_100.0  # a multiple of 300


def track_of(samples: list[tuple[float, float]], length: float = 0.0) -> Track:
    """Return a track of (end, value)."""
    track = Track()
    for end, value in samples:
        track.add(end, value, length)
    return track


def gridded(track: Track, interval: float | None = None) -> tuple[int, list[float | None]]:
    """Return the number of the first interval, and all values."""
    tidied = tidy(track, Notes())
    step = usual_step(tidied) or 300.0
    found = spans(tidied, step)
    every = interval or step
    shift = phase(found, every)
    first, last = first_and_last(found, every, shift)
    return first, on_grid(found, every, shift, first, last - first + 1)


def regular(values: list[float], offset: float = 0.0, step: float = 300.0) -> Track:
    """Return samples at a step, the first of which begins ``offset`` after BEGIN."""
    return track_of([(BEGIN + offset + (at + 1) * step, value) for at, value in enumerate(values)])


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50), st.floats(-149, 149))
def test_whatever_its_phase_a_regular_series_is_kept_as_it_is(
    values: list[float], offset: float
) -> None:
    first, found = gridded(regular(values, offset))
    assert found == pytest.approx(values)
    assert abs(first * 300 - BEGIN) <= 300


@given(st.data())
def test_order_and_repetition_do_not_matter(data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.integers(1, 400), min_size=3, max_size=60, unique=True))
    samples = [(BEGIN + 60.0 * end, float(end % 7)) for end in ends]
    tidy_first = gridded(track_of(sorted(samples)))
    mixed = [*samples, *samples[:2]]
    random.Random(data.draw(st.integers(0, 99))).shuffle(mixed)
    assert gridded(track_of(mixed)) == tidy_first


@given(st.data())
def test_a_value_is_never_beyond_what_was_measured(data: st.DataObject) -> None:
    samples = data.draw(
        st.lists(
            st.tuples(st.floats(BEGIN, BEGIN + 9000), st.floats(0, 50)), min_size=2, max_size=60
        )
    )
    interval = data.draw(st.sampled_from([1.0, 10.0, 60.0, 300.0, 3600.0]))
    _, found = gridded(track_of(samples), interval)
    known = [value for value in found if value is not None]
    values = [value for _, value in samples]
    assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for value in known)


@given(st.lists(st.floats(0, 100), min_size=20, max_size=60), st.sets(st.integers(1, 18)))
def test_what_is_missing_is_a_gap_and_nothing_else_is(
    values: list[float], missing: set[int]
) -> None:
    kept = [(BEGIN + (at + 1) * 300, value) for at, value in enumerate(values) if at not in missing]
    if len(kept) < 16:  # fewer, and the usual distance is no longer that of samples
        return
    _, found = gridded(track_of(kept), 300.0)
    assert {at for at, value in enumerate(found) if value is None} == missing


@given(st.lists(st.floats(-4, 4), min_size=10, max_size=100))
def test_jitter_makes_no_gaps(jitter: list[float]) -> None:
    samples = [(BEGIN + (at + 1) * 60 + late, 1.0) for at, late in enumerate(jitter)]
    _, found = gridded(track_of(samples), 60.0)
    assert set(found) == {1.0}


def test_finer_samples_are_averaged_and_half_an_interval_is_enough() -> None:
    minute = [(BEGIN + 60.0 * (at + 1), float(at)) for at in range(8)]
    assert gridded(track_of(minute), 300.0)[1] == [2.0, 6.0]
    assert gridded(track_of(minute[:7]), 300.0)[1] == [2.0, None]


def test_coarser_samples_fill_what_they_are_about() -> None:
    track = track_of([(BEGIN + 900, 5.0)], length=900)
    track.add(BEGIN + 1200, 1.0, 300)
    assert gridded(track, 300.0) == (int(BEGIN // 300), [5.0, 5.0, 5.0, 1.0])


def test_merged_samples_do_not_hide_the_usual_length() -> None:
    track = track_of([(BEGIN + 9000, 0.0), (BEGIN + 20000, 0.0)], length=9000)
    for at in range(3):
        track.add(BEGIN + 20300 + at * 300, 1.0, 300.5)
    assert usual_step(tidy(track, Notes())) == 300


@pytest.mark.parametrize(
    ("step", "usual"), [(299.6, 300), (10.04, 10), (61, 60), (47, 47), (0.2, 1), (86399, 86400)]
)
def test_usual_steps_are_taken_for_nearly_usual_ones(step: float, usual: float) -> None:
    track = track_of([(BEGIN + at * step, 0.0) for at in range(5)])
    assert usual_step(track) == usual


def test_a_single_sample_tells_no_step() -> None:
    assert usual_step(track_of([(BEGIN, 1.0)])) is None


def test_what_tidying_finds_is_counted() -> None:
    notes = Notes()
    samples = [(3.0, 1.0), (1.0, 1.0), (2.0, 5.0), (2.0, 7.0), (3.0, 1.0)]
    tidied = tidy(track_of(samples), notes)
    assert list(zip(tidied.ends, tidied.values, strict=True)) == [
        (1.0, 1.0),
        (2.0, 7.0),
        (3.0, 1.0),
    ]
    counts = {one.code: one.count for one in notes.findings()}
    assert counts == {"unordered": 1, "duplicates": 1, "conflicts": 1}


def test_overlapping_lengths_are_cut_so_that_work_stays_bounded() -> None:
    track = track_of([(BEGIN + at, 1.0) for at in range(1000)], length=1e12)
    found = spans(tidy(track, Notes()), 1.0)
    assert sum(span.length for span in found[1:]) == 999


@given(
    st.lists(st.tuples(st.floats(1, 2000), st.floats(0, 5000)), min_size=1, max_size=40),
    st.sampled_from([1.0, 60.0, 300.0]),
    st.floats(-0.5, 0.5),
)
def test_the_first_and_the_last_span_tell_where_all_are(
    steps: list[tuple[float, float]], interval: float, shift: float
) -> None:
    """Each step is (after how long the next sample ends, how long it is about)."""
    track, end = Track(), BEGIN
    for after, length in steps:
        end += after
        track.add(end, 1.0, length)
    found = spans(track, 300.0)
    first, last = first_and_last(found, interval, shift * interval)
    cells = [grid._cells(span, interval, shift * interval) for span in found]
    assert first == min(one.start for one in cells if one)
    assert last == max(one.stop for one in cells if one) - 1
