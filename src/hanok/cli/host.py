"""``hanok host`` and ``hanok fit``: what this machine has, and how much of it is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hanok.cli.base import Example, Lazy, LazyGroup, Session, common_options, pass_session
from hanok.cli.output import Cell
from hanok.cli.progress import follow
from hanok.client.wire import FitWire
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.model.views import HostView


@click.group(
    "host",
    cls=LazyGroup,
    sections={
        "Commands": {
            "show": Lazy("host", "show", "Show capacity, hypervisors, what is used and reserved."),
            "probe": Lazy("host", "probe", "Find out again what the hypervisors can do here."),
        }
    },
)
def host() -> None:
    """Show this host, or probe its hypervisors again."""


@click.command("show", cls=Example, examples=("hanok host show",))
@common_options
@pass_session
def show(session: Session) -> None:
    """Show capacity, hypervisors, and what is used, reserved and free."""
    found = session.client.host()
    if session.out.as_json:
        session.out.json(found)
    else:
        _print(session, found)


def _print(session: Session, host: HostView) -> None:
    out = session.out
    cpus = f"{host['cpus']} (each may be given {host['cpu_ratio']:g} times)"
    out.pairs(
        [
            ("host", Cell(host["name"], "bold")),
            ("hanok", f"{host['version']}, as {host['user']}, data in {host['home']}"),
            ("kernel", host["kernel"]),
            ("CPUs", cpus),
            ("memory", format_size(host["memory"])),
            ("isolation", _isolation(host["isolation"])),
            ("VMs", f"{host['vms']}, of which {host['running']} run"),
            ("overhead", f"{format_size(host['overhead'])} taken by virtualizing them"),
        ]
    )
    out.line()
    rows = [
        (
            room["resource"],
            *(
                quantity(room["resource"], amount)
                for amount in (room["capacity"], room["reserved"], room["used"], room["free"])
            ),
        )
        for room in host["rooms"]
    ]
    out.table(("RESOURCE", ">CAPACITY", ">RESERVED", ">USED", ">FREE"), rows)
    for facts in host["hypervisors"]:
        out.line()
        out.pairs(
            [
                ("hypervisor", f"{facts['name']} {facts['version']} (Type {facts['type']})"),
                ("accelerator", facts["accelerator"]),
                ("why", facts.get("reason") or None),
                ("modes", ", ".join(facts["modes"])),
                ("machine", facts.get("machine_type")),
            ]
        )
    for note in host["notes"]:
        out.line()
        out.pairs([("note", note)])


def _isolation(isolation: str) -> str:
    if isolation == "none":
        return "none: software emulation is no security boundary"
    return isolation


def quantity(resource: str, amount: float) -> str:
    """Return an amount of ``resource`` for people: CPUs as they are, the rest in bytes."""
    if "cpu" in resource.lower():
        return f"{amount:g}"
    return "0" if amount == 0 else format_size(int(amount))


@click.command("probe", cls=Example, examples=("hanok host probe",))
@common_options
@pass_session
def probe(session: Session) -> None:
    """Boot a trial guest again to find out which acceleration works here."""
    follow(session, session.client.probe())
    found = session.client.host()
    if session.out.as_json:
        session.out.json(found)
    else:
        _print(session, found)


@click.command(
    "fit", cls=Example, examples=("hanok fit --memory 256M", "hanok fit --cpus 2 --memory 4G")
)
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual CPUs.")
@click.option("--memory", metavar="SIZE", default="512M", show_default=True, help="Memory.")
@click.option("--disk", metavar="SIZE", default="4G", show_default=True, help="Disk.")
@common_options
@pass_session
def fit(session: Session, cpus: int, memory: str, disk: str) -> None:
    """Tell how many more VMs of a shape fit, and what stops the next one."""
    found = session.client.fit({"cpus": cpus, "memory": memory, "disk": disk})
    if session.out.as_json:
        session.out.json(found)
        return
    noun = "VM" if found["count"] == 1 else "VMs"
    shape = f"{cpus} vCPU, {memory} memory, {disk} disk"
    session.out.line(f"{found['count']} more {noun} fit ({shape} each).")
    session.out.line(_what_stops(found))
    session.out.line()
    rows = [
        (
            room["resource"],
            quantity(room["resource"], room["capacity"]),
            quantity(room["resource"], room["used"]),
            quantity(room["resource"], room["free"]),
            str(found["by_resource"].get(room["resource"], "-")),
        )
        for room in found["rooms"]
    ]
    session.out.table(("RESOURCE", ">CAPACITY", ">USED", ">FREE", ">FITS"), rows)


def _what_stops(found: FitWire) -> str:
    lack = quantity(found["limit"], found["missing"])
    if "cpu" in found["limit"].lower():
        return f"The next one lacks {lack} vCPU{'s' * (found['missing'] != 1)}."
    return f"The next one lacks {lack} of {found['limit']}."
