"""Tables of text (CSV by RFC 4180, or with ``;``, tabs or ``|``), read a row at a time.

Whoever made a table may have put anything into it. A row is one line: a quoted line break would let
a row grow without end.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.assess.limits import LIMITS, Limits
from hanok.assess.reading import Tell, read_lines, tell_nobody
from hanok.errors import InvalidInput
from hanok.model.validation import nearest, shown

_DELIMITERS = (",", ";", "\t", "|")
_NAMED = 12


@dataclass(frozen=True)
class Row:
    """The cells of a line, and where it is (``file:line``)."""

    cells: Sequence[str]
    place: str


def read_rows(path: Path, limits: Limits = LIMITS, tell: Tell = tell_nobody) -> Iterator[Row]:
    """Yield the rows of a table that are not empty; the first tells what parts its cells.

    Raises NotFound, and InvalidInput naming the line for what is no table or beyond ``limits``.
    """
    lines = _OneAtATime(read_lines(path, limits, tell), path.name)
    first = lines.peek()
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        # Spaces after a delimiter are no part of a cell: Bitbrains has ";\t" between its own.
        for cells in csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True):
            place = f"{path.name}:{lines.taken}"
            if len(cells) > limits.columns:
                raise InvalidInput(
                    f"{len(cells)} columns", field=place, expected=f"at most {limits.columns}"
                )
            if lines.taken > limits.rows:
                raise InvalidInput(
                    "too many rows", field=place, expected=f"at most {limits.rows} in a file"
                )
            lines.next_row()
            if cells:
                yield Row(cells, place)
    except csv.Error as error:
        raise InvalidInput(
            f"this is no row of a table: {error}", field=f"{path.name}:{lines.taken}"
        ) from None


class _OneAtATime:
    """Lines for a reader that may take one for each row. Raises InvalidInput when it takes two."""

    def __init__(self, lines: Iterable[str], name: str) -> None:
        self._lines = iter(lines)
        self._name = name
        self._first: str | None = None
        self._row_is_open = False
        self.taken = 0

    def peek(self) -> str:
        """Return the first line without taking it; empty when there is none."""
        self._first = next(self._lines, "")
        return self._first

    def next_row(self) -> None:
        """Let the reader take a line for another row."""
        self._row_is_open = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._row_is_open:
            raise InvalidInput(
                "a quoted text does not end on its line",
                field=f"{self._name}:{self.taken}",
                expected="one row a line",
            )
        line = next(self._lines) if self._first is None else self._first
        self._first = None
        self.taken += 1
        self._row_is_open = True
        return line


class Header:
    """The names of a table's columns."""

    def __init__(self, row: Row) -> None:
        self.names = [name.strip() for name in row.cells]
        self.place = row.place

    def listed(self) -> str:
        """Return the names, or the first of many, for an error."""
        more = ", …" if len(self.names) > _NAMED else ""
        return ", ".join(shown(name) for name in self.names[:_NAMED]) + more

    def find(self, name: str, field: str) -> int:
        """Return the position of the column ``name``. Raises InvalidInput naming ``field``."""
        found = [at for at, one in enumerate(self.names) if one == name]
        if len(found) == 1:
            return found[0]
        what = "there twice" if found else "not there"
        raise InvalidInput(
            f"the column {shown(name)} is {what}",
            field=field,
            expected=f"one of {self.listed()}",
            hint=self._meant(name),
        )

    def _meant(self, name: str) -> str | None:
        by_lower = {one.lower(): one for one in self.names}
        close = nearest(name, by_lower)
        return None if close is None else f"did you mean {shown(by_lower[close])}?"


def cell(row: Row, at: int) -> str:
    """Return a cell; empty when the row ends before it."""
    return row.cells[at].strip() if at < len(row.cells) else ""
