"""Local search at a fixed number of bins: exchange items until no bin is over its capacity.

All items are in bins at all times; what is minimized is the overload, summed over bins and
dimensions in units of the capacity. A move shifts one item or exchanges two; worse ones are taken
with the probability of simulated annealing (Kirkpatrick et al., Science 220, 1983). Most moves
begin in an overloaded bin: moves among the others matter only as the room that they make.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


@compiled
def draw(state: Words) -> float:
    """Return the next number of the generator in ``state``, in [0, 1) (xorshift64*)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@compiled
def overload_of(load: Floats, capacity: Floats, weight: Floats) -> float:
    """Return by how much one bin's ``load`` is over ``capacity``, weighted and summed."""
    total = 0.0
    for j in range(load.size):
        over = load[j] - capacity[j]
        if over > 0.0:
            total += over * weight[j]
    return total


@compiled
def _exchange_gain(
    sizes: Floats,
    loads: Floats,
    capacity: Floats,
    weight: Floats,
    a: int,
    b: int,
    i: int,
    k: int,
) -> float:
    """Return the overload of bins ``a`` and ``b`` once ``i`` of a and ``k`` of b are exchanged.

    ``k`` is -1 when nothing comes back.
    """
    total = 0.0
    for j in range(capacity.size):
        move = sizes[i, j]
        if k >= 0:
            move -= sizes[k, j]
        over = loads[a, j] - move - capacity[j]
        if over > 0.0:
            total += over * weight[j]
        over = loads[b, j] + move - capacity[j]
        if over > 0.0:
            total += over * weight[j]
    return total


@compiled
def _put(place: Ints, members: Ints, counts: Ints, item: int, b: int) -> None:
    members[b, counts[b]] = item
    place[item, 0] = b
    place[item, 1] = counts[b]
    counts[b] += 1


@compiled
def _take(place: Ints, members: Ints, counts: Ints, item: int) -> None:
    b, at = place[item, 0], place[item, 1]
    counts[b] -= 1
    last = members[b, counts[b]]
    members[b, at] = last
    place[last, 1] = at


@compiled
def _mark(bad: Ints, where: Ints, b: int, is_bad: bool) -> None:
    """Keep the list of overloaded bins; ``bad[-1]`` is its length, ``where`` each bin's place."""
    last = bad.size - 1
    if is_bad and where[b] < 0:
        bad[bad[last]] = b
        where[b] = bad[last]
        bad[last] += 1
    elif not is_bad and where[b] >= 0:
        bad[last] -= 1
        moved = bad[bad[last]]
        bad[where[b]] = moved
        where[moved] = where[b]
        where[b] = -1


@compiled
def anneal(
    sizes: Floats,
    capacity: Floats,
    bins: Ints,
    count: int,
    steps: int,
    hot: float,
    cold: float,
    random: Words,
) -> tuple[float, int]:
    """Exchange items among ``count`` bins for at most ``steps`` moves tried.

    ``bins`` is the bin of each item, changed in place: to the first assignment without overload,
    or to the last one. ``hot`` and ``cold`` are the temperatures of the first and the last move, in
    capacities. Returns the overload and the moves tried.
    """
    n, d = sizes.shape
    weight = 1.0 / capacity
    loads = np.zeros((count, d))
    members = np.empty((count, n), np.int64)
    counts = np.zeros(count, np.int64)
    place = np.empty((n, 2), np.int64)
    for i in range(n):
        _put(place, members, counts, i, bins[i])
        loads[bins[i]] += sizes[i]
    over = np.empty(count)
    bad = np.zeros(count + 1, np.int64)
    where = np.full(count, -1, np.int64)
    for b in range(count):
        over[b] = overload_of(loads[b], capacity, weight)
        _mark(bad, where, b, over[b] > 0.0)
    cooling = (cold / hot) ** (1.0 / max(1, steps))
    temperature = hot
    step = 0
    while step < steps and bad[count] > 0:
        step += 1
        temperature *= cooling
        if draw(random) < 0.7:
            a = bad[int(draw(random) * bad[count])]
            i = members[a, int(draw(random) * counts[a])]
        else:
            i = int(draw(random) * n)
            a = place[i, 0]
        k = -1
        if draw(random) < 0.8:
            k = int(draw(random) * n)
            b = place[k, 0]
        else:
            b = int(draw(random) * count)
        if a == b:
            continue
        after = _exchange_gain(sizes, loads, capacity, weight, a, b, i, k)
        delta = after - over[a] - over[b]
        if delta > 0.0 and draw(random) >= np.exp(-delta / temperature):
            continue
        _take(place, members, counts, i)
        if k >= 0:
            _take(place, members, counts, k)
            _put(place, members, counts, k, a)
        _put(place, members, counts, i, b)
        for j in range(d):
            move = sizes[i, j]
            if k >= 0:
                move -= sizes[k, j]
            loads[a, j] -= move
            loads[b, j] += move
        over[a] = overload_of(loads[a], capacity, weight)
        over[b] = overload_of(loads[b], capacity, weight)
        _mark(bad, where, a, over[a] > 0.0)
        _mark(bad, where, b, over[b] > 0.0)
    for i in range(n):
        bins[i] = place[i, 0]
    return over.sum(), step
