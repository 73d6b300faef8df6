"""``hanok plan what-if`` and ``hanok plan compare``: plans side by side, and forecasts judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.output import Cell
from hanok.cli.plan import effort_option
from hanok.errors import HanokError

if TYPE_CHECKING:
    from hanok.cli.planwork import Steps
    from hanok.consolidation.fleet import Fleet
    from hanok.consolidation.whatif import Case, Tried
    from hanok.model.plan import PlanFile

USUAL = ("load=1.5", "hosts=+1", "hosts=-1", "failures=1", "headroom=100:0.3")


@dataclass(frozen=True)
class Column:
    """What a plan or a case comes to; None where there is no plan."""

    name: str
    hosts: int | None = None
    spares: int | None = None
    bound: int | None = None
    gap: float | None = None
    rack_units: int | None = None
    watts: float | None = None
    kwh_year: float | None = None
    money_year: float | None = None
    purchase: float | None = None
    worst_risk: float | None = None
    moved: int | None = None
    note: str = ""


@click.command(
    "what-if",
    cls=Example,
    examples=(
        "hanok plan what-if plan",
        "hanok plan what-if plan --case load=1.5 --case hosts=-1 --case headroom=99:0.2",
    ),
)
@click.argument("path", type=click.Path(path_type=Path), metavar="PLAN")
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="CHANGE=N",
    help="load=1.5, memory=1.2, hosts=+1, hosts=-1, headroom=99:0.2 (percentile:share kept "
    "free), failures=1, without=HOST. May be repeated.",
)
@effort_option
@common_options
@pass_session
def what_if(session: Session, path: Path, cases: Sequence[str], effort: int | None) -> None:
    """Plan again what PLAN was made of, with a change, and show all side by side.

    hosts=+1 spreads the VMs over the plan's hosts and one more, with as much CPU free as that
    allows; hosts=-1 takes one away, and headroom gives way where it must. Watts are with the idle
    power of new machines where it is not known.
    """
    from hanok.cli import planwork
    from hanok.cli.planfiles import read_inputs_of, read_plan
    from hanok.consolidation.whatif import parse_case

    planwork.require_extra()
    wanted = [parse_case(text) for text in cases or USUAL]
    base = read_plan(path)
    with planwork.Steps(session, path.name) as steps:
        steps.tell("reading")
        read = read_inputs_of(base, path)
        fleet = planwork.load_fleet(read, base.inputs.fold, steps)
        columns = [column_of("as planned", base)]
        columns += _try_all(session, fleet, base, wanted, effort, steps)
    _print(session, columns, base.currency)


def _try_all(
    session: Session,
    fleet: Fleet,
    base: PlanFile,
    cases: Sequence[Case],
    effort: int | None,
    steps: Steps,
) -> list[Column]:
    """Try the cases one by one; Ctrl-C gives the best of the one that is tried, and no further."""
    from hanok.cli import planwork
    from hanok.consolidation.handmade import by_hand, plan_of
    from hanok.consolidation.offers import Effort
    from hanok.consolidation.whatif import try_case

    _, known = plan_of(fleet, by_hand(base))
    moves = (effort or base.search.effort) * planwork.MOVES
    columns = []
    with planwork.stoppable(session) as stop:
        for number, case in enumerate(cases):
            if stop.heed():
                break
            steps.tell(f"{case.text} ({number + 1} of {len(cases)})", number / len(cases))
            asked = Effort(moves, stop=stop.heed)
            tried = try_case(case, fleet, known, asked, base.search.objective, base.search.seed)
            columns.append(_column_of_case(tried, base))
    return columns


def _column_of_case(tried: Tried, base: PlanFile) -> Column:
    from hanok.consolidation.outcome import make_plan_file
    from hanok.model.plan import Search

    if tried.choice is None:
        return Column(tried.case.text, note=f"impossible: {tried.note}")
    found = make_plan_file(tried.fleet, tried.choice, base.inputs, Search(effort=0))
    return column_of(tried.case.text, found, base, tried.note)


def column_of(name: str, plan: PlanFile, base: PlanFile | None = None, note: str = "") -> Column:
    """Return what ``plan`` comes to; ``moved`` counts VMs that are elsewhere than in ``base``."""
    risks = [host.forecast.risk for host in plan.used if host.forecast is not None]
    places = {} if base is None else {vm.name: vm.host for vm in base.vms}
    moved = sum(places.get(vm.name) != vm.host for vm in plan.vms)
    energy = plan.after.new_idle
    return Column(
        name,
        hosts=len(plan.used),
        spares=len(plan.spares),
        bound=plan.bound.hosts,
        gap=plan.bound.gap,
        rack_units=plan.after.rack_units,
        watts=energy.watts,
        kwh_year=energy.kwh_year,
        money_year=energy.money_year,
        purchase=plan.after.purchase,
        worst_risk=max(risks, default=0.0),
        moved=None if base is None else moved,
        note=note,
    )


@click.command(
    "compare",
    cls=Example,
    examples=(
        "hanok plan compare plan-a plan-b",
        "hanok plan compare plan --for 10m --every 10s",
        "hanok plan compare plan --usage measured",
    ),
)
@click.argument("paths", type=click.Path(path_type=Path), metavar="PLAN...", nargs=-1)
@click.option(
    "--usage",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Usage files of hosts and VMs, measured since; with --for they are written there.",
)
@click.option("--for", "span", metavar="TIME", help="Measure the VMs that apply made: 2m, 1h.")
@click.option("--every", default="5s", show_default=True, metavar="TIME", help="With --for.")
@common_options
@pass_session
def compare(
    session: Session, paths: Sequence[Path], usage: Path | None, span: str | None, every: str
) -> None:
    """Show plans side by side, or how right one was.

    Of several: what they take, and how many VMs are elsewhere than in the first. Of one, with
    --usage or --for: its forecast against what its hosts and VMs were measured to use since.
    """
    from hanok.cli.planfiles import read_plan

    if usage is not None or span is not None:
        if len(paths) != 1:
            raise click.UsageError("--usage and --for are for one plan.")
        from hanok.cli.planmeasure import compare_measured

        compare_measured(session, paths[0], usage, span, every)
        return
    if len(paths) < 2:
        raise click.UsageError("Name at least two plans, or one with --usage or --for.")
    plans = [read_plan(path) for path in paths]
    currencies = sorted({plan.currency for plan in plans})
    if len(currencies) > 1:
        raise HanokError(
            f"the plans count money in {' and '.join(currencies)}",
            hint="compare plans that were made with one currency",
        )
    columns = [
        column_of(str(path), plan, None if number == 0 else plans[0])
        for number, (path, plan) in enumerate(zip(paths, plans, strict=True))
    ]
    _print(session, columns, currencies[0])


def _print(session: Session, columns: Sequence[Column], currency: str) -> None:
    if session.out.as_json:
        session.out.json([asdict(column) for column in columns])
        return
    titles = (
        "CASE", ">HOSTS", ">LEAST", ">GAP", ">UNITS", ">WATTS", ">KWH/YEAR",
        f">{currency}/YEAR", ">BUY", ">RISK", ">MOVED",
    )  # fmt: skip
    session.out.table(titles, [_row(column) for column in columns])
    for column in columns:
        if column.note:
            session.out.line(f"{column.name}: {column.note}")


def _row(column: Column) -> list[Cell | str]:
    if column.hosts is None:
        return [Cell(column.name, "bold"), Cell("none", "red"), *["-"] * 9]
    return [
        Cell(column.name, "bold"),
        f"{column.hosts}+{column.spares}" if column.spares else str(column.hosts),
        str(column.bound),
        f"{column.gap or 0:.1%}",
        _number(column.rack_units),
        _number(column.watts),
        _number(column.kwh_year),
        _number(column.money_year),
        _number(column.purchase),
        f"{column.worst_risk or 0:.2%}",
        "-" if column.moved is None else str(column.moved),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
