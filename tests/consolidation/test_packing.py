"""Vector bin packing: answers are right, bounds are below them, effort repeats itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.consolidation.bounds import conflict_bound, quick_bound, threshold_bound, volume_bound
from hanok.consolidation.checker import check_packing
from hanok.consolidation.greedy import greedy_packings
from hanok.consolidation.meter import Meter
from hanok.consolidation.packing import pack
from hanok.consolidation.vectors import Packing, PackingProblem
from hanok.errors import InvalidInput


@st.composite
def problems(draw: st.DrawFn, most: int = 14, least_size: int = 0) -> PackingProblem:
    """Draw a problem of one to three dimensions."""
    dimensions = draw(st.integers(1, 3))
    capacity = draw(st.lists(st.integers(1, 30), min_size=dimensions, max_size=dimensions))
    items = draw(
        st.lists(
            st.tuples(*(st.integers(least_size, most_) for most_ in capacity)),
            min_size=1,
            max_size=most,
        )
    )
    return PackingProblem(np.array(items), np.array(capacity))


def _faults(problem: PackingProblem, bins: np.ndarray) -> tuple[object, ...]:
    sizes = [[int(x) for x in row] for row in problem.sizes]
    return check_packing(sizes, [int(x) for x in problem.capacity], [int(b) for b in bins])


@settings(max_examples=60, deadline=None)
@given(problems())
def test_answers_are_right_and_never_below_a_bound(problem: PackingProblem) -> None:
    shown: list[Packing] = []
    packing = pack(problem, Meter(steps=20_000), show=shown.append)
    assert _faults(problem, packing.bins) == ()
    assert packing.count == len(set(packing.bins.tolist()))
    counts = [one.count for one in shown]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == packing.count
    for bound in (volume_bound, threshold_bound, conflict_bound):
        assert bound(problem).bins <= packing.count


@settings(max_examples=40, deadline=None)
@given(problems(most=6, least_size=-3))
def test_small_problems_are_solved_as_by_trying_all(problem: PackingProblem) -> None:
    best = _by_trying_all(problem)
    packing = pack(problem, Meter(steps=50_000))
    assert packing.count == best
    assert quick_bound(problem).bins <= best


def _by_trying_all(problem: PackingProblem) -> int:
    n = problem.count
    for count in range(1, n + 1):
        for bins in itertools.product(range(count), repeat=n):
            loads = np.zeros((count, problem.capacity.size))
            np.add.at(loads, list(bins), problem.sizes)
            if (loads <= problem.capacity).all():
                return len(set(bins))
    raise AssertionError("one bin an item always works")


@settings(max_examples=30, deadline=None)
@given(problems(most=25))
def test_every_heuristic_packs(problem: PackingProblem) -> None:
    for bins in greedy_packings(problem):
        assert _faults(problem, bins) == ()


def _random_problem(seed: int, items: int = 60) -> PackingProblem:
    random = np.random.default_rng(seed)
    return PackingProblem(
        random.integers(5, 60, (items, 3)).astype(float), np.array([100, 100, 100])
    )


def test_the_same_effort_and_seed_give_the_same_answer() -> None:
    problem = _random_problem(1)
    first, second = (pack(problem, Meter(steps=3_000_000), seed=4) for _ in range(2))
    assert first.bins.tolist() == second.bins.tolist()
    assert first.steps == second.steps


def test_a_search_ends_when_it_is_stopped_or_its_time_is_over() -> None:
    problem = _random_problem(2)
    stopped = pack(problem, Meter(stop=lambda: True))
    assert _faults(problem, stopped.bins) == ()
    assert stopped.steps == 0
    ticks = itertools.count()
    timed = pack(problem, Meter(seconds=50, clock=lambda: float(next(ticks))))
    assert timed.count <= stopped.count


def test_more_effort_finds_a_packing_without_any_slack() -> None:
    """Triplets that fill each bin to the last unit in all dimensions."""
    random = np.random.default_rng(5)
    pairs = random.integers(20, 40, (15, 2, 3))
    sizes = np.concatenate([pairs.reshape(-1, 3), 100 - pairs.sum(axis=1)])
    packing = pack(PackingProblem(sizes, np.array([100, 100, 100])), Meter(steps=20_000_000))
    assert packing.is_perfect
    assert packing.count == 15
    assert packing.gap == 0.0


@pytest.mark.parametrize(
    ("sizes", "capacity", "field"),
    [
        ([[1.5]], [2], "sizes"),
        ([[float("nan")]], [2], "sizes"),
        ([[-1e308]], [2], "sizes"),
        ([[1]], [-2], "capacity"),
        ([[1, 2]], [3], "sizes"),
        ([[1, 2], [1, 9]], [3, 3], "sizes.1"),
        ([[-1]], [0], "sizes"),
        ([[2**49]] * 3, [2**50], "sizes"),
    ],
)
def test_what_is_no_problem_is_refused(
    sizes: list[list[float]], capacity: list[float], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        PackingProblem(np.array(sizes), np.array(capacity))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("sizes", "capacity", "bins"), [([], [5], 0), ([[0], [0]], [0], 1), ([[0], [0]], [3], 1)]
)
def test_items_that_take_nothing(sizes: list[list[int]], capacity: list[int], bins: int) -> None:
    packing = pack(PackingProblem(np.array(sizes), np.array(capacity)), Meter(steps=1000))
    assert packing.count == bins
    assert packing.is_perfect


def test_the_checker_finds_planted_faults() -> None:
    sizes, capacity = [[3, 1], [3, 1], [3, 1]], [6, 6]
    assert check_packing(sizes, capacity, [0, 0, 1]) == ()
    assert [fault.rule for fault in check_packing(sizes, capacity, [0, 0, 0])] == ["capacity"]
    assert [fault.rule for fault in check_packing(sizes, capacity, [0, -1, 0])] == ["complete"]
    assert [fault.rule for fault in check_packing(sizes, capacity, [0, 1])] == ["complete"]
