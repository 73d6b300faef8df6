"""``hanok lab``: virtual physical servers, each with a hanokd of its own, as remotes."""

from __future__ import annotations

import os
import time
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
    complete_vm,
    pass_session,
)
from hanok.cli.listing import seconds
from hanok.cli.output import state_cell
from hanok.cli.progress import follow_all
from hanok.client.remotes import RemoteBook, open_book
from hanok.errors import InvalidInput
from hanok.lab import plan
from hanok.lab.hosts import Lab, Order
from hanok.lab.plan import Shape
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.client.remotes import Remote
    from hanok.model.views import VmView

_EXAMPLES = (
    "hanok lab up lab --hypervisor kvm",
    "hanok --remote lab run micro --name inner",
    "hanok lab up rack --count 3 --network rack",
    "hanok lab down rack",
)


@click.group(
    "lab",
    cls=LazyGroup,
    sections={
        "Commands": {
            "up": Lazy("lab", "up", "Make lab hosts and add them as remotes."),
            "list": Lazy("lab", "list_hosts", "List the lab hosts."),
            "down": Lazy("lab", "down", "Remove lab hosts, their VMs and their remotes."),
            "console": Lazy("console", "console", "Use a lab host's serial console."),
            "clean": Lazy("lab", "clean", "Remove the templates that make lab hosts instant."),
        }
    },
    aliases={"ls": "list", "rm": "down"},
    examples=_EXAMPLES,
)
def lab() -> None:
    """Virtual physical servers: VMs of this host that run this Hanok, to try it with many hosts."""


@click.command("up", cls=Example, examples=(_EXAMPLES[0], _EXAMPLES[2]))
@click.argument("name")
@click.option(
    "--hypervisor",
    type=click.Choice(plan.HYPERVISORS),
    default="tcg",
    show_default=True,
    help="What its own VMs run on: kvm gives it a CPU that can virtualize, xen a Xen below it.",
)
@click.option("--count", type=int, default=1, metavar="N", help="Several: NAME-1, NAME-2, ...")
@click.option(
    "--network",
    metavar="NAME",
    shell_complete=complete_network,
    help="The network that they are on (default: default); made when there is none.",
)
@click.option("--cpus", type=int, default=2, show_default=True, help="Virtual CPUs of each.")
@click.option("--memory", metavar="SIZE", help="Memory of each (default: 2G; for xen 3G).")
@click.option("--disk", metavar="SIZE", default="8G", show_default=True, help="Disk of each.")
@click.option("--cold", is_flag=True, help="Boot each; make no clones and keep no template.")
@common_options
@pass_session
def up(
    session: Session,
    name: str,
    hypervisor: str,
    count: int,
    network: str | None,
    cpus: int,
    memory: str | None,
    disk: str,
    cold: bool,
) -> None:
    """Make lab host NAME, a VM with a hanokd of its own, and add it as remote NAME.

    The first of its kind boots and is frozen as a template; the next is a clone of that and there
    in a moment. No network is needed.
    """
    began = time.monotonic()
    shape = Shape(hypervisor, cpus, memory, disk)
    order = Order(tuple(plan.host_names(name, count)), shape, network, cold)
    remotes = _open(session).up(order)
    if session.out.as_json:
        session.out.json([_for_programs(remote) for remote in remotes])
        return
    vms = {vm["name"]: vm for vm in session.client.vms()}
    _print(session, [vms[remote.name] for remote in remotes if remote.name in vms])
    session.out.line()
    one = len(remotes) == 1
    took = seconds(time.monotonic() - began)
    session.out.line(f"{len(remotes)} lab host{'s answer' if not one else ' answers'}, {took}")
    session.out.line(f"Try: {session.program} --remote {remotes[0].name} host show")


@click.command("list", cls=Example, examples=("hanok lab list",))
@common_options
@pass_session
def list_hosts(session: Session) -> None:
    """List the lab hosts of this machine, and where their daemons are reached."""
    _refuse_remote(session)
    hosts = plan.lab_hosts(session.client.vms())
    if session.out.as_json:
        session.out.json(hosts)
    elif not hosts:
        session.out.line("No lab hosts yet; 'hanok lab up NAME' makes one.")
    else:
        _print(session, hosts)


@click.command("down", cls=Example, examples=("hanok lab down lab", "hanok lab down --all"))
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_vm)
@click.option("--all", "everything", is_flag=True, help="All lab hosts, and their templates.")
@common_options
@pass_session
def down(session: Session, names: Sequence[str], everything: bool) -> None:
    """Remove lab hosts with all VMs in them, and their remotes. NAME also means NAME-1, NAME-2...

    The template stays, so that the next one is there in a moment; --all removes that too.
    """
    if bool(names) == everything:
        raise click.UsageError("Name lab hosts, or say --all.")
    here = _open(session)
    found = here.down(here.all_names() if everything else names)
    templates = here.clean() if everything else []
    if session.out.as_json:
        session.out.json({"removed": found, "templates": templates})
    else:
        session.out.line(f"Removed: {', '.join([*found, *templates]) or 'nothing was there'}")


@click.command("clean", cls=Example, examples=("hanok lab clean",))
@common_options
@pass_session
def clean(session: Session) -> None:
    """Remove the templates of lab hosts that no lab host stands on."""
    removed = _open(session).clean()
    if session.out.as_json:
        session.out.json({"templates": removed})
    else:
        session.out.line(f"Removed: {', '.join(removed) or 'nothing was there'}")


def _open(session: Session) -> Lab:
    _refuse_remote(session)
    return Lab(
        session.client,
        _book(),
        lambda operations: follow_all(session, operations),
        lambda text: None if session.out.as_json else session.out.note(text),
    )


def _book() -> RemoteBook:
    return open_book(os.environ)


def _refuse_remote(session: Session) -> None:
    """Lab hosts are VMs of this machine: their ports are on its loopback address."""
    session.require_local("the lab")
    if session.remote is not None:
        raise InvalidInput(
            f"lab hosts are made on this machine, and {session.remote.name} is in use",
            field="--remote",
            expected="local",
            hint="hanok --remote local lab ..., or 'hanok remote use local'",
        )


def _print(session: Session, hosts: Sequence[VmView]) -> None:
    known = _book().load()
    rows = []
    for host in hosts:
        port = plan.port_of(host)
        rows.append(
            (
                host["name"],
                state_cell(host["state"]),
                plan.hypervisor_of(host),
                str(host["cpus"]),
                format_size(host["memory"]),
                ", ".join(host["addresses"]) or "-",
                "-" if port is None else f"https://127.0.0.1:{port}",
                host["name"] if host["name"] in known else "-",
            )
        )
    titles = ("NAME", "STATE", "HYPERVISOR", "VCPUS", "MEMORY", "ADDRESS", "DAEMON", "REMOTE")
    session.out.table(titles, rows)


def _for_programs(remote: Remote) -> dict[str, str]:
    """Return a remote without its token."""
    return {"name": remote.name, "url": remote.url, "fingerprint": remote.fingerprint}
