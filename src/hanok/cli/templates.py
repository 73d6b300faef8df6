"""``hanok template``: VMs frozen with their memory, to be cloned."""

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
    complete_template,
    complete_vm,
    pass_session,
)
from hanok.cli.listing import counted, spans, when, when_shortly
from hanok.cli.output import Cell
from hanok.cli.progress import follow
from hanok.errors import HanokError
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.model.views import TemplateView


@click.group(
    "template",
    cls=LazyGroup,
    sections={
        "Commands": {
            "list": Lazy("templates", "list_templates", "List the templates of this host."),
            "create": Lazy("templates", "create", "Freeze a VM as a template; the VM goes on."),
            "show": Lazy("templates", "show", "Show everything about a template."),
            "delete": Lazy("templates", "delete", "Delete templates that no clone stands on."),
        }
    },
    aliases={"ls": "list", "rm": "delete"},
    examples=(
        "hanok template create base --from web",
        "hanok clone base --count 10 --name web-{n}",
    ),
)
def template() -> None:
    """Freeze VMs as templates, with memory and disk; list, show and delete them."""


@click.command("list", cls=Example, examples=("hanok template list",))
@common_options
@pass_session
def list_templates(session: Session) -> None:
    """List the templates of this host, and why one cannot be cloned instantly."""
    found = session.client.templates()
    if session.out.as_json:
        session.out.json(found)
    elif not found:
        session.out.line(
            "No templates yet. Make one of a VM that is ready: hanok template create base --from VM"
        )
    else:
        _print_table(session, found)


def _print_table(session: Session, found: Sequence[TemplateView]) -> None:
    titles = (
        "NAME",
        "IMAGE",
        ">VCPUS",
        ">MEMORY",
        "MODE",
        "MADE FOR",
        ">CLONES",
        ">SIZE",
        "CREATED",
    )
    rows = [
        (
            one["name"],
            one["image"],
            str(one["cpus"]),
            format_size(one["memory"]),
            one["mode"],
            made_for(one),
            str(len(one["clones"])),
            _size(one["size"]),
            when_shortly(one["created"]),
        )
        for one in found
    ]
    session.out.table(titles, rows)
    reasons = [(f"{one['name']} is not instant:", _reason(one)) for one in found]
    if any(reason for _, reason in reasons):
        session.out.line()
        session.out.pairs(reasons)


def _reason(template: TemplateView) -> str | None:
    """Return why no instant clone can be made of ``template`` now."""
    return "it is being made" if template["state"] == "making" else template["reason"]


def _size(size: int) -> str:
    return format_size(size) if size else "-"


def made_for(template: TemplateView) -> str:
    """Return whom ``template`` was made for, and so who removes it."""
    owner, stack = template["owner"], template.get("stack")
    if owner == "stack":
        return f"stack {stack}" if stack else "a stack"
    return {"user": "you", "warm": "warm start"}.get(owner, owner)


@click.command("create", cls=Example, examples=("hanok template create base --from web",))
@click.argument("name")
@click.option(
    "--from",
    "source",
    metavar="VM",
    required=True,
    shell_complete=complete_vm,
    help="The VM to freeze. It must be ready, and goes on after a short pause.",
)
@common_options
@pass_session
def create(session: Session, name: str, source: str) -> None:
    """Freeze a VM as the template NAME: its memory, its devices and its disk.

    The VM is paused meanwhile and then goes on. Clones begin where it was frozen, each with a
    name, addresses and keys of its own.
    """
    follow(session, session.client.create_template(name, source))
    made = session.client.template(name)
    if session.out.as_json:
        session.out.json(made)
        return
    session.out.line(f"{name} is made of {source}: {_size(made['size'])} on disk.")
    reason = _reason(made)
    if reason is not None:
        session.out.line(f"It cannot be cloned instantly: {reason}")
    session.out.line(f"Try: {session.program} clone {name} --count 3 --name {name}-{{n}}")


@click.command("show", cls=Example, examples=("hanok template show base",))
@click.argument("name", shell_complete=complete_template)
@common_options
@pass_session
def show(session: Session, name: str) -> None:
    """Show everything about the template NAME, and its clones."""
    found = session.client.template(name)
    if session.out.as_json:
        session.out.json(found)
        return
    reason = _reason(found)
    memory = f"{format_size(found['memory'])}, of which {format_size(found['memory_used'])} in use"
    session.out.pairs(
        [
            ("name", Cell(found["name"], "bold")),
            ("id", found["id"]),
            ("made for", made_for(found)),
            ("instant clones", "yes" if reason is None else Cell(f"no: {reason}", "yellow")),
            ("image", found["image"]),
            ("mode", found["mode"]),
            ("vCPUs", str(found["cpus"])),
            ("memory", memory),
            ("disk", format_size(found["disk"])),
            ("size on disk", _size(found["size"])),
            ("created", when(found["created"])),
            ("last cloned", when(found["used"]) or "never"),
            ("clones", _clones(found["clones"])),
        ]
    )


def _clones(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(spans(counted(names)))}" if names else "none"


@click.command(
    "delete",
    cls=Example,
    examples=("hanok template delete base", "hanok template delete base old"),
)
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_template
)
@common_options
@pass_session
def delete(session: Session, names: Sequence[str]) -> int:
    """Delete templates that no clone stands on."""
    status = 0
    for name in names:
        try:
            session.client.delete_template(name)
            session.out.line(f"{name} is deleted")
        except HanokError as error:
            session.out.error(error)
            status = max(status, error.exit_status)
    if session.out.as_json:
        session.out.json(session.client.templates())
    return status
