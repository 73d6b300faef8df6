"""What network cards are plugged into, for hypervisors that want nothing but taps."""

from __future__ import annotations

from collections.abc import Sequence

from hanok.errors import HypervisorError
from hanok.model.network import Plug


def descriptors(taps: Sequence[Plug]) -> tuple[int, ...]:
    """Return ``taps``, which must all be descriptors. Raises HypervisorError."""
    found = tuple(tap for tap in taps if isinstance(tap, int))
    if len(found) != len(taps):
        raise HypervisorError("these machines want taps: there is no network of their own for them")
    return found
