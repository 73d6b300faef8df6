"""The file format of measured servers: what is accepted, and what is refused with its field."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import InvalidInput
from hanok.model.usage import Metric, Usage
from hanok.model.validation import validated

GOOD = {
    "format": 1,
    "server": "web-1",
    "start": "2026-11-29T00:00:00Z",
    "interval": 60,
    "samples": {"cpu": [0.5, None, 2], "memory": [1, 2, 3]},
}


def _refusal(**fields: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        validated(Usage, {**GOOD, **fields}, "web-1.usage.json")
    return caught.value


def test_good() -> None:
    usage = validated(Usage, GOOD)
    assert usage.samples[Metric.CPU] == (0.5, None, 2.0)
    assert (usage.length, usage.gaps(Metric.CPU), usage.gaps(Metric.DISK_READ)) == (3, 1, 3)
    assert usage.end == datetime(2026, 11, 29, 0, 3, tzinfo=UTC)


def test_times_become_utc() -> None:
    usage = validated(Usage, {**GOOD, "start": "2026-11-29T09:00:00+09:00"})
    assert usage.start.isoformat() == "2026-11-29T00:00:00+00:00"
    assert _refusal(start="2026-11-29T00:00:00").field == "web-1.usage.json.start"
    assert _refusal(start="1789-07-14T00:00:00Z").expected == "a time from 1990 to 2199"
    assert _refusal(start="2199-12-31T23:59:00Z").expected == "samples of times before 2200"


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e308, "1", True, [1]])
@pytest.mark.parametrize("metric", list(Metric))
def test_a_sample_that_cannot_be(metric: Metric, value: object) -> None:
    error = _refusal(samples={metric: [0, value]})
    assert (error.field or "").startswith("web-1.usage.json")


def test_more_cores_than_there_are_anywhere() -> None:
    assert "cpu is too large" in _refusal(samples={"cpu": [65537]}).message


def test_a_metric_that_is_none_is_told_with_those_that_are() -> None:
    error = _refusal(samples={"cpus": [1]})
    assert error.hint == "did you mean 'cpu'?"
    assert (error.expected or "").startswith("one of cpu, memory, disk_read")


def test_series_are_of_one_length() -> None:
    assert _refusal(samples={"cpu": [1], "memory": []}).expected == "the same for all"


@pytest.mark.parametrize(
    "name",
    ["", "=cmd()", "+1", "-rf", "@SUM(1)", "../x", "a/b", "a b", ".hid", "a\n", "x" * 129],
)
def test_names_that_are_files_options_or_formulas(name: str) -> None:
    assert _refusal(server=name).field == "web-1.usage.json.server"


@pytest.mark.parametrize(
    "fields", [{"interval": 0}, {"interval": 1e9}, {"format": 2}, {"sizes": {"cores": 0}}, {"x": 1}]
)
def test_other_fields(fields: dict[str, object]) -> None:
    assert next(iter(fields)) in (_refusal(**fields).field or "")


_VALUES = st.none() | st.floats(0, 65536)


@given(
    st.lists(st.tuples(_VALUES, _VALUES), max_size=20),
    st.datetimes(datetime(1990, 1, 1), datetime(2199, 1, 1)),
    st.floats(0.001, 86400),
)
def test_written_and_read_is_the_same(
    values: list[tuple[float | None, float | None]], start: datetime, interval: float
) -> None:
    usage = Usage(
        server="a",
        start=start.replace(tzinfo=UTC),
        interval=interval,
        samples={
            Metric.CPU: tuple(cpu for cpu, _ in values),
            Metric.MEMORY: tuple(memory for _, memory in values),
        },
    )
    assert Usage.model_validate_json(usage.model_dump_json()) == usage
