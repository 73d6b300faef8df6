"""Disk and network traffic: loads over time, in MiB a second, beside the CPU's.

They are planned where a kind of host says what it can move: other hosts, and servers whose traffic
nobody measured, are taken to be no limit, and the latter are named. Reads and writes of a disk add
up; a network card receives and sends at once, so that each direction has the whole rate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from hanok.consolidation.request import Series
from hanok.consolidation.traces import Grid, Trace, resample
from hanok.model.fleet import HostKindEntry
from hanok.model.plan import Traffic
from hanok.model.usage import Metric, Usage
from hanok.units import MIB

METRICS: Mapping[Traffic, tuple[Metric, ...]] = {
    "disk_io": (Metric.DISK_READ, Metric.DISK_WRITE),
    "network_in": (Metric.NETWORK_RECEIVE,),
    "network_out": (Metric.NETWORK_SEND,),
}
TRAFFIC_WORDS: Mapping[str, str] = {
    "disk_io": "disk traffic",
    "network_in": "network traffic received",
    "network_out": "network traffic sent",
}


def rates_of(entry: HostKindEntry) -> dict[str, float]:
    """Return what hosts of a kind can move, by resource; nothing where it does not say."""
    rates: dict[str, int | None] = {
        "disk_io": entry.disk_io,
        "network_in": entry.network,
        "network_out": entry.network,
    }
    return {name: rate / MIB for name, rate in rates.items() if rate is not None}


def trace_of(usage: Usage, metric: Metric) -> Trace | None:
    """Return the samples of a metric, or None when there is none that is known."""
    samples: Mapping[Metric, tuple[float | None, ...]] = usage.samples
    values = np.array(samples.get(metric, ()), np.float64)
    if not values.size or np.isnan(values).all():
        return None
    return Trace(usage.start.timestamp(), usage.interval, values)


def traffic_of(usage: Usage | None, grid: Grid, wanted: Collection[str]) -> dict[str, Series]:
    """Return the traffic of a server on ``grid``, by those of ``wanted`` that were measured."""
    found: dict[str, Series] = {}
    for name, metrics in METRICS.items():
        if name not in wanted or usage is None:
            continue
        traces = [trace for metric in metrics if (trace := trace_of(usage, metric)) is not None]
        if traces:
            total = np.sum([resample(trace, grid) for trace in traces], axis=0)
            found[name] = (total / MIB).astype(np.float32)
    return found
