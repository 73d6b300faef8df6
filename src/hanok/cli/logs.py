"""``hanok logs`` and ``hanok events``."""

from __future__ import annotations

import codecs
import re
import sys
import time
from collections.abc import Iterator

import click

from hanok.cli.base import Example, Session, common_options, complete_vm, pass_session
from hanok.cli.output import printable, state_cell
from hanok.client.wire import EventWire

# What a guest may do to a terminal: colours. Everything else (titles, queries, moves) is taken out.
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: to their terminator
    r"|\x1b[ -/]*[0-~]"
)


@click.command("logs", cls=Example, examples=("hanok logs web -n 20", "hanok logs -f web"))
@click.argument("name", shell_complete=complete_vm)
@click.option("-f", "--follow", is_flag=True, help="Go on as the guest writes, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    help="Only the last lines (default: the last 1000).",
)
@common_options
@pass_session
def logs(session: Session, name: str, follow: bool, lines: int | None) -> None:
    """Print what the guest of the VM NAME wrote to its console."""
    chunks = session.client.logs(name, lines=lines, follow=follow)
    if session.out.as_json:
        _logs_as_json(session, name, chunks, follow)
    elif sys.stdout.isatty():
        for line in _text_lines(chunks):
            print(terminal_safe(line), flush=follow)
    else:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            if follow:
                sys.stdout.buffer.flush()


def _logs_as_json(session: Session, name: str, chunks: Iterator[bytes], follow: bool) -> None:
    if follow:
        for line in _text_lines(chunks):
            session.out.json({"name": name, "line": line}, compact=True)
    else:
        session.out.json({"name": name, "lines": list(_text_lines(chunks))})


def _text_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line.rstrip("\r") for line in whole)
    if rest:
        yield rest.rstrip("\r")


def terminal_safe(line: str) -> str:
    """Return ``line`` with colours only: a guest must not steer the terminal of who looks on."""
    parts = _COLOUR.split(line)
    kept = [part if at % 2 else printable(_SEQUENCE.sub("", part)) for at, part in enumerate(parts)]
    return "".join(kept) + ("\x1b[0m" if len(parts) > 1 else "")


@click.command("events", cls=Example, examples=("hanok events", "hanok events -f --json"))
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen, until Ctrl-C.")
@click.option("--since", type=click.IntRange(min=0), metavar="NUMBER", help="After this event.")
@common_options
@pass_session
def events(session: Session, follow: bool, since: int | None) -> None:
    """Print what happened on this host; with --json one object a line."""
    for event in session.client.events(follow=follow, since=since):
        if session.out.as_json:
            session.out.json(event, compact=True)
        else:
            _print_event(session, event)


def _print_event(session: Session, event: EventWire) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    what = f"{event['kind']} {event['target']}"
    paint = session.out.paint
    state = state_cell(event["name"])
    words = (
        paint(moment, "dim", sys.stdout),
        printable(f"{what:<28}"),
        paint(printable(f"{state.text:<10}"), state.style, sys.stdout),
        printable(event["message"]),
    )
    print(" ".join(words).rstrip(), flush=True)
