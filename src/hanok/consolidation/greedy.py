"""Constructive packing: an answer at once. One item after the other, or one bin after the other.

Names follow Panigrahy, Talwar, Uyeda, Wieder, "Heuristics for vector bin packing", 2011, and
Mommessin, Erlebach, Shakhlevich, Computers & OR 168, 2024.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hanok.consolidation.compiled import compiled
from hanok.consolidation.vectors import Floats, Ints, PackingProblem


def greedy_packings(problem: PackingProblem) -> Iterator[Ints]:
    """Yield packings by ever other heuristics; the best of them is a good start."""
    shares = problem.sizes / problem.capacity
    needs = np.maximum(shares.sum(axis=0), 1e-9)
    for weights in (np.ones(needs.size), needs / needs.max(), np.exp(0.01 * needs / needs.max())):
        for measure in (shares @ weights, (shares**2) @ weights, (shares * weights).max(axis=1)):
            order = np.argsort(-measure, kind="stable")
            yield first_fit(problem.sizes, problem.capacity, order)
            scale = np.sqrt(weights)
            yield best_fit(shares * scale, scale, problem.sizes, problem.capacity, order)
    for power in (1.0, 2.0):
        weights = (needs / needs.max()) ** power
        yield bin_centric(shares, problem.sizes, problem.capacity, weights, False)
        yield bin_centric(shares, problem.sizes, problem.capacity, weights, True)


@compiled
def _fits(load: Floats, size: Floats, capacity: Floats) -> bool:
    fits = True
    for j in range(capacity.size):
        fits = fits and load[j] + size[j] <= capacity[j]
    return fits


@compiled
def first_fit(sizes: Floats, capacity: Floats, order: Ints) -> Ints:
    """Return the bin of each item, put into the first that takes it, in ``order``."""
    n, d = sizes.shape
    loads = np.zeros((n, d))
    bins = np.zeros(n, np.int64)
    count = 0
    for i in order:
        b = 0
        while b < count and not _fits(loads[b], sizes[i], capacity):
            b += 1
        count = max(count, b + 1)
        loads[b] += sizes[i]
        bins[i] = b
    return bins


@compiled
def best_fit(shares: Floats, full: Floats, sizes: Floats, capacity: Floats, order: Ints) -> Ints:
    """Return the bin of each item, put where the least (as a vector) is left.

    ``shares`` and ``full`` are sizes and capacity weighted as what is left is to be measured.
    """
    n, d = sizes.shape
    loads = np.zeros((n, d))
    left = np.zeros((n, d))
    bins = np.zeros(n, np.int64)
    count = 0
    for i in order:
        best = count
        least = np.inf
        for b in range(count):
            if _fits(loads[b], sizes[i], capacity):
                rest = 0.0
                for j in range(d):
                    rest += (left[b, j] - shares[i, j]) ** 2
                if rest < least:
                    least = rest
                    best = b
        if best == count:
            left[count] = full
            count += 1
        loads[best] += sizes[i]
        left[best] -= shares[i]
        bins[i] = best
    return bins


@compiled
def bin_centric(
    shares: Floats, sizes: Floats, capacity: Floats, weights: Floats, by_norm: bool
) -> Ints:
    """Return the bin of each item; bins are filled one after the other with what suits best.

    What suits: the largest product of item and what is left (DotProduct), or with ``by_norm`` the
    least that is left afterwards (L2), both weighted by dimension.
    """
    n, d = sizes.shape
    bins = np.full(n, -1, np.int64)
    load = np.zeros(d)
    left = np.ones(d)
    current = 0
    placed = 0
    while placed < n:
        best = -1
        most = -np.inf
        for i in range(n):
            if bins[i] < 0 and _fits(load, sizes[i], capacity):
                score = 0.0
                for j in range(d):
                    if by_norm:
                        score -= weights[j] * (left[j] - shares[i, j]) ** 2
                    else:
                        score += weights[j] * left[j] * shares[i, j]
                if score > most:
                    most = score
                    best = i
        if best < 0:
            current += 1
            load[:] = 0.0
            left[:] = 1.0
            continue
        bins[best] = current
        load += sizes[best]
        left -= shares[best]
        placed += 1
    return bins
