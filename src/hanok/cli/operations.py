"""``hanok operations``: long work that the daemon does."""

from __future__ import annotations

import click

from hanok.cli.base import (
    Example,
    Lazy,
    LazyGroup,
    Session,
    common_options,
    complete_operation,
    pass_session,
)
from hanok.cli.listing import seconds, when
from hanok.cli.output import state_cell
from hanok.cli.progress import follow as follow_operation
from hanok.cli.progress import title_of
from hanok.client.client import failure
from hanok.client.wire import OperationWire

_ident = click.argument("ident", metavar="ID", shell_complete=complete_operation)


@click.group(
    "operations",
    cls=LazyGroup,
    sections={
        "Commands": {
            "list": Lazy("operations", "list_operations", "List what goes on and what was done."),
            "show": Lazy("operations", "show", "Show one operation."),
            "follow": Lazy("operations", "follow", "Follow an operation to its end."),
            "cancel": Lazy("operations", "cancel", "Cancel an operation; what it did is undone."),
        }
    },
    aliases={"ls": "list"},
)
def operations() -> None:
    """List, show, follow and cancel long work (run, up, stop, image builds)."""


@click.command("list", cls=Example, examples=("hanok operations list",))
@common_options
@pass_session
def list_operations(session: Session) -> None:
    """List the operations that the daemon remembers."""
    found = session.client.operations()
    if session.out.as_json:
        session.out.json(found)
    elif not found:
        session.out.line("No operations.")
    else:
        rows = [
            (
                one["id"],
                title_of(one),
                state_cell(one["state"]),
                when(one["created"]) or "-",
                one["message"],
            )
            for one in found
        ]
        session.out.table(("ID", "WHAT", "STATE", "BEGUN", "MESSAGE"), rows)


@click.command("show", cls=Example, examples=("hanok operations show 6f1d2c",))
@_ident
@common_options
@pass_session
def show(session: Session, ident: str) -> None:
    """Show the operation ID."""
    operation = session.client.operation(ident)
    if session.out.as_json:
        session.out.json(operation)
    else:
        _print(session, operation)


def _print(session: Session, operation: OperationWire) -> None:
    fraction, error = operation["fraction"], failure(operation)
    finished = operation["finished"]
    session.out.pairs(
        [
            ("id", operation["id"]),
            ("what", title_of(operation)),
            ("state", state_cell(operation["state"])),
            ("progress", None if fraction is None else f"{fraction:.0%}"),
            ("message", operation["message"] or None),
            ("error", None if error is None else error.message),
            ("hint", None if error is None else error.hint),
            ("begun", when(operation["created"])),
            ("took", None if finished is None else seconds(finished - operation["created"])),
        ]
    )


@click.command("follow", cls=Example, examples=("hanok operations follow 6f1d2c",))
@_ident
@common_options
@pass_session
def follow(session: Session, ident: str) -> None:
    """Follow the operation ID to its end; fails when it fails."""
    final = follow_operation(session, session.client.operation(ident))
    if session.out.as_json:
        session.out.json(final)
    else:
        session.out.line(f"{title_of(final)} is {final['state']}")


@click.command("cancel", cls=Example, examples=("hanok operations cancel 6f1d2c",))
@_ident
@common_options
@pass_session
def cancel(session: Session, ident: str) -> None:
    """Cancel the operation ID; the daemon undoes what it did."""
    operation = session.client.cancel(ident) or session.client.operation(ident)
    if session.out.as_json:
        session.out.json(operation)
    else:
        session.out.line(f"{title_of(operation)} is being cancelled")
