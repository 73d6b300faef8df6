"""``hanok host`` and ``hanok fit``: what this machine has, and how much of it is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from hanok.cli.base import (
    Example,
    Lazy,
    LazyGroup,
    Session,
    common_options,
    complete_template,
    pass_session,
)
from hanok.cli.output import Cell, Output
from hanok.cli.progress import follow
from hanok.client.wire import FitWire
from hanok.units import format_size

_SHAPE: dict[str, object] = {"cpus": 1, "memory": "512M", "disk": "4G"}

if TYPE_CHECKING:
    from hanok.model.views import FileSystemView, HostView


@click.group(
    "host",
    cls=LazyGroup,
    sections={
        "Commands": {
            "show": Lazy("host", "show", "Show capacity, hypervisors, what is used and reserved."),
            "prepare": Lazy(
                "prepare", "prepare", "Make this server boot Xen, or be what it was before."
            ),
            "probe": Lazy("host", "probe", "Find out again what the hypervisors can do here."),
        }
    },
)
def host() -> None:
    """Show this host, prepare it for Xen, or probe its hypervisors again."""


@click.command("show", cls=Example, examples=("hanok host show", "hanok host show --all"))
@click.option("--all", "everywhere", is_flag=True, help="This host and every remote, a line each.")
@common_options
@pass_session
def show(session: Session, everywhere: bool) -> None:
    """Show capacity, hypervisors, and what is used, reserved and free."""
    if everywhere:
        _show_everywhere(session)
        return
    found = session.client.host()
    if session.out.as_json:
        session.out.json(found)
    else:
        _print(session, found)


def _show_everywhere(session: Session) -> None:
    from hanok.cli.everywhere import ask_everywhere, error_row, error_view, print_errors

    answers = ask_everywhere(session, lambda client: client.host())
    if session.out.as_json:
        session.out.json(
            [
                error_view(answer)
                if answer.value is None
                else {"remote": answer.remote, **answer.value}
                for answer in answers
            ]
        )
        return
    titles = (
        "REMOTE", "HOST", "HYPERVISOR", "ISOLATION", ">VMS", ">RUN",
        ">CPUS", ">FREE", ">MEMORY", ">FREE", ">DISK FREE", "HANOK",
    )  # fmt: skip
    rows = [
        error_row(answer, len(titles))
        if answer.value is None
        else (Cell(answer.remote, "bold"), *_summary(answer.value))
        for answer in answers
    ]
    session.out.table(titles, rows)
    print_errors(session.out, answers)


def _summary(host: HostView) -> tuple[Cell | str, ...]:
    free = {room["resource"]: quantity(room["resource"], room["free"]) for room in host["rooms"]}
    kinds = [
        one["name"]
        if one["accelerator"] in ("", one["name"])
        else f"{one['name']}/{one['accelerator']}"
        for one in host["hypervisors"]
    ]
    return (
        host["name"],
        ", ".join(kinds) or "-",
        host["isolation"],
        str(host["vms"]),
        str(host["running"]),
        str(host["cpus"]),
        free.get("cpus", "-"),
        format_size(host["memory"]),
        free.get("memory", "-"),
        free.get("disk", "-"),
        host["version"],
    )


def _print(session: Session, host: HostView) -> None:
    out = session.out
    cpus = f"{host['cpus']} (each may be given {host['cpu_ratio']:g} times)"
    out.pairs(
        [
            ("host", Cell(host["name"], "bold")),
            ("hanok", f"{host['version']}, as {host['user']}, data in {host['home']}"),
            ("kernel", host["kernel"]),
            ("CPUs", cpus),
            ("memory", _all_memory(host)),
            *_memory(host),
            ("listens at", host.get("listen")),
            ("certificate", _pairs(host.get("fingerprint"))),
            ("isolation", _isolation(host["isolation"])),
            ("VMs", f"{host['vms']}, of which {host['running']} run"),
            ("overhead", f"{format_size(host['overhead'])} taken by virtualizing them"),
        ]
    )
    out.line()
    rows = [
        (
            _words(room["resource"]),
            *(
                quantity(room["resource"], amount)
                for amount in (room["capacity"], room["reserved"], room["used"], room["free"])
            ),
        )
        for room in host["rooms"]
    ]
    out.table(("RESOURCE", ">CAPACITY", ">RESERVED", ">USED", ">FREE"), rows)
    _print_file_systems(session, host.get("filesystems", []))
    for facts in host["hypervisors"]:
        out.line()
        out.pairs(
            [
                ("hypervisor", f"{facts['name']} {facts['version']} (Type {facts['type']})"),
                ("accelerator", facts["accelerator"]),
                ("why", facts.get("reason") or None),
                ("modes", ", ".join(facts["modes"])),
                ("machine", facts.get("machine_type")),
                ("confined", facts.get("confinement")),
                *_share(facts.get("share")),
            ]
        )
    _print_networking(out, host)
    for note in host["notes"]:
        out.line()
        out.pairs([("note", Cell(note, "yellow"))])


_LEVELS = {"warning": "yellow", "critical": "red"}


def _all_memory(host: HostView) -> Cell:
    """Return the host's memory, and how much of it is used by whatever."""
    percent = host.get("memory_percent")
    told = "" if percent is None else f", {percent} % used"
    return Cell(f"{format_size(host['memory'])}{told}", _LEVELS.get(host.get("memory_level") or ""))


def _print_file_systems(session: Session, found: Sequence[FileSystemView]) -> None:
    """Print how full what holds Hanok's data is; a daemon of another version does not say it."""
    if not found:
        return
    session.out.line()
    rows = [
        (
            one["mount"],
            format_size(one["size"]),
            format_size(one["free"]) if one["free"] else "0",
            Cell(f"{one['percent']} %", _LEVELS.get(one["level"])),
            ", ".join(one["holds"]),
        )
        for one in found
    ]
    session.out.table(("FILE SYSTEM", ">SIZE", ">FREE", ">FULL", "HOLDS"), rows)


_NETWORKS = {
    "namespace": "in namespaces of their own",
    "user": "QEMU's own user networking, one VM each",
}


def _print_networking(out: Output, host: HostView) -> None:
    """Say what networks are made of; an older daemon does not say it."""
    facts = host.get("networking")
    if facts is None:
        return
    out.line()
    out.pairs(
        [
            ("networks", _NETWORKS.get(facts["kind"], facts["kind"])),
            ("why", facts["reason"] or None),
            ("limits", "\n".join(facts["limits"]) or None),
        ]
    )


def _share(share: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return how a Type 1 hypervisor divides the host; nothing for others."""
    if share is None:
        return []
    own = f"{format_size(share['own_memory'])}, {share['own_cpus']} vCPUs"
    return [
        ("scheduler", share["scheduler"]),
        ("offers", ", ".join(share["capabilities"])),
        ("Dom0 has", f"{own}; it took {share['own_cpu_seconds']:.0f} s of CPU time"),
        ("no domain's", f"{format_size(share['free'])} of {format_size(share['memory'])}"),
    ]


def _memory(host: HostView) -> list[tuple[str, Cell | str | None]]:
    """Return what is sold, used and shared of the memory, and by which policy.

    A daemon of another version may say less.
    """

    def amount(size: int | None, words: str) -> str | None:
        return None if size is None else f"{format_size(size)} {words}"

    return [
        ("policy", _policy(host)),
        ("sold", amount(host.get("sold"), "of memory to what is up, overhead included")),
        ("used", amount(host.get("used"), "really used by them now")),
        ("shared", amount(host.get("shared"), "saved because they share memory")),
    ]


def _policy(host: HostView) -> Cell | str | None:
    policy = host.get("memory_policy")
    if policy == "guaranteed":
        return "guaranteed: each VM can use all of its memory"
    if policy != "shared":
        return policy
    factor, reserve = host.get("memory_factor"), host.get("shared_reserve")
    words = "memory is sold more than once"
    if factor is not None:
        words = f"memory may be sold {factor:g} times"
    kept = "" if reserve is None else f", {format_size(reserve)} is kept really free"
    return Cell(f"SHARED: {words}{kept}", "yellow")


def _pairs(fingerprint: str | None) -> str | None:
    """Return a fingerprint as people compare it: ``ab:cd:...``."""
    if fingerprint is None:
        return None
    return ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2))


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
    "fit",
    cls=Example,
    examples=(
        "hanok fit --memory 256M",
        "hanok fit --cpus 2 --memory 4G",
        "hanok fit --template base",
    ),
)
@click.option("--cpus", type=int, help="Virtual CPUs (default 1).")
@click.option("--memory", metavar="SIZE", help="Memory (default 512M).")
@click.option("--disk", metavar="SIZE", help="Disk (default 4G).")
@click.option(
    "--template",
    metavar="NAME",
    shell_complete=complete_template,
    help="Instant clones of this template, instead of a shape.",
)
@common_options
@pass_session
def fit(
    session: Session, cpus: int | None, memory: str | None, disk: str | None, template: str | None
) -> None:
    """Tell how many more VMs of a shape, or clones of a template, fit, and what stops the next."""
    given = {"cpus": cpus, "memory": memory, "disk": disk}
    given = {key: value for key, value in given.items() if value is not None}
    if template is not None and given:
        raise click.UsageError("--template says the shape: no --cpus, --memory or --disk with it.")
    shape = {**_SHAPE, **given} if template is None else {"template": template}
    found = session.client.fit(shape)
    if session.out.as_json:
        session.out.json(found)
        return
    for line in (_how_many(found["count"], shape), _what_stops(found), *_costs(found), ""):
        session.out.line(line)
    rows = [
        (
            _words(room["resource"]),
            quantity(room["resource"], room["capacity"]),
            quantity(room["resource"], room["used"]),
            quantity(room["resource"], room["free"]),
            str(found["by_resource"].get(room["resource"], "-")),
        )
        for room in found["rooms"]
    ]
    session.out.table(("RESOURCE", ">CAPACITY", ">USED", ">FREE", ">FITS"), rows)


def _how_many(count: int, shape: Mapping[str, object]) -> str:
    plural, verb = ("", "fits") if count == 1 else ("s", "fit")
    if "template" in shape:
        return f"{count} more clone{plural} of {shape['template']} {verb}."
    each = f"{shape['cpus']} vCPU, {shape['memory']} memory, {shape['disk']} disk each"
    return f"{count} more VM{plural} {verb} ({each})."


def _costs(found: FitWire) -> list[str]:
    """Return what one more takes, and how the policy counts it."""
    now, most, policy = found.get("cost_now"), found.get("cost_most"), found.get("policy")
    if most is None:
        return []
    if now is None:
        lines = [f"One more takes {format_size(most)} of memory, overhead included."]
    else:
        how = "measured" if found.get("measured", True) else "an estimate: none has run yet"
        lines = [
            f"One more takes {format_size(now)} of memory now ({how}) and can come to take"
            f" {format_size(most)}."
        ]
    if policy == "shared":
        lines.append(
            "Policy SHARED: not all of that is kept for it; more memory may be sold than there is."
        )
    elif policy == "guaranteed" and now is not None:
        lines.append("Policy guaranteed: all that it can come to take is kept for it.")
    return lines


def _what_stops(found: FitWire) -> str:
    lack = quantity(found["limit"], found["missing"])
    if "cpu" in found["limit"].lower():
        return f"The next one lacks {lack} vCPU{'s' * (found['missing'] != 1)}."
    return f"The next one lacks {lack} of {_words(found['limit'])}."


def _words(resource: str) -> str:
    """Return the name of a resource for people: real memory."""
    return resource.replace("-", " ")
