"""One question to every host at once: this machine and all remotes, within one time limit."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import click

from hanok.cli.base import Session
from hanok.cli.output import Cell, Output, printable, problem_of
from hanok.client.chosen import LOCAL
from hanok.client.client import Client
from hanok.client.daemon import open_client
from hanok.client.remotes import open_book, open_remote
from hanok.config import find_home
from hanok.errors import DaemonUnreachable, Forbidden, HanokError, TimedOut, Unauthorized

T = TypeVar("T")
LIMIT = 3.0  # seconds that a host has; one that is silent delays no other


class Answer(NamedTuple, Generic[T]):
    """What a host answered, or the error instead."""

    remote: str
    value: T | None
    error: HanokError | None


def ask_everywhere(
    session: Session, ask: Callable[[Client], T], limit: float = LIMIT
) -> list[Answer[T]]:
    """Ask this machine's daemon, which is not started for it, and all remotes; in that order.

    A machine that never had a daemon is left out. Raises UsageError when --remote was given.
    """
    if session.remote_name is not None:
        raise click.UsageError("--all asks every host: no --remote with it.")
    clients = _clients(limit)
    answers: queue.SimpleQueue[Answer[T]] = queue.SimpleQueue()
    deadline = time.monotonic() + limit

    def work(name: str, client: Client) -> None:
        try:
            answers.put(Answer(name, ask(client), None))
        except HanokError as error:
            answers.put(Answer(name, None, error))

    for name, client in clients.items():
        # Daemon threads: one that still looks up a name must not keep this process.
        threading.Thread(target=work, args=(name, client), daemon=True).start()
    found: dict[str, Answer[T]] = {}
    while len(found) < len(clients):
        try:
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[answer.remote] = answer
    silent = TimedOut(f"no answer within {limit:g} s", hint="'hanok remote show' tells more")
    return [found.get(name, Answer(name, None, silent)) for name in clients]


def _clients(limit: float) -> dict[str, Client]:
    clients = {}
    local = open_client(os.environ, start=False)
    if find_home(os.environ).exists():
        clients[LOCAL] = local
    remotes = open_book(os.environ).load()
    for name in sorted(remotes):
        clients[name] = open_remote(remotes[name], connect_limit=limit)
    return clients


def error_view(answer: Answer[T]) -> dict[str, object]:
    """Return what programs get of a host that gave an error."""
    assert answer.error is not None  # noqa: S101  the caller has looked
    return {"remote": answer.remote, "error": problem_of(answer.error)}


def error_row(answer: Answer[T], columns: int) -> tuple[Cell | str, ...]:
    """Return a table's row for a host that gave an error: its name and, in short, which."""
    short = "no answer"
    if isinstance(answer.error, Unauthorized | Forbidden):
        short = "refused"
    elif answer.error is not None and not isinstance(answer.error, DaemonUnreachable | TimedOut):
        short = "error"
    rest = ("-",) * (columns - 3)
    return (Cell(answer.remote, "bold"), "-", Cell(short, "red"), *rest)


def print_errors(out: Output, answers: Sequence[Answer[T]]) -> None:
    """Print below a table why hosts gave no answer."""
    failed = [(answer.remote, answer.error) for answer in answers if answer.error is not None]
    for name, error in failed:
        out.line()
        out.pairs([(f"{printable(name)}:", error.message), ("", error.hint or None)])
