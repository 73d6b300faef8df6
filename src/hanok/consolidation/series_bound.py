"""How many hosts any plan needs at least: loads over time and reserved sizes, host by host."""

from __future__ import annotations

import numpy as np

from hanok.consolidation.series import Units
from hanok.consolidation.tables import UNLIMITED, Tables
from hanok.consolidation.vectors import Bound

CHUNK = 4096
WINDOWS = 12


def hosts_bound(tables: Tables) -> Bound:
    """Return the least number of the hosts in ``tables`` that any plan uses, with the reason."""
    if not tables.members:
        return Bound(0, "there are no servers")
    best = Bound(1, "there is a server")
    for start in range(0, tables.times, tables.intervals):
        best = _larger(best, _load_bound(tables, start))
    for column in range(tables.times, tables.items.shape[1]):
        total = float(_rounded_down(tables.items[:, column]).sum(dtype=np.int64))
        bins = hosts_for(total, tables.capacity[:, column])
        name = tables.sizes[column - tables.times]
        best = _larger(best, Bound(bins, f"the sum of {name}"))
    for number in range(tables.sets):
        bins = int((tables.groups == number).any(axis=1).sum())
        best = _larger(best, Bound(bins, f"rules.apart.{number}, whose servers share no host"))
    return best


def _rounded_down(items: Units) -> Units:
    """Return sizes that are no larger than the true ones, which were rounded up."""
    return np.maximum(items - 1, 0)


def _larger(one: Bound, other: Bound) -> Bound:
    return other if other.bins > one.bins else one


def hosts_for(amount: float, rooms: Units) -> int:
    """Return how many of the largest ``rooms`` add up to ``amount``; one more than all if none.

    Rooms were rounded down to whole units: here each gets one more, so that the bound holds.
    """
    ordered = np.sort(rooms.astype(np.float64))[::-1] + 1.0
    if ordered.size and ordered[0] >= UNLIMITED:
        return min(1, ordered.size)
    return int(np.searchsorted(np.cumsum(ordered), amount * (1 - 1e-12), side="left")) + 1


def _load_bound(tables: Tables, start: int) -> Bound:
    """Return the bound of one resource over time.

    In any window of more than ``exceptions`` intervals, the smallest loads of a host, all but as
    many as there are exceptions, are within its room; and the largest ones of a host are at most
    the sum of the largest ones of its servers.
    """
    series = tables.items[:, start : start + tables.intervals]
    rooms = tables.capacity[:, start]
    name = tables.loads[start // tables.intervals]
    total = series.sum(axis=0, dtype=np.int64) - len(tables.members)
    skip = tables.exceptions
    if skip == 0:
        peak = int(np.argmax(total))
        return Bound(hosts_for(float(total[peak]), rooms), f"the {name} of interval {peak}")
    busiest = np.argsort(-total, kind="stable")
    best = Bound(0, "")
    for length in np.unique(np.geomspace(skip + 1, tables.intervals, WINDOWS).astype(int)):
        amount = _least(series[:, np.sort(busiest[:length])], skip) / (length - skip)
        text = f"the {name} of the busiest {length} intervals"
        best = _larger(best, Bound(hosts_for(amount, rooms), text))
    return best


def _least(series: Units, skip: int) -> float:
    total = 0
    for at in range(0, series.shape[0], CHUNK):
        part = _rounded_down(series[at : at + CHUNK])
        if part.shape[1] > skip:
            cut = np.partition(part, part.shape[1] - skip - 1, axis=1)
            total += int(cut[:, : part.shape[1] - skip].sum(dtype=np.int64))
    return float(total)
