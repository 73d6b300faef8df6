"""What network cards are plugged into."""

from __future__ import annotations

from collections.abc import Sequence

from hanok.errors import HypervisorError, InvalidInput
from hanok.hypervisors.base import Nic
from hanok.model.network import Plug


def descriptors(taps: Sequence[Plug]) -> tuple[int, ...]:
    """Return ``taps``, which must all be descriptors. Raises HypervisorError."""
    found = tuple(tap for tap in taps if isinstance(tap, int))
    if len(found) != len(taps):
        raise HypervisorError("these machines want taps: there is no network of their own for them")
    return found


def check_taps(nics: Sequence[Nic], taps: Sequence[Plug]) -> None:
    """Raise InvalidInput unless there is one tap for each card."""
    if len(taps) != len(nics):
        raise InvalidInput(
            f"{len(nics)} network cards, but {len(taps)} taps",
            field="networks",
            expected="one tap a card",
        )
