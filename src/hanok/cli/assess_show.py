"""``hanok assess show``: measured servers in a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hanok.cli.assess import findings_of, span
from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.output import Cell
from hanok.cli.working import working
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.assess.summary import Level, Summary

_SHOWN_FINDINGS = 20
_TITLES = (
    "SERVER",
    "FROM",
    ">SPAN",
    ">EVERY",
    ">GAPS",
    ">CORES",
    ">CPU PEAK",
    ">MEAN",
    ">P95",
    ">MEMORY PEAK",
    ">MEAN",
    ">P95",
)


@click.command(
    "show", cls=Example, examples=("hanok assess show usage", "hanok assess show usage --json")
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@common_options
@pass_session
def show(session: Session, folder: Path) -> None:
    """Show the measured servers of DIR: how long, gaps, peaks, means, and what was found.

    CPU is in cores in use; P95 is what is not exceeded 95 % of the time.
    """
    from hanok.assess.folder import open_usages
    from hanok.assess.summary import summarize

    session.require_local("a folder")
    rows: list[tuple[Cell | str, ...]] = []
    findings: list[str] = []
    found: list[dict[str, Any]] = []
    with working(session.out, f"reading {folder}") as tell:
        for usage in open_usages(folder, tell=tell):
            summary = summarize(usage)
            if session.out.as_json:
                found.append(_as_json(summary))
            rows.append(_row(summary))
            findings += [f"{usage.server}: {one.code}: {one.text}" for one in usage.findings]
    if session.out.as_json:
        session.out.json(found)
        return
    session.out.table(_TITLES, rows)
    for line in findings[:_SHOWN_FINDINGS]:
        session.out.line(line)
    if len(findings) > _SHOWN_FINDINGS:
        session.out.line(f"… and {len(findings) - _SHOWN_FINDINGS} more findings; --json has all")


def _row(summary: Summary) -> tuple[Cell | str, ...]:
    usage, gaps = summary.usage, summary.gaps
    return (
        usage.server,
        f"{usage.start:%Y-%m-%d}",
        span(summary.span),
        span(usage.interval),
        Cell(f"{gaps:.1%}", "yellow" if gaps else None),
        str(usage.sizes.cores or "-"),
        *_levels(summary.cpu, lambda cores: f"{cores:.2f}"),
        *_levels(summary.memory, lambda size: format_size(round(size))),
    )


def _levels(level: Level | None, text: Callable[[float], str]) -> tuple[str, str, str]:
    if level is None:
        return ("-", "-", "-")
    return (text(level.peak), text(level.mean), text(level.p95))


def _as_json(summary: Summary) -> dict[str, Any]:
    usage = summary.usage
    return {
        "server": usage.server,
        "start": usage.start.isoformat(),
        "end": usage.end.isoformat(),
        "interval": usage.interval,
        "intervals": usage.length,
        "gaps": {metric.value: usage.gaps(metric) for metric in usage.samples},
        "sizes": usage.sizes.model_dump(),
        "source": usage.source,
        "cpu": _level_json(summary.cpu),
        "memory": _level_json(summary.memory),
        "findings": findings_of(usage),
    }


def _level_json(level: Level | None) -> dict[str, float] | None:
    return None if level is None else {"peak": level.peak, "mean": level.mean, "p95": level.p95}
