"""Vector bin packing: items and bins that are vectors, and what an answer says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hanok.errors import InvalidInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST = float(2**50)
"""Above it sums of whole numbers would no longer be exact."""


@dataclass(frozen=True, eq=False)
class PackingProblem:
    """Items of ``sizes`` (n, d) for the fewest bins of one ``capacity`` (d).

    All are whole numbers, so that no answer depends on how sums are rounded: whoever has fractions
    multiplies, and rounds sizes up and capacities down. A size may be negative (published instances
    have such items): it makes room. Raises InvalidInput for anything else, and for an item that is
    larger than a bin.
    """

    sizes: Floats
    capacity: Floats

    def __post_init__(self) -> None:
        sizes = np.array(self.sizes, dtype=np.float64, ndmin=2)
        capacity = np.array(self.capacity, dtype=np.float64, ndmin=1)
        _check_numbers("sizes", sizes)
        _check_numbers("capacity", capacity, least=0)
        if sizes.shape[1] != capacity.size and sizes.size:
            raise InvalidInput(
                f"items have {sizes.shape[1]} dimensions and bins {capacity.size}",
                field="sizes",
                expected=f"{capacity.size} numbers an item",
            )
        sizes = sizes.reshape(-1, capacity.size)
        too_large = np.flatnonzero((sizes > capacity).any(axis=1))
        if too_large.size:
            raise InvalidInput(
                f"{too_large.size} items are larger than a bin, the first is item {too_large[0]}",
                field=f"sizes.{too_large[0]}",
                expected="at most the capacity in every dimension",
            )
        if sizes.size and np.abs(sizes).sum(axis=0).max() > LARGEST:
            raise InvalidInput(
                "the sizes sum up to more than can be counted exactly",
                field="sizes",
                expected="a sum of at most 2^50 a dimension",
            )
        used = capacity > 0
        if sizes.size and sizes[:, ~used].any():
            raise InvalidInput(
                "a size is negative where bins have no capacity",
                field="sizes",
                expected="0 in such a dimension",
            )
        sizes = np.ascontiguousarray(sizes[:, used])
        capacity = np.ascontiguousarray(capacity[used])
        sizes.flags.writeable = capacity.flags.writeable = False
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "capacity", capacity)

    @property
    def count(self) -> int:
        """How many items there are."""
        return int(self.sizes.shape[0])


def _check_numbers(field: str, numbers: Floats, least: float = -LARGEST) -> None:
    right = np.isfinite(numbers) & (numbers >= least) & (numbers == np.floor(numbers))
    if not right.all():
        wrong = numbers[~right].flat[0]
        raise InvalidInput(
            f"{field} hold {wrong}",
            field=field,
            expected=f"whole numbers of at least {least:.0f}",
        )


@dataclass(frozen=True, eq=False)
class Bound:
    """A number of bins below which there is no answer, and the argument that says so."""

    bins: int
    reason: str


@dataclass(frozen=True, eq=False)
class Packing:
    """The bin of each item, from 0 to ``count`` - 1, and how far from perfect it can be at most."""

    bins: Ints
    count: int
    bound: Bound
    steps: int
    """Moves tried, the measure of effort."""

    @property
    def gap(self) -> float:
        """By how much of the bound the answer is above it: 0 is proved to be perfect."""
        return (self.count - self.bound.bins) / self.bound.bins if self.bound.bins else 0.0

    @property
    def is_perfect(self) -> bool:
        """Whether no packing has fewer bins."""
        return self.count <= self.bound.bins
