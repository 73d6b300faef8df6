"""``hanok list`` and ``hanok show``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hanok.cli.base import Example, Session, common_options, complete_vm, pass_session
from hanok.cli.keeping import (
    autostart_text,
    health_text,
    restart_text,
    state_of,
    watchdog_text,
)
from hanok.cli.output import Cell, Output, state_cell
from hanok.units import format_size

_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,8})", re.A)
_SHORTEST_SPAN = 3
# States whose reason is told below a list, in the words of there.
_TOLD = {"failed": "failed", "paused": "is paused", "waiting": "waits for a restart"}

if TYPE_CHECKING:
    from hanok.client.remotes import Remote
    from hanok.model.views import LimitsView, PortView, VmDetail, VmView


@click.command(
    "list",
    cls=Example,
    examples=(
        "hanok list",
        "hanok list --wide",
        "hanok list --all",
        "hanok list --json | jq -r '.[].name'",
    ),
)
@click.option("-w", "--wide", is_flag=True, help="Also show templates and times to ready.")
@click.option("--all", "everywhere", is_flag=True, help="Of this host and of every remote.")
@common_options
@pass_session
def list_vms(session: Session, wide: bool, everywhere: bool) -> None:
    """List the VMs of this host, or of all hosts."""
    if everywhere:
        _list_everywhere(session, wide)
        return
    vms = session.client.vms()
    if session.out.as_json:
        session.out.json(vms)
    elif not vms:
        session.out.line("No VMs yet. Make one: hanok run micro --name first")
    else:
        print_vms(session.out, vms, wide=wide)


def _list_everywhere(session: Session, wide: bool) -> None:
    from hanok.cli import everywhere

    answers = everywhere.ask_everywhere(session, lambda client: client.vms())
    if session.out.as_json:
        views: list[dict[str, object]] = []
        for answer in answers:
            views += [{"remote": answer.remote, **vm} for vm in answer.value or ()]
            views += [everywhere.error_view(answer)] if answer.error is not None else []
        session.out.json(views)
        return
    titles = ("REMOTE", *_titles(wide))
    rows: list[tuple[Cell | str, ...]] = []
    for answer in answers:
        name = Cell(answer.remote, "bold")
        rows += [(name, *_row(vm, wide)) for vm in answer.value or ()]
        if answer.error is not None:
            rows.append(everywhere.error_row(answer, len(titles)))
        elif not answer.value:
            rows.append((name, "-", Cell("no VMs", "dim"), *("-",) * (len(titles) - 3)))
    session.out.table(titles, rows)
    for answer in answers:
        _print_failed(session.out, answer.value or ())
    everywhere.print_errors(session.out, answers)


def print_vms(out: Output, vms: Sequence[VmView], *, wide: bool = False) -> None:
    """Print a table of ``vms`` and why those that failed did; more columns when ``wide``."""
    out.table(_titles(wide), [_row(vm, wide) for vm in vms])
    _print_failed(out, vms)


def _titles(wide: bool) -> tuple[str, ...]:
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
    return (*titles, ">READY", "TEMPLATE") if wide else titles


def _print_failed(out: Output, vms: Sequence[VmView]) -> None:
    for vm in vms:
        if vm["state"] in _TOLD and vm["reason"]:
            out.line()
            out.pairs([(f"{vm['name']} {_TOLD[vm['state']]}:", vm["reason"])])


def _row(vm: VmView, wide: bool) -> tuple[Cell | str, ...]:
    row = (
        vm["name"],
        state_cell(state_of(vm)),
        vm["image"],
        hypervisor_of(vm),
        vm["mode"],
        str(vm["cpus"]),
        format_size(vm["memory"]),
        ", ".join(vm["addresses"]) or "-",
        ports_of(vm["ports"]) or "-",
    )
    return (*row, *_more(vm)) if wide else row


def _more(vm: VmView) -> tuple[str, ...]:
    kind = vm["clone"]
    template = vm["template"] or "-"
    return (
        seconds(vm["ready_seconds"]) or "-",
        template if kind is None else f"{template} ({kind})",
    )


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


def ports_there(ports: Sequence[PortView], remote: Remote | None) -> str | None:
    """Return published ports with where they are reached: on a remote that is not here."""
    if remote is None or not ports:
        return ports_of(ports) or None
    lines = []
    for port in ports:
        numbers = f"{port['host_port']}:{port['guest_port']}"
        if is_loopback(port["address"]):
            lines.append(f"{numbers}, only on {remote.name} itself, at {port['address']} there")
        else:
            lines.append(f"{numbers}, at {reached_at(port['address'], remote)}:{port['host_port']}")
    return "\n".join(lines)


def is_loopback(address: str) -> bool:
    """Return whether a port published at ``address`` is reached on its own host alone."""
    return address.startswith("127.") or address == "::1"


def reached_at(address: str, remote: Remote | None) -> str:
    """Return the address at which a port published at ``address`` is reached from here."""
    if address in ("0.0.0.0", "::"):  # noqa: S104  compared, not bound
        address = "127.0.0.1" if remote is None else remote.host
    return f"[{address}]" if ":" in address else address


def seconds(value: float | None) -> str | None:
    """Return a duration for people."""
    return None if value is None else f"{value:.1f} s"


def when(value: float | None) -> str | None:
    """Return a moment (seconds since the epoch) in this host's time."""
    return None if not value else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def when_shortly(value: float) -> str:
    """Return a moment as short as can be, as ls does: 13:05 today, Sep 21, 2025-09-21."""
    moment, today = time.localtime(value), time.localtime()
    if moment[:3] == today[:3]:
        return time.strftime("%H:%M", moment)
    return time.strftime("%b %d" if moment[0] == today[0] else "%Y-%m-%d", moment)


def counted(names: Sequence[str]) -> list[str]:
    """Return ``names`` in the order in which people count: ``web-2`` before ``web-10``."""

    def place(name: str) -> tuple[str, int]:
        match = _NUMBERED.fullmatch(name)
        return (name, -1) if match is None else (match[1], int(match[2]))

    return sorted(names, key=place)


def spans(names: Sequence[str]) -> list[str]:
    """Return ``names`` with runs of numbers put together: ``web-1 to web-100``, ``db``."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    found: list[str] = []
    for run in runs:
        found += [f"{run[0]} to {run[-1]}"] if len(run) >= _SHORTEST_SPAN else run
    return found


def _follows(name: str, after: str) -> bool:
    """Return whether ``after`` is ``name`` with the next number at its end."""
    first, second = _NUMBERED.fullmatch(name), _NUMBERED.fullmatch(after)
    if first is None or second is None:
        return False
    return first[1] == second[1] and int(first[2]) + 1 == int(second[2])


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
        print_vm(session.out, vm, session.remote)


def print_vm(out: Output, vm: VmDetail, remote: Remote | None = None) -> None:
    """Print all of one VM, which is on ``remote`` or else here."""
    overhead = f"{format_size(vm['memory'])} (and {format_size(vm['overhead'])} overhead)"
    out.pairs(
        [
            ("name", Cell(vm["name"], "bold")),
            ("remote", None if remote is None else f"{remote.name} ({remote.url})"),
            ("state", state_cell(vm["state"])),
            ("reason", vm["reason"]),
            ("wanted", vm["wanted"]),
            ("uuid", vm["uuid"]),
            ("stack", vm["stack"]),
            ("clone of", _clone(vm)),
            ("image", f"{vm['image']} ({vm['image_id']})" if vm["image_id"] else vm["image"]),
            ("packages", " ".join(vm["packages"]) or None),
            ("hypervisor", f"{hypervisor_of(vm)}, mode {vm['mode']}, isolation {vm['isolation']}"),
            ("machine", vm["machine_type"]),
            ("vCPUs", str(vm["cpus"])),
            ("memory", overhead),
            ("limits", limits_text(vm.get("limits"))),
            ("disk", format_size(vm["disk"])),
            ("data disks", "\n".join(_data_disks(vm)) or None),
            ("networks", "\n".join(_nics(vm)) or None),
            ("network limits", "\n".join(vm.get("network_limits", ())) or None),
            ("ports", ports_there(vm["ports"], remote)),
            ("pending", _pending(vm)),
            ("ready check", _ready(vm)),
            ("health", health_text(vm)),
            ("restart", restart_text(vm)),
            ("autostart", autostart_text(vm)),
            ("watchdog", watchdog_text(vm)),
            ("firmware", vm.get("firmware")),
            ("display", None if vm.get("display") == "none" else vm.get("display")),
            ("last start", vm["boot"]),
            ("ready after", seconds(vm["ready_seconds"])),
            ("created", when(vm["created"])),
            ("started", when(vm["started"])),
            ("process", None if vm["pid"] is None else f"pid {vm['pid']}"),
            ("in use", _memory_in_use(vm)),
            ("CPU time", seconds(vm["cpu_seconds"])),
            ("of it in Dom0", _backend(vm)),
            ("evidence", "\n".join(_evidence(vm)) or None),
        ]
    )


def limits_text(limits: LimitsView | None) -> str | None:
    """Return the limits that hold for a VM in words, or why none do; None when it is not up."""
    if limits is None:
        return None
    memory, tasks, weight = limits["memory"], limits["tasks"], limits["cpu_weight"]
    parts = [
        None if memory is None else f"memory {format_size(memory)}",
        None if tasks is None else f"{tasks} tasks",
        None if weight is None else f"CPU weight {weight}",
    ]
    text = ", ".join(part for part in parts if part is not None) or "none"
    return text if limits["reason"] is None else f"{text} ({limits['reason']})"


def _nics(vm: VmDetail) -> list[str]:
    return [f"{nic['network']}: {nic['address']} ({nic['mac']})" for nic in vm["networks"]]


def _data_disks(vm: VmDetail) -> list[str]:
    return [
        f"{disk['name']}: {format_size(disk['size'])}" + ("" if disk["attached"] else " (detached)")
        for disk in vm.get("data_disks", [])
    ]


def _pending(vm: VmDetail) -> str | None:
    """Return what the VM was asked to be and is not yet, and what that takes."""
    lines = [
        f"{one['field']}: {one['wanted']} instead of {one['now']}; {one['needs']}"
        for one in vm.get("pending", [])
    ]
    return "\n".join(lines) or None


def _ready(vm: VmDetail) -> str | None:
    ready = vm["ready"]
    for kind in ("port", "url", "command", "console"):
        if ready.get(kind) is not None:
            return f"{kind} {ready[kind]}, within {ready.get('timeout', 0):g} s"
    return None


def _clone(vm: VmDetail) -> str | None:
    kind = vm["clone"]
    if kind is None:
        return None
    return f"{vm['template'] or 'a template that is gone'} ({kind})"


def _memory_in_use(vm: VmDetail) -> str | None:
    """Return what the VM takes of the host's memory now.

    Its share is what is its own, and its part of what it shares with other VMs.
    """
    resident, share = vm["resident"], vm["proportional"]
    if share is not None:
        beside = "" if resident is None else f"; {format_size(resident)} resident"
        return f"{format_size(share)} of memory (its share{beside})"
    return None if resident is None else f"{format_size(resident)} of memory resident"


def _backend(vm: VmDetail) -> str | None:
    """Return what the process in Dom0 that serves the VM's devices takes; None without one.

    A daemon of another version may not say it.
    """
    taken, memory = vm.get("backend_seconds"), vm.get("backend_memory")
    if taken is None or memory is None:
        return None
    return f"{seconds(taken)} of CPU time and {format_size(memory)}, for its devices and agent"


def _evidence(vm: VmDetail) -> list[str]:
    lines = []
    for name, value in (vm["evidence"] or {}).items():
        if isinstance(value, list):
            value = " ".join(str(entry) for entry in value)
        if value not in (None, ""):
            lines.append(f"{name.replace('_', ' ')}: {value}")
    return lines
