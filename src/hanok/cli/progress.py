"""Follow operations to their end: bars on a terminal, plain lines elsewhere, nothing for JSON."""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from hanok.cli.base import Session
from hanok.cli.output import Output, printable
from hanok.client.client import Client, failure
from hanok.client.wire import FINAL_STATES, OperationWire
from hanok.errors import HanokError


class View(Protocol):
    """Shows how operations go."""

    def show(self, operation: OperationWire) -> None:
        """Show ``operation`` as it is now."""
        ...


def follow(session: Session, operation: OperationWire, *, cancel: bool = False) -> OperationWire:
    """Follow one operation to its end and return it. Raises the error that it ended with.

    With ``cancel`` Ctrl-C ends the operation too.
    """
    final = follow_all(session, [operation], cancel=cancel)[0]
    error = failure(final)
    if error is not None:
        raise error
    return final


def follow_all(
    session: Session, operations: Sequence[OperationWire], *, cancel: bool = False
) -> list[OperationWire]:
    """Follow ``operations`` to their ends and return them in the same order.

    Ctrl-C ends the following, not the operations: it says so and raises KeyboardInterrupt. With
    ``cancel`` they are cancelled before that.
    """
    latest = {operation["id"]: operation for operation in operations}
    try:
        with open_view(session.out) as view:
            for operation in operations:
                view.show(operation)
            for operation in _changes(session.client, operations):
                latest[operation["id"]] = operation
                view.show(operation)
    except KeyboardInterrupt:
        if cancel:
            _cancel(session, list(latest.values()))
            raise
        _say_goes_on(session, list(latest.values()))
    return [latest[operation["id"]] for operation in operations]


def _changes(client: Client, operations: Sequence[OperationWire]) -> Iterator[OperationWire]:
    going = [one["id"] for one in operations if one["state"] not in FINAL_STATES]
    if len(going) == 1:
        yield from client.follow(going[0])
    elif going:
        yield from _merged(client, going)


def _merged(client: Client, idents: Sequence[str]) -> Iterator[OperationWire]:
    """Yield the changes of several operations as they come."""
    found: queue.SimpleQueue[OperationWire | HanokError | None] = queue.SimpleQueue()

    def pump(ident: str) -> None:
        try:
            for operation in client.follow(ident):
                found.put(operation)
            found.put(None)
        except HanokError as error:
            found.put(error)

    for ident in idents:
        threading.Thread(target=pump, args=(ident,), daemon=True).start()
    left = len(idents)
    broken: HanokError | None = None
    while left:
        item = found.get()
        if item is None or isinstance(item, HanokError):
            left -= 1
            broken = broken or item
        else:
            yield item
    if broken is not None:
        raise broken


def _cancel(session: Session, operations: Sequence[OperationWire]) -> None:
    for operation in operations:
        if operation["state"] not in FINAL_STATES:
            with suppress(HanokError):  # it may just have ended
                session.client.cancel(operation["id"])


def _say_goes_on(session: Session, operations: Sequence[OperationWire]) -> NoReturn:
    out, program = session.out, session.program
    out.note("")
    for operation in operations:
        if operation["state"] not in FINAL_STATES:
            ident = operation["id"]
            out.note(
                f"{title_of(operation)} goes on in the daemon.\n"
                f"  follow it again:  {program} operations follow {ident}\n"
                f"  cancel it:        {program} operations cancel {ident}"
            )
    raise KeyboardInterrupt


def title_of(operation: OperationWire) -> str:
    """Return what ``operation`` does, such as ``run web``."""
    return printable(f"{operation['kind']} {operation['target']}".rstrip())


class Sending:
    """How much of a file was sent, or came, shown at each hundredth."""

    def __init__(self, view: View, name: str, size: int, verb: str = "send") -> None:
        self._view = view
        self._verb = verb
        self._name = name
        self._size = size
        self._sent = 0
        self._shown = -1

    def add(self, count: int) -> None:
        """Count bytes that were sent, or came."""
        self._sent += count
        hundredth = 100 * self._sent // self._size if self._size else 100
        if hundredth == self._shown:
            return
        self._shown = hundredth
        message = f"{hundredth} of 100 percent"
        self._view.show(local_operation(self._verb, self._name, message, hundredth / 100))


@contextmanager
def sending(session: Session, name: str, size: int, verb: str = "send") -> Iterator[Sending]:
    """Show how ``size`` bytes called ``name`` are sent (or fetched), during the block."""
    with open_view(session.out) as view:
        yield Sending(view, name, size, verb)


def local_operation(kind: str, target: str, message: str, fraction: float | None) -> OperationWire:
    """Return what looks like an operation, for work that the command itself does."""
    return {
        "id": kind,
        "kind": kind,
        "target": target,
        "state": "running",
        "message": message,
        "fraction": fraction,
        "error": None,
        "result": None,
        "arguments": {},
        "created": 0.0,
        "finished": None,
    }


def open_view(out: Output) -> AbstractContextManager[View]:
    """Return what shows how operations go: bars on a terminal, lines elsewhere."""
    if out.as_json:
        return nullcontext(_Silent())
    if sys.stderr.isatty() and not _is_dumb():
        return _Bars(out.no_color)
    return nullcontext(_Lines(out))


def _is_dumb() -> bool:
    import os

    return os.environ.get("TERM", "dumb") == "dumb"


class _Silent:
    def show(self, operation: OperationWire) -> None:
        """Show nothing."""


class _Lines:
    """A line for each new message, so that a log shows how far it came.

    Of messages that only count (``37 of 100 ready``) one for each tenth: not a thousand lines.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last: dict[str, str] = {}
        self._tenth: dict[str, int] = {}

    def show(self, operation: OperationWire) -> None:
        """Print the message when it is new."""
        ident, message = operation["id"], operation["message"]
        if not message or self._last.get(ident) == message or self._is_too_soon(operation):
            return
        self._last[ident] = message
        self._out.note(f"{title_of(operation)}: {printable(message)}")

    def _is_too_soon(self, operation: OperationWire) -> bool:
        """Return whether a count has not come to its next tenth."""
        fraction = operation["fraction"]
        is_count = re.match(r"[0-9]+ of [0-9]+\b", operation["message"]) is not None
        if fraction is None or not is_count or operation["state"] in FINAL_STATES:
            return False
        tenth = int(fraction * 10 + 1e-9)
        if self._tenth.get(operation["id"]) == tenth:
            return True
        self._tenth[operation["id"]] = tenth
        return False


class _Bars:
    """A line for each operation: title, bar, message, time. They vanish at the end."""

    def __init__(self, no_color: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[message]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=Console(stderr=True, no_color=no_color, highlight=False),
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, operation: OperationWire) -> None:
        """Move the operation's bar; without a fraction it only shows that something happens."""
        ident = operation["id"]
        if ident not in self._tasks:
            self._tasks[ident] = self._progress.add_task(
                title_of(operation), total=None, message=""
            )
        fraction = operation["fraction"]
        if operation["state"] in FINAL_STATES:
            fraction = 1.0
        self._progress.update(
            self._tasks[ident],
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            message=printable(operation["message"]),
        )
