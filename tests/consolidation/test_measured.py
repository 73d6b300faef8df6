"""A forecast against what was measured: averages as planned, gaps, verdicts and sizes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hanok.consolidation.measured import check_host, check_vm, percentile
from hanok.model.plan import Forecast, PlanFile
from hanok.units import GIB
from tests.cli.test_apply import plan
from tests.consolidation.fleets import usage

MINUTE = 60.0


def forecast_plan(mean: float | None = 1.0, high: float | None = 2.0) -> PlanFile:
    """Return a plan of the VMs a and b on h1, forecast the same all day, averaged over 5 min."""
    found = plan(("a", "h1"), ("b", "h1"))
    day = Forecast(
        step=900, mean=(mean,) * 96, high=(high,) * 96, room=2.5, capacity=4, risk=0, overload=0
    )
    hosts = tuple(host.model_copy(update={"forecast": day}) for host in found.hosts)
    return found.model_copy(update={"hosts": hosts})


@pytest.mark.parametrize(
    ("a", "b", "verdict", "above_room"),
    [
        ([0.5] * 10, [0.6] * 10, "as forecast", 0.0),
        ([1.0] * 5 + [2.0] * 5, [1.0] * 10, "above", 0.5),
        ([0.1] * 10, [0.1] * 10, "below", 0.0),
        # One minute at 3 cores is 1.4 over five: no fault of a forecast of such averages.
        ([2.0, 0.2, 0.2, 0.2, 0.2] * 2, [1.0, 0.8, 0.8, 0.8, 0.8] * 2, "as forecast", 0.2),
    ],
)
def test_a_host_is_judged_by_averages_over_the_intervals_of_the_plan(
    a: Sequence[float], b: Sequence[float], verdict: str, above_room: float
) -> None:
    found = forecast_plan()
    usages = {"a": usage("a", a, interval=MINUTE), "b": usage("b", b, interval=MINUTE)}
    checked = check_host(found, found.hosts[0], usages)
    assert (checked.verdict, checked.source, checked.measured_vms) == (verdict, "vms", 2)
    assert checked.above_room == pytest.approx(above_room)
    assert checked.seconds == 600
    assert (checked.worst is not None) == (verdict == "above")


def test_where_the_forecast_was_exceeded_is_told() -> None:
    found = forecast_plan()
    one = usage("h1", [1.0] * 5 + [3.5] * 5, interval=MINUTE)
    checked = check_host(found, found.hosts[0], {"h1": one, "a": one})
    assert checked.source == "host"
    assert checked.worst == "2026-03-02 00:05 UTC"
    assert checked.excess == pytest.approx(1.5)
    assert checked.above_forecast == 0.5
    assert checked.measured is not None
    assert (checked.measured.mean, checked.measured.peak) == (2.25, 3.5)


def test_what_was_not_measured_or_not_forecast_is_no_verdict() -> None:
    found = forecast_plan()
    host = found.hosts[0]
    assert check_host(found, host, {}).verdict == "not measured"
    empty = usage("a", [None] * 4, interval=MINUTE)
    assert check_host(found, host, {"a": empty}).verdict == "not measured"
    some = usage("a", [0.1] * 10, interval=MINUTE)
    part = check_host(found, host, {"a": some})
    assert (part.verdict, part.measured_vms, part.vms) == ("as forecast", 1, 2)
    blank = forecast_plan(None, None)
    assert check_host(blank, blank.hosts[0], {"a": some}).verdict == "not forecast"
    later = usage("b", [0.1] * 10, interval=MINUTE, later=7200)
    assert check_host(found, host, {"a": some, "b": later}).verdict == "not measured"


@pytest.mark.parametrize(
    ("cpu", "memory", "told"),
    [
        (1.0, 0.7 * GIB, ("as sized", "as sized")),
        (1.9, 0.9 * GIB, ("more", "more")),
        (0.4, 0.2 * GIB, ("less", "less")),
    ],
)
def test_sizes_are_judged_by_what_rightsizing_would_give_now(
    cpu: float, memory: float, told: tuple[str, str]
) -> None:
    found = forecast_plan()
    used = usage("a", [cpu] * 5, [memory] * 5, interval=MINUTE)
    checked = check_vm(found, found.vms[0], used)
    assert (checked.cpu, checked.ram) == told
    assert check_vm(found, found.vms[0], None).cpu == "not measured"


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([1.0, 3.0, 2.0], 50) == 2.0
    assert percentile(list(range(1, 101)), 95) == 95
    assert percentile([4.0], 99) == 4.0
