"""Changes to JSON that was good: any value at any place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Place = tuple[str | int, ...]


def places(data: object) -> list[Place]:
    """Return the ways to every value in ``data``."""
    return [place for place in _places(data, ()) if place]


def _places(data: object, here: Place) -> Iterator[Place]:
    yield here
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _places(value, (*here, key))
    elif isinstance(data, list):
        for at, value in enumerate(data):
            yield from _places(value, (*here, at))


def changed(data: Any, place: Place, value: object) -> Any:
    """Return a copy of ``data`` with ``value`` at ``place``."""
    found = copy.deepcopy(data)
    inner = found
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return found


def json_values() -> st.SearchStrategy[object]:
    """Return values that JSON can hold, also those that only Python's writes."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    numbers = st.sampled_from(["NaN", "-1", "1e308", "0", "99999999999", "2026-11-29"])
    return st.recursive(
        plain | numbers,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=5,
    )
