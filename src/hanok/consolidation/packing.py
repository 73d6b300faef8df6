"""The search for the fewest bins: a greedy answer at once, then ever longer local searches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hanok.consolidation.anneal import anneal
from hanok.consolidation.bounds import quick_bound
from hanok.consolidation.greedy import greedy_packings
from hanok.consolidation.meter import Meter
from hanok.consolidation.vectors import Bound, Ints, Packing, PackingProblem

HOT, COLD = 0.03, 0.001
SLICE = 200_000
SHORTEST = 1_000
"""Moves an item of the first, shortest search; a longer one follows each that fails."""


def pack(
    problem: PackingProblem,
    meter: Meter,
    *,
    seed: int = 0,
    show: Callable[[Packing], None] = lambda packing: None,
    bound: Bound | None = None,
) -> Packing:
    """Return the packing of the fewest bins that was found before ``meter`` was empty.

    ``show`` gets each better one at once; ``bound`` one that is known already.
    """
    if problem.count == 0 or problem.capacity.size == 0:
        bins = np.zeros(problem.count, np.int64)
        return Packing(bins, min(1, problem.count), quick_bound(problem), 0)
    search = _Search(problem, meter, seed, show, bound or quick_bound(problem))
    search.halve()
    search.insist()
    return search.best


class _Search:
    def __init__(
        self,
        problem: PackingProblem,
        meter: Meter,
        seed: int,
        show: Callable[[Packing], None],
        bound: Bound,
    ) -> None:
        self.problem = problem
        self.meter = meter
        self.show = show
        self.bound = bound
        self.random = np.array([0x9E3779B97F4A7C15 ^ (seed + 1)], np.uint64)
        greedy = min(greedy_packings(problem), key=lambda bins: int(bins.max()))
        self.best = self._keep(greedy)

    def _keep(self, bins: Ints) -> Packing:
        packing = Packing(bins, int(bins.max()) + 1, self.bound, self.meter.spent)
        self.show(packing)
        self.best = packing
        return packing

    def halve(self) -> None:
        """Find by halving roughly how few bins a short search can do with."""
        low, high = self.bound.bins, self.best.count
        steps = SHORTEST * self.problem.count
        while low < high and not self.meter.is_empty:
            middle = (low + high) // 2
            bins = self._dissolve(middle)
            if self._anneal(bins, middle, steps):
                high = self._keep(bins).count
            else:
                low = middle + 1

    def insist(self) -> None:
        """Search for fewer bins, longer when it fails, until the bound or the end of the meter.

        A search that succeeds is followed by a bolder one: on the way down from afar, searches for
        one bin less each would cost most of the time.
        """
        steps, stride = 2 * SHORTEST * self.problem.count, 1
        while not self.best.is_perfect and not self.meter.is_empty:
            target = max(self.bound.bins, self.best.count - stride)
            bins = self._dissolve(target)
            if self._anneal(bins, target, min(steps, self.meter.left)):
                self._keep(bins)
                stride *= 2
            elif stride > 1:
                stride //= 2
            else:
                steps *= 2

    def _dissolve(self, count: int) -> Ints:
        """Return the best packing with its emptiest bins dealt out, so that ``count`` remain."""
        bins, shares = self.best.bins, self.problem.sizes / self.problem.capacity
        fill = np.bincount(bins, weights=shares.sum(axis=1), minlength=self.best.count)
        keep = np.sort(np.argsort(-fill, kind="stable")[:count])
        names = np.full(self.best.count, -1, np.int64)
        names[keep] = np.arange(count)
        renamed: Ints = names[bins]
        homeless = np.flatnonzero(renamed < 0)
        renamed[homeless] = np.arange(homeless.size) % count
        return renamed

    def _anneal(self, bins: Ints, count: int, steps: int) -> bool:
        """Search in slices, between which the meter is asked; whether ``bins`` came to be right."""
        done = 0
        while done < steps and not self.meter.is_empty:
            now = min(SLICE, steps - done)
            hot, cold = (_temperature(at / steps) for at in (done, done + now))
            over, tried = anneal(
                self.problem.sizes, self.problem.capacity, bins, count, now, hot, cold, self.random
            )
            self.meter.spend(tried)
            done += now
            if over == 0.0:
                return True
        return False


def _temperature(progress: float) -> float:
    return float(HOT * (COLD / HOT) ** progress)
