"""``hanok plan``: which hosts are needed, and which VM goes where, from measured load.

It works without a daemon: all is in files. ``hanok plan SERVERS.yaml`` plans; the other commands
are named: ``hanok plan show``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.base import Example, Lazy, LazyGroup, Session, common_options, pass_session
from hanok.cli.output import Cell

if TYPE_CHECKING:
    from hanok.consolidation.fleet import Fleet
    from hanok.model.plan import Objective

_EXAMPLES = (
    "hanok plan servers.yaml --usage usage --hosts hosts.yaml --out plan",
    "hanok plan show plan db-1",
    "hanok plan check-rules plan",
    "hanok plan what-if plan --case load=1.5 --case hosts=-1",
)
_MAKE = "make"


class PlanGroup(LazyGroup):
    """A group whose first word may be a file: then it is a plan that is wanted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``make`` before what is no command."""
        if args and args[0] not in self.known and args[0] not in ctx.help_option_names:
            args = [_MAKE, *args]
        return super().parse_args(ctx, args)


@click.group(
    "plan",
    cls=PlanGroup,
    sections={
        "Commands": {
            _MAKE: Lazy("plan", "make", "Plan SERVERS (the word 'make' may be left out)."),
            "show": Lazy("plan", "show", "Show a plan, or why a VM is where it is."),
            "check-rules": Lazy("plan", "check_rules", "Check a plan, also one made by hand."),
            "what-if": Lazy("planif", "what_if", "Plan again with a change, side by side."),
            "compare": Lazy("planif", "compare", "Show plans side by side, or how right one was."),
        }
    },
    examples=_EXAMPLES,
    no_args_is_help=True,
)
def plan() -> None:
    """Plan which hosts servers need once they are VMs, from how they are used.

    hanok plan SERVERS.yaml --usage DIR [--hosts HOSTS.yaml] [--out DIR] makes a plan; see
    "hanok plan make --help".
    """


_path = click.Path(path_type=Path)
usage_option = click.option(
    "--usage", type=_path, metavar="DIR", help="Folder of usage files (NAME.usage.json)."
)
hosts_option = click.option(
    "--hosts", type=_path, metavar="FILE", help="Hosts at hand and on offer (default: usual ones)."
)
effort_option = click.option(
    "--effort",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Millions of moves to try; the same N gives the same plan (default: by servers).",
)


@click.command(_MAKE, cls=Example, examples=(_EXAMPLES[0],))
@click.argument("servers", type=_path, metavar="SERVERS")
@usage_option
@hosts_option
@click.option("--out", type=_path, metavar="DIR", help="Write plan.json and the report here.")
@effort_option
@click.option("--seed", type=int, default=0, show_default=True, help="Another search.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0.1),
    metavar="S",
    help="End the search after S seconds; then it is not reproducible.",
)
@click.option(
    "--objective",
    type=click.Choice(("hosts", "money", "watts")),
    default="hosts",
    show_default=True,
    help="What is to be least; money counts purchase, energy and rack units.",
)
@click.option("--fold", is_flag=True, help="Plan on one day: the highest at each time of day.")
@click.option("--wide", is_flag=True, help="Print every VM, however many there are.")
@common_options
@pass_session
def make(
    session: Session,
    servers: Path,
    usage: Path | None,
    hosts: Path | None,
    out: Path | None,
    effort: int | None,
    seed: int,
    time_limit: float | None,
    objective: Objective,
    fold: bool,
    wide: bool,
) -> None:
    """Plan which hosts the servers in SERVERS need, and which VM goes where, how large, and why.

    Ctrl-C ends the search with the best plan so far. The bound says how few hosts any plan needs.
    """
    from hanok.cli import planwork
    from hanok.cli.planfiles import make_folder, read_inputs
    from hanok.cli.planprint import print_plan

    planwork.require_extra(report=out is not None)
    folder = make_folder(out) if out is not None else None
    with planwork.Steps(session, servers.name) as steps:
        steps.tell("reading")
        read = read_inputs(servers, usage, hosts)
        fleet = planwork.load_fleet(read, fold, steps)
        wish = planwork.Wish(effort, seed, objective, time_limit)
        choice, done = planwork.search(fleet, read, wish, steps, session)
        from hanok.consolidation.outcome import make_plan_file

        inputs = read.inputs(folder or Path(), fold)
        found = make_plan_file(fleet, choice, inputs, done, tell=steps.tell)
        steps.tell("checking every rule")
        planwork.checked(fleet, found)
        written = [] if folder is None else planwork.write_results(found, folder, steps)
    if session.out.as_json:
        session.out.json(found.model_dump(mode="json"))
        return
    print_plan(session.out, found, wide=wide)
    session.out.line()
    if written:
        session.out.line(f"Written: {', '.join(map(str, written))}")
    else:
        session.out.line("Nothing was written; --out DIR writes plan.json and the report.")


@click.command("show", cls=Example, examples=("hanok plan show plan", _EXAMPLES[1]))
@click.argument("path", type=_path, metavar="PLAN")
@click.argument("name", required=False)
@common_options
@pass_session
def show(session: Session, path: Path, name: str | None) -> None:
    """Show the plan in PLAN (plan.json or its folder), or all about the VM or host NAME in it."""
    from hanok.cli.planfiles import read_plan
    from hanok.cli.planprint import find, print_one, print_plan

    found = read_plan(path)
    if name is not None:
        one = find(found, name)
        if session.out.as_json:
            session.out.json(one.model_dump(mode="json"))
        else:
            print_one(session.out, found, one)
    elif session.out.as_json:
        session.out.json(found.model_dump(mode="json"))
    else:
        print_plan(session.out, found, wide=True)
        for assumption in found.assumptions:
            session.out.line(f"Assumed: {assumption}")


@click.command(
    "check-rules",
    cls=Example,
    examples=(
        _EXAMPLES[2],
        "hanok plan check-rules mine.yaml --servers servers.yaml --usage usage --hosts hosts.yaml",
    ),
)
@click.argument("path", type=_path, metavar="PLAN")
@click.option("--servers", type=_path, metavar="FILE", help="For a plan that does not name them.")
@usage_option
@hosts_option
@click.option("--fold", is_flag=True, help="Check on one day, as with 'hanok plan --fold'.")
@common_options
@pass_session
def check_rules(
    session: Session,
    path: Path,
    servers: Path | None,
    usage: Path | None,
    hosts: Path | None,
    fold: bool,
) -> int:
    """Check the plan in PLAN against every rule: plan.json, or a plan that you wrote yourself.

    The checker shares nothing with the search. It judges the assignment alone, by the files that
    the plan was made of or those given here. Exit status 1: a rule is broken.
    """
    from hanok.cli import planwork
    from hanok.cli.planfiles import placed, read_any_plan, read_inputs, read_inputs_of
    from hanok.errors import InvalidInput
    from hanok.model.plan import PlanFile

    planwork.require_extra()
    content, source = read_any_plan(path)
    with planwork.Steps(session, path.name) as steps:
        steps.tell("reading")
        if servers is not None:
            read = read_inputs(servers, usage, hosts)
        elif isinstance(content, PlanFile):
            read, fold = read_inputs_of(content, path), content.inputs.fold
        else:
            raise InvalidInput(
                f"{path} does not say what it is a plan of",
                field="--servers",
                expected="the servers file, with --usage and --hosts as for 'hanok plan'",
            )
        fleet = planwork.load_fleet(read, fold, steps)
        from hanok.consolidation.handmade import check_file

        steps.tell("checking every rule")
        with placed(source):
            faults = check_file(fleet, content)
    if isinstance(content, PlanFile):
        _tell_changes(session, content, fleet)
    if session.out.as_json:
        session.out.json(
            [{"rule": one.rule, "where": one.where, "what": one.what} for one in faults]
        )
    elif faults:
        rows: Sequence[Sequence[Cell | str]] = [
            (Cell(one.rule, "red"), one.where, one.what) for one in faults
        ]
        session.out.table(("RULE", "WHERE", "FAULT"), rows)
    else:
        session.out.line("The plan keeps every rule.")
    return 1 if faults else 0


def _tell_changes(session: Session, content: object, fleet: Fleet) -> None:
    from hanok.consolidation.outcome import digest_of
    from hanok.model.plan import PlanFile

    if isinstance(content, PlanFile) and content.inputs.digest not in ("", digest_of(fleet)):
        session.out.note("Note: what it was planned from has changed since.")
