"""``hanok network``: what VMs talk over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hanok.cli.base import (
    Example,
    Lazy,
    LazyGroup,
    Session,
    common_options,
    complete_network,
    pass_session,
)
from hanok.cli.output import Cell
from hanok.errors import HanokError

if TYPE_CHECKING:
    from hanok.model.views import NetworkView


@click.group(
    "network",
    cls=LazyGroup,
    sections={
        "Commands": {
            "list": Lazy("networks", "list_networks", "List the networks of this host."),
            "create": Lazy("networks", "create", "Create a network."),
            "show": Lazy("networks", "show", "Show a network and the VMs on it."),
            "delete": Lazy("networks", "delete", "Delete networks that no VM is on."),
        }
    },
    aliases={"ls": "list", "rm": "delete"},
    examples=("hanok network create backstage --no-outward", "hanok network list"),
)
def network() -> None:
    """List, create, show and delete networks. Networks never reach each other."""


@click.command("list", cls=Example, examples=("hanok network list",))
@common_options
@pass_session
def list_networks(session: Session) -> None:
    """List the networks of this host."""
    found = session.client.networks()
    if session.out.as_json:
        session.out.json(found)
    elif not found:
        session.out.line("No networks yet; 'hanok run' makes the one called default.")
    else:
        rows = [
            (
                one["name"],
                one["subnet"],
                one["gateway"],
                _state(one),
                _outward(one),
                ", ".join(one["vms"]) or "-",
            )
            for one in found
        ]
        titles = ("NAME", "SUBNET", "GATEWAY", "STATE", "OUTWARD", "VMS")
        session.out.table(titles, rows)


def _state(network: NetworkView) -> Cell:
    return Cell("running", "green") if network["running"] else Cell("stopped", "dim")


def _outward(network: NetworkView) -> str:
    return "yes" if network["outward"] else "no"


@click.command(
    "create",
    cls=Example,
    examples=(
        "hanok network create backstage",
        "hanok network create lab --subnet 10.77.5.0/24 --no-outward",
    ),
)
@click.argument("name")
@click.option("--subnet", metavar="IPV4/PREFIX", help="Its addresses (default: the next free).")
@click.option("--no-outward", is_flag=True, help="Its VMs reach each other and nothing else.")
@common_options
@pass_session
def create(session: Session, name: str, subnet: str | None, no_outward: bool) -> None:
    """Create the network NAME."""
    found = session.client.create_network(
        {"name": name, "subnet": subnet, "outward": not no_outward}
    )
    if session.out.as_json:
        session.out.json(found)
    else:
        session.out.line(f"{found['name']} is created: {found['subnet']}")


@click.command("show", cls=Example, examples=("hanok network show default",))
@click.argument("name", shell_complete=complete_network)
@common_options
@pass_session
def show(session: Session, name: str) -> None:
    """Show the network NAME and the VMs on it."""
    found = session.client.network(name)
    if session.out.as_json:
        session.out.json(found)
        return
    session.out.pairs(
        [
            ("name", Cell(found["name"], "bold")),
            ("state", _state(found)),
            ("reason", found["reason"]),
            ("subnet", found["subnet"]),
            ("gateway", found["gateway"]),
            ("outward", _outward(found)),
            ("VMs", "\n".join(found["vms"]) or "none"),
        ]
    )


@click.command("delete", cls=Example, examples=("hanok network delete lab",))
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_network
)
@common_options
@pass_session
def delete(session: Session, names: Sequence[str]) -> int:
    """Delete networks that no VM is on."""
    status = 0
    for name in names:
        try:
            session.client.delete_network(name)
            session.out.line(f"{name} is deleted")
        except HanokError as error:
            session.out.error(error)
            status = max(status, error.exit_status)
    if session.out.as_json:
        session.out.json(session.client.networks())
    return status
