"""Sizes: what people write (``512M``) to bytes and back.

Suffixes are binary, as in every tool of this field: 1K is 1024 bytes.
"""

from __future__ import annotations

import re

from hanok.errors import InvalidInput

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_FACTORS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,6})?)\s*(?P<suffix>[KMGT]?)(?:i?B)?", re.I | re.A)
_MAX_SIZE = 8 * 1024 * TIB


def parse_size(text: str | int, *, field: str | None = None) -> int:
    """Return the bytes that ``text`` stands for (``512M``, ``4G``, ``1.5GiB``, ``65536``).

    Raises InvalidInput, naming ``field``, when it is not a size between 1 byte and 8 PiB.
    """
    if isinstance(text, bool):
        raise _bad_size(text, field)
    if isinstance(text, int):
        size = text
    else:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise _bad_size(text, field)
        size = int(float(match["number"]) * _FACTORS[match["suffix"].upper()])
    if not 1 <= size <= _MAX_SIZE:
        raise _bad_size(text, field)
    return size


def _bad_size(text: object, field: str | None) -> InvalidInput:
    shown = str(text)[:40]
    return InvalidInput(
        f"{shown!r} is not a size",
        field=field,
        expected="a number with K, M, G or T, such as 512M or 4G",
    )


def format_size(size: int) -> str:
    """Return ``size`` bytes for people: ``512 MiB``, ``1.5 GiB``, exact when it can be."""
    for factor, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size) >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} B"
