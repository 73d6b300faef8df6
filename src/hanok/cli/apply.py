"""``hanok apply``: makes the VMs of a plan, host by host, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.applystate import STATE_NAME, State, Wanted, only_one
from hanok.cli.applywork import (
    DaemonMaker,
    Maker,
    check_all,
    check_names,
    disk_note,
    make_all,
    pairs,
    wanted_vms,
)
from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.output import Cell
from hanok.client.chosen import LOCAL
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.model.apply import ApplyMap
    from hanok.model.plan import PlanFile

_path = click.Path(path_type=Path)


@click.command(
    "apply",
    cls=Example,
    examples=(
        "hanok apply plan --image debian:12 --dry-run",
        "hanok apply plan --image debian:12 --host old-1=local --host small-1=rack7",
        "hanok apply plan --map where.yaml",
    ),
)
@click.argument("path", type=_path, metavar="PLAN")
@click.option("--image", metavar="IMAGE", help="What the VMs are made of.")
@click.option(
    "--image-of", "images", multiple=True, metavar="VM=IMAGE", help="Another image for one VM."
)
@click.option(
    "--host",
    "--on",
    "hosts",
    multiple=True,
    metavar="HOST=REMOTE",
    help="Where a host of the plan is (default: the remote of its name); 'local' is here.",
)
@click.option(
    "--map",
    "map_path",
    type=_path,
    metavar="FILE",
    help="All of these in YAML: hosts, image, packages, disk, and vms with their own.",
)
@click.option("--only", multiple=True, metavar="HOST", help="Only the VMs of this host.")
@click.option("--dry-run", is_flag=True, help="Print what would be made, and make nothing.")
@common_options
@pass_session
def apply(
    session: Session,
    path: Path,
    image: str | None,
    images: Sequence[str],
    hosts: Sequence[str],
    map_path: Path | None,
    only: Sequence[str],
    dry_run: bool,
) -> None:
    """Make the VMs of PLAN on its hosts, in order, and stop at the first failure.

    Before the first one every host must answer and have room. Run it again to go on: what was made
    already is left alone (apply.json beside the plan says what). The VMs get the plan's vCPUs,
    memory and disk size; what ran on the old servers is not copied.
    """
    from hanok.cli.planfiles import plan_path, read_plan

    session.require_local("apply, which has --host for each host,")
    plan = read_plan(path)
    wanted = _wanted(
        plan, map_path, image, pairs(images, "--image-of"), pairs(hosts, "--host"), only
    )
    folder = plan_path(path).parent
    state = State(folder / STATE_NAME, digest_of(plan))
    if note := disk_note(wanted):
        session.out.note(f"Note: {note}")
    if dry_run:
        state.load()
        _print(session, wanted, state)
        return
    with only_one(folder):
        state.load()
        makers: dict[str, Maker] = {
            one.remote: DaemonMaker(session.out, one.remote) for one in wanted
        }
        for note in check_all(wanted, state, makers):
            session.out.note(f"Note: {note}")
        made = make_all(wanted, state, makers, session.out)
    if session.out.as_json:
        session.out.json({"made": made, "vms": [one.name for one in wanted]})
        return
    before = len(wanted) - len(made)
    earlier = f", {before} by earlier runs" if before else ""
    session.out.line(f"{len(made)} VM{'s' * (len(made) != 1)} made{earlier}.")


def digest_of(plan: PlanFile) -> str:
    """Return what changes when a plan does: the SHA-256 of all that it says, in hexadecimal."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()


def _wanted(
    plan: PlanFile,
    map_path: Path | None,
    image: str | None,
    images: dict[str, str],
    hosts: dict[str, str],
    only: Sequence[str],
) -> list[Wanted]:
    """Return the VMs to make; options win over the file. Raises InvalidInput, with its line."""
    from hanok.cli.planfiles import placed, read_map
    from hanok.model.apply import ApplyMap

    check_names(plan, hosts=hosts, vms=images, fields=("--host", "--image-of"))
    if map_path is None:
        return wanted_vms(plan, _with_options(ApplyMap(), image, images, hosts), only)
    found, source = read_map(map_path)
    with placed(source):
        # The file first and alone: what is wrong in it has a line to be told.
        wanted_vms(plan, found.model_copy(update={"image": found.image or image or "-"}), only)
    return wanted_vms(plan, _with_options(found, image, images, hosts), only)


def _with_options(
    how: ApplyMap, image: str | None, images: dict[str, str], hosts: dict[str, str]
) -> ApplyMap:
    from hanok.model.apply import MapVm

    vms = dict(how.vms)
    for name, one in images.items():
        vms[name] = vms.get(name, MapVm()).model_copy(update={"image": one})
    changes = {"hosts": {**how.hosts, **hosts}, "vms": vms, "image": image or how.image}
    return how.model_copy(update=changes)


def _print(session: Session, wanted: Sequence[Wanted], state: State) -> None:
    steps = {name: noted.step for name, noted in state.vms.items()}
    if session.out.as_json:
        session.out.json([{**asdict(one), "step": steps.get(one.plan_name)} for one in wanted])
        return
    shown = {
        None: Cell("to make"),
        "started": Cell("begun", "yellow"),
        "done": Cell("made", "green"),
    }
    rows: list[list[Cell | str]] = [
        [
            Cell(one.name, "bold"),
            one.host,
            "here" if one.remote == LOCAL else one.remote,
            " + ".join((one.image, *one.packages)),
            str(one.vcpus),
            format_size(one.memory),
            "-" if one.disk is None else format_size(one.disk),
            shown[steps.get(one.plan_name)],
        ]
        for one in wanted
    ]
    titles = ("VM", "HOST", "REMOTE", "IMAGE", ">VCPUS", ">MEMORY", ">DISK", "STATE")
    session.out.table(titles, rows)
