"""``hanok exec``: a command in a guest, by its agent."""

from __future__ import annotations

import base64
import os
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.base import Remainder, Session, common_options, complete_vm, pass_session
from hanok.errors import InvalidInput

if TYPE_CHECKING:
    from hanok.model.views import ExecView

_LARGEST_INPUT = 700 * 1024  # in base64 it must fit into the 1 MiB that a request may have
_PATIENCE = 2.0
_STDIN = 0


@click.command(
    "exec",
    cls=Remainder,
    examples=(
        "hanok exec web -- uname -a",
        "hanok exec web -- sh -c 'echo $HOSTNAME; false'; echo $?",
        "hanok exec web -- tee /etc/motd < motd",
    ),
)
@click.argument("name", shell_complete=complete_vm)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("-n", "--no-stdin", is_flag=True, help="Give the command no input.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take.",
)
@common_options
@pass_session
def execute(
    session: Session, name: str, command: Sequence[str], no_stdin: bool, timeout: float
) -> int:
    """Run COMMAND in the guest of the VM NAME; its exit status is the status of this.

    Standard input goes to the command unless it is a terminal: all of it is read first.
    """
    data = None if no_stdin or not _has_input() else _read_input(session)
    result = session.client.execute(name, command, stdin=data, timeout=timeout)
    if session.out.as_json:
        session.out.json(_for_programs(result))
    else:
        _write(1, base64.b64decode(result["stdout"]))
        _write(2, base64.b64decode(result["stderr"]))
        if result["truncated"]:
            session.out.note("hanok: the output was longer; this is its beginning")
    return result["exit_status"]


def _has_input() -> bool:
    """Return whether standard input is something to pass on: no terminal, not closed."""
    try:
        mode = os.fstat(_STDIN).st_mode
    except OSError:
        return False
    return not os.isatty(_STDIN) and not (stat.S_ISCHR(mode) and _is_null(_STDIN))


def _is_null(handle: int) -> bool:
    return os.fstat(handle).st_rdev == Path(os.devnull).stat().st_rdev


def _read_input(session: Session) -> bytes:
    """Return all of standard input. Raises InvalidInput when it is larger than 700 KiB."""
    if not select.select([_STDIN], [], [], _PATIENCE)[0]:
        session.out.note("hanok: waiting for the end of standard input (-n: give it no input)")
    found = bytearray()
    while chunk := os.read(_STDIN, 65536):
        found += chunk
        if len(found) > _LARGEST_INPUT:
            raise InvalidInput(
                "standard input is too large for exec",
                expected="at most 700 KiB",
                hint="copy a file into the guest with 'hanok cp'",
            )
    return bytes(found)


def _write(handle: int, data: bytes) -> None:
    (sys.stdout if handle == 1 else sys.stderr).flush()
    while data:
        data = data[os.write(handle, data) :]


def _for_programs(result: ExecView) -> dict[str, object]:
    """Return the result with both streams as text, and as base64 for those that are none."""
    shown: dict[str, object] = {
        "exit_status": result["exit_status"],
        "truncated": result["truncated"],
    }
    for name in ("stdout", "stderr"):
        encoded = result["stdout"] if name == "stdout" else result["stderr"]
        shown[name] = base64.b64decode(encoded).decode("utf-8", "replace")
        shown[f"{name}_base64"] = encoded
    return shown
