"""The forecast of a plan against what was measured since: where it was wrong, host by host.

What was measured is averaged over the plan's intervals, since that is what was forecast: a shorter
peak is no fault of the forecast. Without numpy: ``hanok plan compare`` needs no extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from hanok.model.fleet import Rightsizing
from hanok.model.plan import Forecast, PlanFile, PlanHost, PlanVm
from hanok.model.usage import Metric, Usage

DAY = 86_400.0
TOLERANCE_SHARE, TOLERANCE_CORES = 0.05, 0.1
"""A host is as forecast within a twentieth of its capacity, or a tenth of a core."""

SIZING = Rightsizing()
Verdict = Literal["as forecast", "above", "below", "not measured", "not forecast"]
Size = Literal["as sized", "more", "less", "not measured"]
Bins = Mapping[int, float]


@dataclass(frozen=True)
class Load:
    """Cores in use: mean, 95th percentile and highest of averages over the plan's intervals."""

    mean: float
    p95: float
    peak: float


@dataclass(frozen=True)
class HostCheck:
    """A host, forecast and measured at the same times of day.

    ``source``: the host's own usage, or that of its VMs added up. ``measured_vms`` of ``vms`` are
    in it. ``seconds`` were measured by all of them. ``room`` (cores) is what VMs were to use at
    most; ``above_room`` the share of time in which they used more, ``above_forecast`` that above
    the highest forecast. ``worst`` is the moment (UTC) when that was exceeded by most, ``excess``
    by how many cores.
    """

    name: str
    vms: int
    verdict: Verdict
    source: Literal["host", "vms", ""] = ""
    measured_vms: int = 0
    seconds: float = 0.0
    room: float = 0.0
    forecast: Load | None = None
    measured: Load | None = None
    above_room: float = 0.0
    above_forecast: float = 0.0
    worst: str | None = None
    excess: float = 0.0


@dataclass(frozen=True)
class VmCheck:
    """A VM's size against what it used; ``p99`` and ``mean`` in cores, memory in bytes.

    ``needs_vcpus`` and ``needs_memory`` are what rightsizing would give by what was measured now.
    """

    name: str
    host: str
    vcpus: int
    memory: int
    cpu: Size
    ram: Size
    mean: float | None = None
    p99: float | None = None
    memory_used: float | None = None
    needs_vcpus: int | None = None
    needs_memory: int | None = None


def check_host(plan: PlanFile, host: PlanHost, usages: Mapping[str, Usage]) -> HostCheck:
    """Return how ``host`` was forecast; ``usages`` are by the plan's names of hosts and VMs."""
    names = [vm.name for vm in plan.vms if vm.host == host.name]
    own = usages.get(host.name)
    found = [usages[name] for name in names if name in usages] if own is None else [own]
    forecast = host.forecast
    if not found or forecast is None:
        why: Verdict = "not measured" if forecast is not None else "not forecast"
        return HostCheck(host.name, len(names), why)
    fine_width = max(usage.interval for usage in found)
    fine = _added(found, fine_width)
    coarse = _added(found, max(fine_width, plan.grid.interval))
    width = max(fine_width, plan.grid.interval)
    slots = {number: _slot(forecast, number * width) for number in coarse}
    known = [number for number in sorted(coarse) if slots[number] is not None]
    if not known:
        return HostCheck(host.name, len(names), "not measured" if not coarse else "not forecast")
    means, highs = zip(*(slots[number] or (0.0, 0.0) for number in known), strict=True)
    values = [coarse[number] for number in known]
    predicted = Load(sum(means) / len(means), percentile(highs, 95), max(highs))
    over = [value - high for value, high in zip(values, highs, strict=True)]
    allowed = max(TOLERANCE_CORES, TOLERANCE_SHARE * forecast.capacity)
    worst = max(range(len(over)), key=lambda at: over[at])
    measured_vms = len(names) if own is not None else len(found)
    load = load_of(values)
    is_above = over[worst] > allowed
    # What some VMs use says nothing of too little on the host.
    is_below = measured_vms == len(names) and load.mean < predicted.mean - allowed
    return HostCheck(
        host.name,
        len(names),
        "above" if is_above else "below" if is_below else "as forecast",
        "host" if own is not None else "vms",
        measured_vms,
        len(fine) * fine_width,
        forecast.room,
        predicted,
        load,
        sum(value > forecast.room for value in fine.values()) / len(fine),
        sum(value > allowed for value in over) / len(over),
        _moment(known[worst] * width) if is_above else None,
        max(0.0, over[worst]) if is_above else 0.0,
    )


def check_vm(plan: PlanFile, vm: PlanVm, usage: Usage | None) -> VmCheck:
    """Return whether ``vm`` used what its size was made for, by the default rightsizing."""
    if usage is None:
        return VmCheck(vm.name, vm.host, vm.vcpus, vm.memory, "not measured", "not measured")
    width = max(usage.interval, plan.grid.interval)
    cpu = list(_binned(usage, Metric.CPU, width).values())
    memory = [value for value in usage.samples.get(Metric.MEMORY, ()) if value is not None]
    p99 = percentile(cpu, SIZING.vcpus.percentile) if cpu else None
    used = max(memory) if memory else None
    vcpus = None if p99 is None else max(1, math.ceil(p99 * (1 + SIZING.vcpus.margin) - 1e-9))
    needed = None
    if used is not None:
        needed = max(SIZING.least_memory, math.ceil(used * (1 + SIZING.memory.margin)))
    return VmCheck(
        vm.name,
        vm.host,
        vm.vcpus,
        vm.memory,
        _sized(vcpus, vm.vcpus),
        _sized(needed, vm.memory, least=SIZING.least_memory),
        sum(cpu) / len(cpu) if cpu else None,
        p99,
        used,
        vcpus,
        needed,
    )


def _sized(needed: int | None, has: int, least: int = 0) -> Size:
    """Say what a VM needs of what it has; less is half of it or below."""
    if needed is None:
        return "not measured"
    if needed > max(has, least):
        return "more"
    return "less" if needed * 2 <= has else "as sized"


def load_of(values: Sequence[float]) -> Load:
    """Return mean, 95th percentile and peak of ``values``, of which there is one at least."""
    return Load(sum(values) / len(values), percentile(values, 95), max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least of ``values`` that ``share`` % of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered) - 1e-9) - 1)]


def _added(usages: Sequence[Usage], width: float) -> dict[int, float]:
    """Return the cores that all use together, in the bins of ``width`` s that all have."""
    each = [_binned(usage, Metric.CPU, width) for usage in usages]
    common = set.intersection(*(set(bins) for bins in each))
    return {number: sum(bins[number] for bins in each) for number in common}


def _binned(usage: Usage, metric: Metric, width: float) -> Bins:
    """Return averages over bins of ``width`` seconds since the epoch, by their number."""
    start = usage.start.timestamp()
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for at, value in enumerate(usage.samples.get(metric, ())):
        if value is not None:
            # By the middle of the sample: clocks that differ a little give the same bin.
            number = int((start + (at + 0.5) * usage.interval) // width)
            sums[number] = sums.get(number, 0.0) + value
            counts[number] = counts.get(number, 0) + 1
    return {number: total / counts[number] for number, total in sums.items()}


def _slot(forecast: Forecast, at: float) -> tuple[float, float] | None:
    """Return mean and highest that were forecast for the time of day of ``at``, if they were."""
    number = int(at % DAY // forecast.step)
    if number >= min(len(forecast.mean), len(forecast.high)):
        return None
    mean, high = forecast.mean[number], forecast.high[number]
    return None if mean is None or high is None else (mean, high)


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
