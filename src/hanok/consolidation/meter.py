"""How much work a search may do, counted in steps: the same effort gives the same answer."""

from __future__ import annotations

from collections.abc import Callable

STEPS_OF_EFFORT = 1_000_000
"""Moves tried by ``--effort 1``: a tenth of a second for small problems."""

UNLIMITED = 10**15


class Meter:
    """Counts the steps of a search, and says when it has to end.

    ``steps`` alone is reproducible. ``seconds`` of ``clock`` (the processor's time of this process,
    or a wall clock: the caller says which) and ``stop`` end it early, and then it is not.
    """

    def __init__(
        self,
        *,
        steps: int = UNLIMITED,
        seconds: float | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.spent = 0
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._start = clock()
        self._stop = stop

    @classmethod
    def of_effort(cls, effort: int) -> Meter:
        """Return a meter for ``--effort`` N."""
        return cls(steps=effort * STEPS_OF_EFFORT)

    def spend(self, steps: int) -> None:
        """Count work that was done."""
        self.spent += steps

    @property
    def left(self) -> int:
        """Steps that are left; in the time that is left, at the pace until now."""
        if self._stop():
            return 0
        left = max(0, self._steps - self.spent)
        if self._seconds is None:
            return left
        used = self._clock() - self._start
        if used >= self._seconds:
            return 0
        if used <= 0.0 or self.spent == 0:
            return left
        return min(left, 1 + int(self.spent * (self._seconds - used) / used))

    @property
    def is_empty(self) -> bool:
        """Whether the search has to end now."""
        return self.left == 0
