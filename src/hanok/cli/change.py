"""``hanok set`` and ``hanok disk``: change VMs, at once where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from hanok.cli.keeping import keeping_fields, keeping_options
from hanok.cli.output import Cell
from hanok.cli.progress import follow
from hanok.client.wire import OperationWire
from hanok.errors import InvalidInput
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.model.views import PortView, VmDetail

_LOCAL = "127.0.0.1"
_CHECKS = ("port", "url", "command")
_NAMES = {"nics": "networks", "disks": "data disks", "cpus": "vCPUs", "publish": "ports"}


@click.command(
    "set",
    cls=Example,
    examples=(
        "hanok set web --cpus 2 --memory 1G",
        "hanok set web --disk 8G",
        "hanok set web --publish 8443:443 --unpublish 8080",
        "hanok set web --add-network back --rename shop",
        "hanok set web --restart on-failure:5 --health tcp:80",
    ),
)
@click.argument("name", shell_complete=complete_vm)
@click.option("--rename", metavar="NAME", help="Its new name, also its host name.")
@click.option("--cpus", type=int, help="Virtual CPUs.")
@click.option("--memory", metavar="SIZE", help="Memory, such as 1G.")
@click.option("--disk", metavar="SIZE", help="Disk, such as 8G; it can only become larger.")
@click.option(
    "--add-network",
    "added",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_network,
    help="A further network that it is on. Repeatable.",
)
@click.option(
    "--remove-network",
    "removed",
    multiple=True,
    metavar="NAME",
    help="A network that it is no longer on. Repeatable.",
)
@click.option(
    "--publish",
    multiple=True,
    metavar="[ADDRESS:]HOST:GUEST",
    help="Reach the guest's TCP port at a port of this host. Repeatable.",
)
@click.option(
    "--unpublish",
    multiple=True,
    metavar="HOST",
    type=int,
    help="A port of this host that is no longer the guest's. Repeatable.",
)
@keeping_options
@click.option("--no-health", is_flag=True, help="Check its health no longer.")
@common_options
@pass_session
def set_vm(
    session: Session,
    /,
    name: str,
    rename: str | None,
    cpus: int | None,
    memory: str | None,
    disk: str | None,
    added: Sequence[str],
    removed: Sequence[str],
    publish: Sequence[str],
    unpublish: Sequence[int],
    no_health: bool,
    **keeping: object,
) -> None:
    """Change the VM NAME.

    What the hypervisor can change while the VM runs is changed at once, in the guest too as far
    as its agent can; the rest waits for the next start, and "hanok show" lists it with what it
    takes. A change that fails is taken back whole.
    """
    wanted: dict[str, object] = {"name": rename, "cpus": cpus, "memory": memory, "disk": disk}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    kept = keeping_fields(keeping)
    if added or removed or publish or unpublish or kept or no_health:
        vm = session.client.vm(name)
        wanted["generation"] = vm.get("generation", 0)
        wanted |= _policy(vm, kept)
        if no_health:
            wanted["health"] = None
        if added or removed:
            wanted["networks"] = _networks(vm, added, removed)
        if publish or unpublish:
            wanted["publish"] = _ports(vm, publish, unpublish)
    if not wanted:
        raise InvalidInput(
            "nothing was asked to be changed",
            expected="an option that says what, such as --cpus 2",
            hint=f"see: {session.program} set --help",
        )
    _tell(session, follow(session, session.client.set(name, wanted)))


def _policy(vm: VmDetail, given: dict[str, Any]) -> dict[str, object]:
    """Return the whole policies that come of what the VM has and what is asked for."""
    if "watchdog" in given:
        raise InvalidInput(
            "a watchdog is a device that a VM is made with",
            field="--watchdog",
            expected="an option of 'hanok run'",
        )
    wanted: dict[str, object] = {}
    for name, had in (("restart", vm.get("restart")), ("autostart", vm.get("autostart"))):
        if name in given:
            wanted[name] = {**(had or {}), **given[name]}
    if "health" in given:
        check: dict[str, Any] = vm.get("health_check") or {}
        if any(key in given["health"] for key in _CHECKS):
            check = {key: value for key, value in check.items() if key not in _CHECKS}
        wanted["health"] = {**check, **given["health"]}
    return wanted


def _networks(vm: VmDetail, added: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Return all networks that the VM is to be on. Raises InvalidInput."""
    now = [nic["network"] for nic in vm["networks"]]
    for network in removed:
        if network not in now:
            raise InvalidInput(
                f"{vm['name']} is not on the network {network}",
                field="--remove-network",
                expected="one of " + (", ".join(now) or "its networks: it has none"),
            )
    return [one for one in now if one not in removed] + [one for one in added if one not in now]


def _ports(vm: VmDetail, publish: Sequence[str], unpublish: Sequence[int]) -> list[object]:
    """Return all ports that are to be published. Raises InvalidInput."""
    for number in unpublish:
        if all(port["host_port"] != number for port in vm["ports"]):
            raise InvalidInput(
                f"{vm['name']} publishes nothing at port {number}",
                field="--unpublish",
                expected="one of its published ports: "
                + (", ".join(str(port["host_port"]) for port in vm["ports"]) or "it has none"),
            )
    kept: list[object] = [_port(p) for p in vm["ports"] if p["host_port"] not in unpublish]
    return kept + [text for text in publish if text not in [_text(p) for p in vm["ports"]]]


def _port(port: PortView) -> dict[str, object]:
    return {
        "address": port["address"],
        "host_port": port["host_port"],
        "guest_port": port["guest_port"],
    }


def _text(port: PortView) -> str:
    numbers = f"{port['host_port']}:{port['guest_port']}"
    return numbers if port["address"] == _LOCAL else f"{port['address']}:{numbers}"


def _tell(session: Session, operation: OperationWire) -> None:
    """Say what came of a change: at once, later, and what there is to know."""
    result: dict[str, Any] = operation.get("result") or {}
    if session.out.as_json:
        session.out.json(session.client.vm(result.get("uuid") or operation["target"]))
        return
    name, pending = result.get("name", operation["target"]), result.get("pending", {})
    at_once = [_NAMES.get(one, one) for one in result.get("changed", ()) if one not in pending]
    if at_once:
        session.out.line(f"{name}: changed {', '.join(at_once)}")
    elif not pending:
        session.out.line(f"{name}: nothing to change, it is so already")
    for field, why in pending.items():
        session.out.pairs([(f"{_NAMES.get(field, field)} pending:", Cell(why, "yellow"))])
    for note in result.get("notes", ()):
        session.out.line(note)


@click.group(
    "disk",
    cls=LazyGroup,
    sections={
        "Commands": {
            "attach": Lazy("change", "attach", "Add a data disk to a VM, or attach it again."),
            "detach": Lazy("change", "detach", "Unplug a data disk, and keep or delete it."),
            "list": Lazy("change", "list_disks", "List the disks of a VM."),
        }
    },
    aliases={"ls": "list"},
    examples=("hanok disk attach db data --size 20G", "hanok disk detach db data"),
)
def disk() -> None:
    """Attach and detach data disks, while VMs run.

    A data disk belongs to its VM: it is empty at first, and goes when the VM is deleted. A guest
    finds it by its name: /dev/disk/by-id/virtio-NAME, where it has udev.
    """


@click.command("attach", cls=Example, examples=("hanok disk attach db data --size 20G",))
@click.argument("vm", shell_complete=complete_vm)
@click.argument("name")
@click.option("--size", metavar="SIZE", help="Of a new disk, such as 20G.")
@common_options
@pass_session
def attach(session: Session, vm: str, name: str, size: str | None) -> None:
    """Attach the data disk NAME to VM: a new one of --size, or one that was detached."""
    wanted = {"name": name} if size is None else {"name": name, "size": size}
    _tell(session, follow(session, session.client.attach_disk(vm, wanted)))


@click.command(
    "detach",
    cls=Example,
    examples=("hanok disk detach db data", "hanok disk detach db data --delete"),
)
@click.argument("vm", shell_complete=complete_vm)
@click.argument("name")
@click.option("--delete", is_flag=True, help="Delete it with all that is on it.")
@common_options
@pass_session
def detach(session: Session, vm: str, name: str, delete: bool) -> None:
    """Detach the data disk NAME from VM. Unmount it in the guest before.

    It is kept, and can be attached again, unless --delete says otherwise.
    """
    _tell(session, follow(session, session.client.detach_disk(vm, name, delete=delete)))


@click.command("list", cls=Example, examples=("hanok disk list db",))
@click.argument("vm", shell_complete=complete_vm)
@common_options
@pass_session
def list_disks(session: Session, vm: str) -> None:
    """List the disks of VM."""
    found = session.client.vm(vm)
    disks = found.get("data_disks", [])
    if session.out.as_json:
        session.out.json(disks)
        return
    rows = [("root", format_size(found["disk"]), "attached")]
    rows += [
        (one["name"], format_size(one["size"]), "attached" if one["attached"] else "detached")
        for one in disks
    ]
    session.out.table(("NAME", ">SIZE", "STATE"), rows)
