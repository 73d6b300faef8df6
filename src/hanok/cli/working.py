"""Shows how far the command line's own work has come, if it takes longer than a second.

On a terminal a bar, elsewhere a line less and less often, for programs nothing. Work of the daemon
is shown by ``progress.py``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hanok.cli.output import Output, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE = 0.7  # seconds without a word
_LINE_EVERY, _SELDOM = 10.0, 3600.0  # seconds between lines: at first, and in the end


# Is told a message, and which part of the work is done (0 to 1, None: nobody knows).
Told = Callable[[str, float | None], None]


@contextmanager
def working(out: Output, title: str) -> Iterator[Told]:
    """Show work called ``title`` while it is done."""
    if out.as_json:
        yield _say_nothing
    elif sys.stderr.isatty():
        bar = _Bar(out, title)
        try:
            yield bar.tell
        finally:
            bar.close()
    else:
        yield _Lines(out, title).tell


def _say_nothing(_message: str, _fraction: float | None) -> None:
    return None


class _Lines:
    def __init__(self, out: Output, title: str) -> None:
        self._out = out
        self._title = title
        self._next = time.monotonic() + _PATIENCE
        self._pause = _LINE_EVERY

    def tell(self, message: str, fraction: float | None) -> None:
        """Print a line, if the last one was long enough ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._pause
            self._pause = min(2 * self._pause, _SELDOM)
            share = "" if fraction is None else f" ({fraction:.0%})"
            self._out.note(f"{self._title}: {message}{share}")


class _Bar:
    """A bar that comes when there is something to wait for, and vanishes at the end."""

    def __init__(self, out: Output, title: str) -> None:
        self._out = out
        self._title = title
        self._from = time.monotonic() + _PATIENCE
        self._shown: tuple[Progress, TaskID] | None = None

    def tell(self, message: str, fraction: float | None) -> None:
        """Move the bar."""
        if time.monotonic() < self._from:
            return
        if self._shown is None:
            self._shown = self._start()
        progress, task = self._shown
        progress.update(
            task,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            message=printable(message),
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown[0].stop()

    def _start(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", markup=False),
            console=Console(stderr=True, no_color=self._out.no_color, highlight=False),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self._title, total=None, message="")
