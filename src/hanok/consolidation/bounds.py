"""Lower bounds on bins that cost almost nothing."""

from __future__ import annotations

import numpy as np

from hanok.consolidation.vectors import Bound, Floats, Ints, PackingProblem


def quick_bound(problem: PackingProblem) -> Bound:
    """Return the best of the volume, the dual feasible functions and the items that never meet."""
    if problem.count == 0:
        return Bound(0, "there are no items")
    bounds = [volume_bound(problem), threshold_bound(problem), conflict_bound(problem)]
    return max(bounds, key=lambda bound: bound.bins)


def volume_bound(problem: PackingProblem) -> Bound:
    """Return the bins that hold the sum of all sizes, in the dimension that needs most."""
    if problem.capacity.size == 0:
        return Bound(min(1, problem.count), "no item takes anything")
    needed = np.ceil(problem.sizes.sum(axis=0) / problem.capacity)
    dimension = int(np.argmax(needed))
    return Bound(max(1, int(needed[dimension])), f"the sum of dimension {dimension}")


def threshold_bound(problem: PackingProblem) -> Bound:
    """Return the best bound by a dual feasible function of one dimension.

    The function (Fekete and Schepers, Mathematical Programming 91, 2001, their u and U^(e)): for a
    threshold e of at most half a bin, items above 1 - e count as a whole bin, items below e as
    nothing, the others as they are. Nothing is said of a dimension with negative sizes.
    """
    best = Bound(0, "")
    for j in _plain_dimensions(problem):
        capacity = problem.capacity[j]
        bins = _threshold_bins(problem.sizes[:, j], float(capacity))
        if bins > best.bins:
            best = Bound(bins, f"large items of dimension {j}, by a dual feasible function")
    return best


def _threshold_bins(sizes: Floats, capacity: float) -> int:
    order = np.sort(sizes)
    sums = np.concatenate([[0.0], np.cumsum(order)])
    edges = np.unique(order[order * 2 <= capacity])
    if not edges.size:
        edges = np.array([0.0])
    low = np.searchsorted(order, edges, side="left")
    high = np.searchsorted(order, capacity - edges, side="right")
    whole = order.size - high
    middle = sums[high] - sums[np.minimum(low, high)]
    return int((whole + np.ceil(middle / capacity)).max())


def conflict_bound(problem: PackingProblem) -> Bound:
    """Return a set of items of which no two fit into one bin, grown greedily from the largest."""
    plain = _plain_dimensions(problem)
    if not plain.size:
        return Bound(0, "")
    sizes, capacity = problem.sizes[:, plain], problem.capacity[plain]
    shares = sizes / capacity
    order = np.argsort(-shares.max(axis=1), kind="stable")[:MOST_CONFLICTS]
    best = 0
    for start in range(min(order.size, STARTS)):
        chosen = [order[start]]
        for item in order:
            together = sizes[chosen] + sizes[item]
            if item != order[start] and bool((together > capacity).any(axis=1).all()):
                chosen.append(item)
        best = max(best, len(chosen))
    return Bound(best, "items of which no two fit into one bin")


def _plain_dimensions(problem: PackingProblem) -> Ints:
    """Return the dimensions in which items that do not fit as a pair never share a bin."""
    return np.flatnonzero((problem.sizes >= 0).all(axis=0))


MOST_CONFLICTS = 2000
STARTS = 3
