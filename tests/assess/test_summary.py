"""What a table tells of a server."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.assess.summary import level, summarize
from hanok.model.usage import Metric, Usage


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=300))
def test_the_percentile_is_the_least_value_that_nearly_all_keep_to(
    series: list[float | None],
) -> None:
    known = [value for value in series if value is not None]
    found = level(series)
    if found is None:
        assert known == []
        return
    assert found.p95 in known
    assert sum(value <= found.p95 for value in known) >= 0.95 * len(known)
    assert sum(value < found.p95 for value in known) < 0.95 * len(known)
    assert found.peak == max(known)
    assert found.mean == pytest.approx(sum(known) / len(known))


def test_gaps_are_those_of_cpu_or_else_of_what_there_is() -> None:
    start = datetime(2026, 11, 29, tzinfo=UTC)
    samples: dict[Metric, tuple[float | None, ...]] = {Metric.MEMORY: (1.0, None, None, None)}
    usage = Usage(server="a", start=start, interval=60, samples=samples)
    assert summarize(usage).gaps == 0.75
    both = usage.model_copy(update={"samples": {**samples, Metric.CPU: (1.0, 1.0, 1.0, None)}})
    assert (summarize(both).gaps, summarize(both).span) == (0.25, 240)
    assert summarize(usage.model_copy(update={"samples": {}})).gaps == 0.0
