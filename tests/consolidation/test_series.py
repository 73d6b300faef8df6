"""The hot loops of packing loads over time say what plain arithmetic says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.consolidation.anneal import draw
from hanok.consolidation.series import NO_LIMIT, exchanged, overload, partner

INTERVALS = 130
"""More than a block."""


def _plain(load: np.ndarray, capacity: np.ndarray, times: int, exceptions: int) -> int:
    over = np.maximum(load.astype(np.int64) - capacity, 0)
    total = 7 * int(over[times:].sum())
    for start in range(0, times, INTERVALS):
        part = over[start : start + INTERVALS]
        total += int(part.sum()) if int((part > 0).sum()) > exceptions else 0
    return total


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2), st.integers(0, 60), st.floats(0, 1.2))
def test_overload_is_the_sum_of_what_is_over(
    seed: int, resources: int, exceptions: int, share: float
) -> None:
    random = np.random.default_rng(seed)
    times = resources * INTERVALS
    load, away, back = random.integers(0, 3_000_000, (3, times + 2)).astype(np.int32)
    away = np.minimum(away, load)
    capacity = np.full(times + 2, 3_000_000, np.int32)
    rest = (times, INTERVALS, exceptions, 7)
    whole = _plain(load - away + back, capacity, times, exceptions)
    assert exchanged(load, capacity, away, back, *rest, NO_LIMIT) == whole
    assert overload(load, capacity, *rest) == _plain(load, capacity, times, exceptions)
    limit = int(share * whole)
    found = exchanged(load, capacity, away, back, *rest, limit)
    assert found == whole if whole <= limit else found > limit


@given(st.integers(1, 2_000), st.integers(0, 2**32))
def test_partners_are_items_and_mostly_near(n: int, seed: int) -> None:
    random = np.array([seed + 1], np.uint64)
    i = int(draw(random) * n)
    near = max(0.02 * n, 30.0)
    found = [partner(i, n, near, random) for _ in range(50)]
    assert min(found) >= 0
    assert max(found) < n
    if n > 100:
        assert sum(abs(k - i) <= near / 2 for k in found) > 25
