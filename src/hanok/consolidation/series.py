"""Packing loads over time: the hot loops. Whole numbers, WHOLE of them to the largest capacity.

The first ``times`` columns of an item are loads by interval (one resource after the other), the
rest is reserved whole. A bin may be over its capacity in ``exceptions`` intervals a resource.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.anneal import draw
from hanok.consolidation.compiled import compiled
from hanok.consolidation.places import Places, exchange_racks, may_exchange
from hanok.consolidation.vectors import Ints

Words = NDArray[np.uint64]
Units = NDArray[np.int32]

WHOLE = 2**6 * 3**2 * 5 * 7 * 11 * 13
"""Units of the largest capacity: usual fractions of it are whole, and sums fit into 32 bits."""
BLOCK, MOST_OVER = 96, 2**24
NO_LIMIT = 2**62
NEAR_SHARE, NEAR, LEAST_NEAR = 0.9, 0.02, 30
"""How often items of about the same size are exchanged, and what part of all is that near
(at least so many)."""


@compiled
def over_block(load: Units, capacity: Units, away: Units, back: Units) -> tuple[int, int]:
    """Return in how many of some intervals a bin is over its capacity, and by how much in all.

    In 32 bits throughout, which the processor does eight at a time; an interval counts with at
    most MOST_OVER, so that the sums of a block stay within them.
    """
    count = np.int32(0)
    total = np.int32(0)
    for j in range(load.size):
        over = max(np.int32(load[j] - away[j] + back[j] - capacity[j]), np.int32(0))
        total = np.int32(total + min(over, np.int32(MOST_OVER)))
        count = np.int32(count + min(over, np.int32(1)))
    return int(count), int(total)


@compiled
def exchanged(
    load: Units,
    capacity: Units,
    away: Units,
    back: Units,
    times: int,
    intervals: int,
    exceptions: int,
    weight: int,
    limit: int,
) -> int:
    """Return the overload of a bin once ``away`` has left it and ``back`` has come.

    Above ``limit`` it is some number above it: most exchanges are seen to be bad early.
    """
    total = 0
    for j in range(times, load.size):
        total += weight * max(load[j] - away[j] + back[j] - capacity[j], 0)
    for start in range(0, times, intervals):
        count = 0
        part = 0
        for at in range(start, start + intervals, BLOCK):
            end = min(at + BLOCK, start + intervals)
            many, much = over_block(load[at:end], capacity[at:end], away[at:end], back[at:end])
            count += many
            part += much
            if count > exceptions and total + part > limit:
                return total + part
        if count > exceptions:
            total += part
    return total


@compiled
def overload(
    load: Units, capacity: Units, times: int, intervals: int, exceptions: int, weight: int
) -> int:
    """Return by how much a bin is over its capacity; ``weight`` is that of what is reserved."""
    nothing = np.zeros(load.size, np.int32)
    return exchanged(
        load, capacity, nothing, nothing, times, intervals, exceptions, weight, NO_LIMIT
    )


@compiled
def count_sets(present: Ints, groups: Ints, change: int) -> None:
    """Add ``change`` to the members that a bin holds of each set in ``groups``."""
    for g in groups:
        if g >= 0:
            present[g] += change


@compiled
def meets(present: Ints, comes: Ints, leaves: Ints) -> bool:
    """Return whether one that ``comes`` to a bin meets another of its sets there."""
    for g in comes:
        if g >= 0:
            others = present[g]
            for left in leaves:
                if left == g:
                    others -= 1
            if others > 0:
                return True
    return False


@compiled
def joins(present: Ints, groups: Ints, i: int, k: int, a: int, b: int) -> bool:
    """Return whether ``i`` of bin a and ``k`` of b (-1: nobody), exchanged, meet one of a set."""
    if k < 0:
        nobody = np.full(groups.shape[1], -1, np.int64)
        return meets(present[b], groups[i], nobody)
    return meets(present[b], groups[i], groups[k]) or meets(present[a], groups[k], groups[i])


@compiled
def fill(
    items: Units,
    order: Ints,
    bins: Ints,
    loads: Units,
    capacity: Units,
    open_bins: Ints,
    groups: Ints,
    present: Ints,
    times: int,
    intervals: int,
    exceptions: int,
    window: int,
    random: Words,
) -> int:
    """Fill ``open_bins`` one after the other with items of ``order`` that have no bin yet (-1).

    Into each: the first in order, then ever the best of about ``window`` items drawn from the rest:
    the one whose load is most where the bin has most left. ``present`` counts the members of each
    set (see ``anneal_series``) that a bin holds. Returns how many were placed.
    """
    rest = order.copy()
    left = rest.size
    nothing = np.zeros(items.shape[1], np.int32)
    nobody = np.full(groups.shape[1], -1, np.int64)
    slack = np.empty(items.shape[1], np.int64)
    placed = 0
    for b in open_bins:
        missed = 0
        while left > 0 and missed < 2:
            for j in range(slack.size):
                room = max(np.int64(capacity[b, j]) - loads[b, j], 0)
                slack[j] = room if j < times else min(room, WHOLE) * max(1, times // 4)
            stride = max(1, left // window)
            at = int(draw(random) * stride)
            best = -1
            most = -1
            while at < left:
                i = rest[at]
                good = not meets(present[b], groups[i], nobody) and (
                    exchanged(
                        loads[b], capacity[b], nothing, items[i], times, intervals, exceptions, 1, 0
                    )
                    == 0
                )
                if good:
                    score = 0
                    for j in range(slack.size):
                        score += slack[j] * items[i, j]
                    if score > most:
                        most = score
                        best = at
                at += 1 if missed > 0 and left < 4 * window else stride
            if best < 0:
                missed += 1
                continue
            i = rest[best]
            bins[i] = b
            loads[b] += items[i]
            count_sets(present[b], groups[i], 1)
            placed += 1
            left -= 1
            for at in range(best, left):  # keeps the order: the hard ones stay in front
                rest[at] = rest[at + 1]
    return placed


@compiled
def partner(i: int, n: int, near: float, random: Words) -> int:
    """Return who to exchange with: mostly one of about the same size, which keeps bins as full."""
    if near < n and draw(random) < NEAR_SHARE:
        return min(max(i + int((draw(random) - 0.5) * near), 0), n - 1)
    return int(draw(random) * n)


@compiled
def contents(items: Units, bins: Ints, groups: Ints, count: int, sets: int) -> tuple[Units, Ints]:
    """Return what ``count`` bins hold: their loads, and their members of each set."""
    loads = np.zeros((count, items.shape[1]), np.int32)
    present = np.zeros((count, sets), np.int64)
    for i in range(bins.size):
        loads[bins[i]] += items[i]
        count_sets(present[bins[i]], groups[i], 1)
    return loads, present


@compiled
def anneal_series(
    items: Units,
    capacity: Units,
    bins: Ints,
    groups: Ints,
    sets: int,
    times: int,
    intervals: int,
    exceptions: int,
    steps: int,
    hot: float,
    cold: float,
    random: Words,
    places: Places,
    in_rack: Ints,
) -> tuple[float, int]:
    """Exchange items, in the order of their sizes, until no bin is over its capacity.

    A row of ``groups`` names the sets, of ``sets``, of which the item must be the only one in its
    bin, -1 for none. ``places`` are the bins that items may be in; ``in_rack`` counts who stands in
    which rack. ``bins`` and ``in_rack`` are changed in place. Returns the overload, in capacities,
    and the moves tried.
    """
    n, d = items.shape
    count = capacity.shape[0]
    near = max(NEAR * n, float(LEAST_NEAR))
    ruled = places.allowed.shape[0] > 0 or places.most.size > 0
    weight = max(1, times // 4)
    unit = 1.0 / (float(WHOLE) * max(1.0, times * 0.05))
    loads, present = contents(items, bins, groups, count, sets)
    nothing = np.zeros(d, np.int32)
    over = np.empty(count, np.int64)
    for b in range(count):
        over[b] = overload(loads[b], capacity[b], times, intervals, exceptions, weight)
    total = over.sum()
    cooling = (cold / hot) ** (1.0 / max(1, steps))
    temperature = hot
    step = 0
    while step < steps and total > 0:
        step += 1
        temperature *= cooling
        i = int(draw(random) * n)
        a = bins[i]
        if over[a] == 0 and draw(random) < 0.6:
            continue
        k = -1
        if draw(random) < 0.75:
            k = partner(i, n, near, random)
            b = bins[k]
        else:
            b = int(draw(random) * count)
        if a == b or (over[a] == 0 and over[b] == 0 and draw(random) < 0.5):
            continue
        back = items[k] if k >= 0 else nothing
        is_apart = sets == 0 or not joins(present, groups, i, k, a, b)
        if not is_apart or (ruled and not may_exchange(places, in_rack, i, k, a, b)):
            continue
        before = over[a] + over[b]
        limit = before + int(-np.log(1.0 - draw(random)) * temperature / unit)
        after_a = exchanged(
            loads[a], capacity[a], items[i], back, times, intervals, exceptions, weight, limit
        )
        if after_a > limit:
            continue
        after_b = exchanged(
            loads[b],
            capacity[b],
            back,
            items[i],
            times,
            intervals,
            exceptions,
            weight,
            limit - after_a,
        )
        if after_a + after_b > limit:
            continue
        for j in range(d):
            move = items[i, j] - back[j]
            loads[a, j] -= move
            loads[b, j] += move
        bins[i] = b
        count_sets(present[a], groups[i], -1)
        count_sets(present[b], groups[i], 1)
        if ruled:
            exchange_racks(places, in_rack, i, k, a, b)
        if k >= 0:
            bins[k] = a
            count_sets(present[b], groups[k], -1)
            count_sets(present[a], groups[k], 1)
        over[a] = after_a
        over[b] = after_b
        total += after_a + after_b - before
    return total * unit, step
