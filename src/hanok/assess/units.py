"""Numbers with a unit, as tables have them, in the units of ``Metric``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from hanok.errors import InvalidInput
from hanok.model.usage import Metric
from hanok.model.validation import did_you_mean, shown

_NUMBER = re.compile(r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,3})?", re.A)
_LONGEST = 64

_BYTES = {
    "B": 1.0,
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMGT", 1)},
}
_BITS = {f"{prefix}bit": 1000.0**power / 8 for power, prefix in enumerate(("", "k", "M", "G"))}
_RATES = {**_BYTES, **_BITS, "sectors": 512.0}
# The unit first in each is the one that is meant when none is named.
FACTORS: Mapping[Metric, Mapping[str, float]] = {
    Metric.CPU: {"cores": 1.0, "percent-of-core": 0.01, "percent": 0.01, "fraction": 1.0},
    Metric.MEMORY: {**_BYTES, "percent": 0.01, "fraction": 1.0},
    Metric.DISK_READ: _RATES,
    Metric.DISK_WRITE: _RATES,
    Metric.NETWORK_RECEIVE: _RATES,
    Metric.NETWORK_SEND: _RATES,
}
# Units that are parts of what the server has.
SHARES = frozenset({"percent", "fraction"})
SIZE_UNITS: Mapping[str, Mapping[str, float]] = {
    "cores": {"cores": 1.0},
    "memory_size": _BYTES,
    "disk_size": _BYTES,
}


def parse_number(text: str) -> float | None:
    """Return the number that ``text`` is, or None: NaN, infinity and 1e999 are none."""
    text = text.strip()
    if len(text) > _LONGEST or _NUMBER.fullmatch(text) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def find_unit(units: Mapping[str, float], name: str | None, field: str) -> tuple[str, float]:
    """Return the unit called ``name`` (None: the first; ``/s`` may follow) and its factor.

    Raises InvalidInput naming ``field``.
    """
    if name is None:
        name = next(iter(units))
    plain = name.removesuffix("/s")
    if plain not in units:
        raise InvalidInput(
            f"{shown(name)} is no unit of this",
            field=field,
            expected=f"one of {', '.join(units)}",
            hint=did_you_mean(plain, units),
        )
    return plain, units[plain]
