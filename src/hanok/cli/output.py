"""What commands print: tables and colours for people, JSON for programs, errors for both.

The tables are 60 lines of our own: rich takes 40 ms to import and 100 ms to draw 100 rows, which
alone would be the time that ``hanok list`` has. rich draws the progress bars (``progress.py``).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from hanok.errors import HanokError

WIDTH = 100
_NARROWEST = 8
_GAP = "  "
_STYLES = {
    "green": "32",
    "yellow": "33",
    "red": "31",
    "cyan": "36",
    "blue": "34",
    "dim": "2",
    "bold": "1",
    "error": "1;31",
}
_STATE_STYLES = {
    "ready": "green",
    "done": "green",
    "running": "cyan",
    "creating": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "pending": "yellow",
    "paused": "blue",
    "stopped": "dim",
    "failed": "red",
    "unhealthy": "red",
    "waiting": "yellow",
    "cancelled": "yellow",
}
# All control characters but line feed and tab; the C1 ones start sequences in some terminals too.
# Then what turns the direction of text, and halves of characters, which cannot be written at all.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Cell(NamedTuple):
    """Text with a style of its own (a colour, ``bold``, ``dim``)."""

    text: str
    style: str | None = None


def state_cell(state: str) -> Cell:
    """Return ``state`` in its colour."""
    return Cell(state, _STATE_STYLES.get(state))


def printable(text: str) -> str:
    """Return ``text`` without control characters: guests and hosts have a hand in what is shown."""
    return _CONTROL.sub("?", text)


class Output:
    """Where the words of one command go. ``as_json``: for programs, with no word for people."""

    def __init__(self) -> None:
        self.as_json = False
        self.no_color = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"

    def json(self, value: object, *, compact: bool = False) -> None:
        """Print ``value`` as JSON, on one line when ``compact``."""
        # ASCII on purpose: it survives every locale, and no escape sequence gets through.
        print(json.dumps(value, indent=None if compact else 2), flush=compact)

    def line(self, text: str = "") -> None:
        """Print a line for people, which programs do not get."""
        if not self.as_json:
            print(printable(text))

    def note(self, text: str) -> None:
        """Print a line on standard error for people, which programs do not get."""
        if not self.as_json:
            print(printable(text), file=sys.stderr, flush=True)

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> None:
        """Print a table with ``titles``; a title that starts with ``>`` is set to the right."""
        if self.as_json:
            return
        for row in draw_table(titles, rows, width_of(sys.stdout)):
            print(self._join(row, sys.stdout))

    def pairs(self, pairs: Sequence[tuple[str, Cell | str | None]]) -> None:
        """Print names and values under each other; a value of None is left out.

        On a terminal long values are folded between words; elsewhere a line stays a line.
        """
        if self.as_json:
            return
        shown = [(name, value) for name, value in pairs if value is not None]
        widest = max((len(name) for name, _ in shown), default=0)
        room = width_of(sys.stdout) - widest - len(_GAP) if sys.stdout.isatty() else None
        for name, value in shown:
            cell = value if isinstance(value, Cell) else Cell(value)
            lines = _wrap(printable(cell.text), room)
            text = ("\n" + " " * (widest + len(_GAP))).join(lines)
            label = self.paint(f"{name:<{widest}}", "dim", sys.stdout)
            print(f"{label}{_GAP}{self.paint(text, cell.style, sys.stdout)}")

    def paint(self, text: str, style: str | None, stream: TextIO) -> str:
        """Return ``text`` in ``style``, or as it is where colours are not wanted."""
        if style is None or not text or self.no_color or not stream.isatty():
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def _join(self, cells: Sequence[Cell], stream: TextIO) -> str:
        last = len(cells) - 1
        texts = (cell.text.rstrip() if at == last else cell.text for at, cell in enumerate(cells))
        painted = (
            self.paint(text, cell.style, stream) for text, cell in zip(texts, cells, strict=True)
        )
        return _GAP.join(painted).rstrip()

    def error(self, error: HanokError, *, place: str | None = None) -> None:
        """Print ``error`` on standard error; ``place`` is the file and line at fault."""
        if self.as_json:
            found = problem_of(error)
            if place is not None:
                found["place"] = place
            print(json.dumps(found, indent=2), file=sys.stderr)
            return
        label = self.paint("error:", "error", sys.stderr)
        where = f"{place}: " if place else ""
        print(f"{label} {printable(where + error.message)}", file=sys.stderr)
        for name in ("field", "expected", "hint"):
            value: str | None = getattr(error, name)
            if value:
                print(f"  {name + ':':<9} {printable(value)}", file=sys.stderr)


def problem_of(error: HanokError) -> dict[str, object]:
    """Return ``error`` as the API writes it (RFC 9457)."""
    details: dict[str, object] = getattr(error, "details", {})
    return {
        "type": "about:blank",
        "title": type(error).__name__,
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "field": error.field,
        "expected": error.expected,
        "hint": error.hint,
        **details,
    }


def width_of(stream: TextIO) -> int:
    """Return the columns that ``stream`` has; 100 when it is no terminal and COLUMNS is unset."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except (OSError, ValueError):
        return WIDTH


def draw_table(
    titles: Sequence[str], rows: Sequence[Sequence[Cell | str]], width: int
) -> list[list[Cell]]:
    """Return the table's lines, each a list of padded cells at most ``width`` wide together.

    Columns that do not fit are folded onto more lines, the widest first and between words as long
    as that is enough, so that nothing is lost; only columns that are as narrow as 8 characters are
    left to overflow.
    """
    right = [title.startswith(">") for title in titles]
    head = [Cell(title.lstrip(">"), "bold") for title in titles]
    body = [[_clean(cell) for cell in row] for row in rows]
    widths = [
        max(len(row[at].text) for row in [head, *body]) if titles else 0
        for at in range(len(titles))
    ]
    words = [max(_longest_word(row[at].text) for row in [head, *body]) for at in range(len(titles))]
    room = width - len(_GAP) * (len(titles) - 1)
    _narrow(widths, room, words)
    _narrow(widths, room, [0] * len(titles))
    return [line for row in [head, *body] for line in _fold_row(row, widths, right)]


def _clean(cell: Cell | str) -> Cell:
    text, style = cell if isinstance(cell, Cell) else (cell, None)
    return Cell(printable(text).replace("\n", " "), style)


def _longest_word(text: str) -> int:
    """Return the length of the longest part of ``text`` that folding leaves whole."""
    return max((len(word) for word in text.replace(",", ", ").split()), default=0)


def _narrow(widths: list[int], room: int, least: Sequence[int]) -> None:
    """Take columns from the widest that is above its ``least`` until all fit into ``room``."""
    while sum(widths) > room:
        wide = [at for at, width in enumerate(widths) if width > max(_NARROWEST, least[at])]
        if not wide:
            return
        widths[max(wide, key=widths.__getitem__)] -= 1


def _wrap(text: str, room: int | None) -> list[str]:
    """Return the lines of ``text``, folded between words where they are longer than ``room``."""
    if room is None or room < _NARROWEST:
        return text.split("\n")
    import textwrap

    folded = (
        textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return [part for parts in folded for part in parts or [""]]


def _fold_row(
    row: Sequence[Cell], widths: Sequence[int], right: Sequence[bool]
) -> list[list[Cell]]:
    folded = [_fold(cell.text, width) for cell, width in zip(row, widths, strict=True)]
    height = max((len(parts) for parts in folded), default=0)
    lines = []
    for at in range(height):
        texts = (parts[at] if at < len(parts) else "" for parts in folded)
        lines.append(
            [
                Cell(text.rjust(width) if to_right else text.ljust(width), cell.style)
                for text, width, to_right, cell in zip(texts, widths, right, row, strict=True)
            ]
        )
    return lines


def _fold(text: str, width: int) -> list[str]:
    """Cut ``text`` into parts of ``width``, after a space or comma where there is one."""
    parts = []
    while len(text) > width:
        cut = max(text.rfind(" ", 0, width + 1), text.rfind(",", 0, width) + 1)
        cut = cut if cut > 0 else width
        parts.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*parts, text]
