"""``hanok up`` and ``hanok down``: several VMs from one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.listing import (
    hypervisor_of,
    is_loopback,
    ports_of,
    ports_there,
    reached_at,
    seconds,
)
from hanok.cli.output import Cell
from hanok.cli.progress import follow
from hanok.cli.stackfile import StackFile, read_stack_file
from hanok.errors import HanokError
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.client.remotes import Remote
    from hanok.model.views import PortView, StackView, VmView

DEFAULT_FILE = "hanok.yaml"
_WEB_PORTS = (80, 3000, 5000, 8000, 8080)

_file = click.argument(
    "file", type=click.Path(path_type=Path), default=DEFAULT_FILE, metavar="[FILE]"
)


@click.command("up", cls=Example, examples=("hanok up", "hanok up examples/three-servers.yaml"))
@_file
@click.option("--no-wait", is_flag=True, help="Do not wait until each is ready.")
@common_options
@pass_session
def up(session: Session, file: Path, no_wait: bool) -> int:
    """Create and start what FILE describes, and wait until each VM is ready.

    FILE is hanok.yaml of the current folder unless given. What is there already as the file says
    is left alone: a second "up" changes nothing.
    """
    stack_file = read_stack_file(file)
    try:
        operation = session.client.up(stack_file.name, stack_file.content)
        if no_wait:
            if session.out.as_json:
                session.out.json(operation)
            session.out.line(f"Operation {operation['id']} goes on in the daemon.")
            return 0
        final = follow(session, operation)
    except HanokError as error:
        session.out.error(error, place=stack_file.place_of(error))
        return error.exit_status
    stack = (
        cast("StackView", final["result"])
        if final["result"] is not None
        else session.client.stack(stack_file.name)
    )
    if session.out.as_json:
        session.out.json(stack)
    else:
        _print_stack(session, stack, stack_file)
    return 0


def _print_stack(session: Session, stack: StackView, file: StackFile) -> None:
    titles = (
        "NAME", "IMAGE", "HYPERVISOR", "MODE", ">VCPUS", ">MEMORY", "ADDRESS", "PORTS", ">READY",
    )  # fmt: skip
    rows = [
        (
            Cell(vm["name"], "bold"),
            vm["image"],
            hypervisor_of(vm),
            vm["mode"],
            str(vm["cpus"]),
            format_size(vm["memory"]),
            ", ".join(vm["addresses"]) or "-",
            ports_of(vm["ports"]) or "-",
            Cell(seconds(vm["ready_seconds"]) or vm["state"], "green"),
        )
        for vm in stack["vms"]
    ]
    session.out.table(titles, rows)
    session.out.line()
    count = len(stack["vms"])
    made = len(stack["created"])
    changed = f"{made} new" if made else "nothing to change"
    session.out.line(f"{stack['name']} is up: {count} VM{'s' * (count != 1)}, {changed}. Try:")
    for command in what_to_try(stack["vms"], session.program, file.path, session.remote):
        session.out.line(f"  {command}")
    if session.remote is not None:
        _tell_ports(session, stack["vms"], session.remote)


def _tell_ports(session: Session, vms: Sequence[VmView], remote: Remote) -> None:
    """Say where published ports are: not on this machine."""
    ports = [(vm["name"], ports_there(vm["ports"], remote)) for vm in vms]
    if any(where for _, where in ports):
        session.out.line()
        session.out.line(f"Ports are published on {remote.name}, not here:")
        session.out.pairs([(f"  {name}", where) for name, where in ports])


def what_to_try(
    vms: Sequence[VmView], program: str, file: Path, remote: Remote | None = None
) -> list[str]:
    """Return commands that show a newcomer what now runs, on ``remote`` or else here."""
    commands = [
        command
        for vm in vms
        for port in vm["ports"]
        if (command := _reach(port, remote)) is not None
    ]
    if vms:
        commands.append(f"{program} exec {vms[0]['name']} -- uname -a")
    commands.append(f"{program} list")
    commands.append(f"{program} down" + ("" if str(file) == DEFAULT_FILE else f" {file}"))
    return commands


def _reach(port: PortView, remote: Remote | None) -> str | None:
    """Return a command that talks to a published port; None for one that is not spoken here.

    Nor can one be that is published on a remote for that host alone.
    """
    if remote is not None and is_loopback(port["address"]):
        return None
    address = reached_at(port["address"], remote)
    if port["guest_port"] in _WEB_PORTS:
        return f"curl http://{address}:{port['host_port']}/"
    if port["guest_port"] == 22:
        return None  # hanok ssh is easier
    return f"nc {address.strip('[]')} {port['host_port']}"


@click.command("down", cls=Example, examples=("hanok down", "hanok down --name shop"))
@_file
@click.option("--name", help="The stack's name, instead of a file.")
@common_options
@pass_session
def down(session: Session, file: Path, name: str | None) -> None:
    """Stop and delete what FILE (default: hanok.yaml) describes, disks and networks too."""
    stack = name or read_stack_file(file).name
    final = follow(session, session.client.down(stack))
    if session.out.as_json:
        session.out.json(final)
    else:
        session.out.line(f"{stack} is down")
