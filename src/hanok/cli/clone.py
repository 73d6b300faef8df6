"""``hanok clone``: VMs from a template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hanok.cli.base import (
    Example,
    Session,
    common_options,
    complete_network,
    complete_template,
    pass_session,
)
from hanok.cli.listing import print_vms, seconds, spans
from hanok.cli.output import printable
from hanok.cli.progress import follow

if TYPE_CHECKING:
    from hanok.client.wire import OperationWire

_MOST_SHOWN = 10


@click.command(
    "clone",
    cls=Example,
    examples=(
        "hanok clone base --name web-2",
        "hanok clone base --count 100 --name web-{n}",
        "hanok clone base --count 10 --first 101 --name web-{n}",
        "hanok clone base --full --name alone --publish 8080:80",
    ),
)
@click.argument("template", shell_complete=complete_template)
@click.option("--name", required=True, help="The clone's name; with {n} for a number.")
@click.option("--count", type=int, help="How many (default 1).")
@click.option("--first", type=int, metavar="N", help="The number that {n} begins at (default 1).")
@click.option("--linked", is_flag=True, help="Share the disk only: boot on the template's disk.")
@click.option("--full", is_flag=True, help="Share nothing: boot on a disk of its own.")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_network,
    help="A network that it is on (default: the template's). Repeatable.",
)
@click.option(
    "--publish",
    multiple=True,
    metavar="[ADDRESS:]HOST:GUEST",
    help="Reach the guest's TCP port at a port of this host. Repeatable.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait until they are ready.")
@common_options
@pass_session
def clone(
    session: Session,
    template: str,
    name: str,
    count: int | None,
    first: int | None,
    linked: bool,
    full: bool,
    networks: Sequence[str],
    publish: Sequence[str],
    no_wait: bool,
) -> None:
    """Make VMs of TEMPLATE, all of them or none, and wait until they are ready.

    Without --linked and --full a clone shares memory and disk with its template and runs at once.
    Each has a name, addresses, keys and randomness of its own.
    """
    if linked and full:
        raise click.UsageError("--linked and --full exclude each other.")
    fields: dict[str, object] = {
        "count": count,
        "first": first,
        "kind": "linked" if linked else "full" if full else None,
        "networks": list(networks) or None,
        "publish": list(publish) or None,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    operation = session.client.clone({"template": template, "name": name, **given})
    if no_wait:
        if session.out.as_json:
            session.out.json(operation)
        session.out.line(f"Operation {operation['id']} goes on in the daemon.")
        return
    final = follow(session, operation)
    if session.out.as_json:
        session.out.json(final["result"] or final)
    else:
        _print(session, template, final)


def _print(session: Session, template: str, final: OperationWire) -> None:
    """Print a table of the clones when they are few, and a line that sums up."""
    names: list[str] = (final["result"] or {}).get("names", [])
    if len(names) <= _MOST_SHOWN:
        vms = {vm["name"]: vm for vm in session.client.vms()}
        print_vms(session.out, [vms[name] for name in names if name in vms])
        session.out.line()
    finished = final["finished"]
    took = None if finished is None else seconds(finished - final["created"])
    session.out.line(summary(names, template) + (f", {took}" if took else ""))
    if names:
        session.out.line(f"Try: {session.program} exec {names[0]} -- uname -a")


def summary(names: Sequence[str], template: str) -> str:
    """Return what was made: ``100 clones of base are ready, web-1 to web-100``."""
    one = len(names) == 1
    what = f"{len(names)} clone{'s' * (not one)} of {template} {'is' if one else 'are'} ready"
    known = spans(names)
    # Names with the number inside, as n1-db, make no run: the first and the last say enough.
    told = ", ".join(known) if len(known) <= 3 else f"{names[0]} to {names[-1]}"
    return printable(f"{what}, {told}" if told else what)
