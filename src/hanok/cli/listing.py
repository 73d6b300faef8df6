"""``hanok list`` and ``hanok show``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hanok.cli.base import Example, Session, common_options, complete_vm, pass_session
from hanok.cli.output import Cell, Output, state_cell
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.model.views import PortView, VmDetail, VmView


@click.command(
    "list",
    cls=Example,
    examples=("hanok list", "hanok list --json | jq -r '.[].name'"),
)
@common_options
@pass_session
def list_vms(session: Session) -> None:
    """List the VMs of this host."""
    vms = session.client.vms()
    if session.out.as_json:
        session.out.json(vms)
    elif not vms:
        session.out.line("No VMs yet. Make one: hanok run micro --name first")
    else:
        print_vms(session.out, vms)


def print_vms(out: Output, vms: Sequence[VmView]) -> None:
    """Print a table of ``vms`` and why those that failed did."""
    titles = (
        "NAME",
        "STATE",
        "IMAGE",
        "HYPERVISOR",
        "MODE",
        ">VCPUS",
        ">MEMORY",
        "ADDRESS",
        "PORTS",
    )
    out.table(
        titles,
        [
            (
                vm["name"],
                state_cell(vm["state"]),
                vm["image"],
                hypervisor_of(vm),
                vm["mode"],
                str(vm["cpus"]),
                format_size(vm["memory"]),
                ", ".join(vm["addresses"]) or "-",
                ports_of(vm["ports"]) or "-",
            )
            for vm in vms
        ],
    )
    for vm in vms:
        if vm["state"] == "failed" and vm["reason"]:
            out.line()
            out.pairs([(f"{vm['name']} failed:", vm["reason"])])


def hypervisor_of(vm: VmView) -> str:
    """Return hypervisor and accelerator, such as ``qemu/tcg``."""
    same = vm["accelerator"] in ("", vm["hypervisor"])
    return vm["hypervisor"] if same else f"{vm['hypervisor']}/{vm['accelerator']}"


def ports_of(ports: Sequence[PortView]) -> str:
    """Return published ports as they are asked for: ``8080:80``, with an address unless local."""
    return ", ".join(
        ("" if port["address"] == "127.0.0.1" else f"{port['address']}:")
        + f"{port['host_port']}:{port['guest_port']}"
        for port in ports
    )


def seconds(value: float | None) -> str | None:
    """Return a duration for people."""
    return None if value is None else f"{value:.1f} s"


def when(value: float | None) -> str | None:
    """Return a moment (seconds since the epoch) in this host's time."""
    return None if not value else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


@click.command("show", cls=Example, examples=("hanok show web", "hanok show web --json"))
@click.argument("name", shell_complete=complete_vm)
@common_options
@pass_session
def show(session: Session, name: str) -> None:
    """Show everything about the VM NAME, and how its guest really runs."""
    vm = session.client.vm(name)
    if session.out.as_json:
        session.out.json(vm)
    else:
        print_vm(session.out, vm)


def print_vm(out: Output, vm: VmDetail) -> None:
    """Print all of one VM."""
    overhead = f"{format_size(vm['memory'])} (and {format_size(vm['overhead'])} overhead)"
    out.pairs(
        [
            ("name", Cell(vm["name"], "bold")),
            ("state", state_cell(vm["state"])),
            ("reason", vm["reason"]),
            ("wanted", vm["wanted"]),
            ("uuid", vm["uuid"]),
            ("stack", vm["stack"]),
            ("image", f"{vm['image']} ({vm['image_id']})" if vm["image_id"] else vm["image"]),
            ("packages", " ".join(vm["packages"]) or None),
            ("hypervisor", f"{hypervisor_of(vm)}, mode {vm['mode']}, isolation {vm['isolation']}"),
            ("machine", vm["machine_type"]),
            ("vCPUs", str(vm["cpus"])),
            ("memory", overhead),
            ("disk", format_size(vm["disk"])),
            ("networks", "\n".join(_nics(vm)) or None),
            ("ports", ports_of(vm["ports"]) or None),
            ("ready check", _ready(vm)),
            ("ready after", seconds(vm["ready_seconds"])),
            ("created", when(vm["created"])),
            ("started", when(vm["started"])),
            ("process", _process(vm)),
            ("evidence", "\n".join(_evidence(vm)) or None),
        ]
    )


def _nics(vm: VmDetail) -> list[str]:
    return [f"{nic['network']}: {nic['address']} ({nic['mac']})" for nic in vm["networks"]]


def _ready(vm: VmDetail) -> str | None:
    ready = vm["ready"]
    for kind in ("port", "url", "command"):
        if ready.get(kind) is not None:
            return f"{kind} {ready[kind]}, within {ready.get('timeout', 0):g} s"
    return None


def _process(vm: VmDetail) -> str | None:
    if vm["pid"] is None:
        return None
    parts = [f"pid {vm['pid']}"]
    if vm["resident"] is not None:
        parts.append(f"{format_size(vm['resident'])} resident")
    if vm["cpu_seconds"] is not None:
        parts.append(f"{vm['cpu_seconds']:.1f} CPU-seconds")
    return ", ".join(parts)


def _evidence(vm: VmDetail) -> list[str]:
    lines = []
    for name, value in (vm["evidence"] or {}).items():
        if isinstance(value, list):
            value = " ".join(str(entry) for entry in value)
        if value not in (None, ""):
            lines.append(f"{name.replace('_', ' ')}: {value}")
    return lines
