"""``hanok assess import``: from what others have measured to a file a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.assess import findings_of, parse_duration, span
from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.output import Output
from hanok.cli.working import working
from hanok.errors import InvalidInput
from hanok.units import parse_size

if TYPE_CHECKING:
    from datetime import datetime

    from hanok.model.usage import Sizes, Usage

_PATH = click.Path(path_type=Path)
_FORMATS = ("sysstat", "prometheus", "csv", "planetlab", "bitbrains")


@click.command(
    "import",
    cls=Example,
    examples=(
        "hanok assess import sa*.json --out usage                  # sadf -j, of any days",
        "hanok assess import node.json --out usage                 # Prometheus, query_range",
        "hanok assess import load.csv --out usage --cores 8 --zone Europe/Berlin \\",
        '    --map "Time=time" --map "Host=server" --map "CPU %=cpu:percent"',
    ),
)
@click.argument("files", nargs=-1, required=True, type=_PATH, metavar="FILE...")
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--format", "kind", type=click.Choice(_FORMATS), help="Default: by what is in them.")
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="COLUMN=TARGET:UNIT",
    help="Of CSV: what a column is. TARGET is time, server, cpu, memory, disk_read, disk_write,"
    " network_receive, network_send, cores, memory_size or disk_size.",
)
@click.option("--zone", metavar="ZONE", help="Of times without a zone: Europe/Berlin, +09:00.")
@click.option("--interval", metavar="TIME", help="Of the result, such as 5m.")
@click.option("--start", metavar="TIME", help="When data without times began: 2011-03-03T00:00Z.")
@click.option("--server", metavar="NAME", help="Which server a table without names is about.")
@click.option("--cores", type=click.IntRange(1, 65536), help="Of servers whose data has none.")
@click.option("--memory", metavar="SIZE", help="The same, such as 16G.")
@click.option("--disk", metavar="SIZE", help="The same.")
@click.option("--replace", is_flag=True, help="Replace servers that are in DIR already.")
@common_options
@pass_session
def import_(
    session: Session,
    files: Sequence[Path],
    folder: Path,
    kind: str | None,
    maps: Sequence[str],
    zone: str | None,
    interval: str | None,
    start: str | None,
    server: str | None,
    cores: int | None,
    memory: str | None,
    disk: str | None,
    replace: bool,
) -> None:
    """Read what others have measured into DIR/NAME.usage.json, one a server.

    FILEs are sadf -j, answers of Prometheus, CSV, or traces of PlanetLab or Bitbrains, plain or
    gzip'd; folders stand for the files in them. What is wrong with the data is told; nothing is
    written unless all can be.
    """
    from hanok.assess.base import Format, Given
    from hanok.assess.folder import write_all
    from hanok.assess.importing import import_files
    from hanok.assess.times import parse_zone

    session.require_local("importing")
    given = Given(
        maps=maps,
        zone=None if zone is None else parse_zone(zone),
        start=None if start is None else _moment(start),
        sizes=_sizes(cores, memory, disk),
        server=server,
        interval=None if interval is None else float(_interval(interval)),
    )
    with working(session.out, "importing") as tell:
        found = import_files(files, None if kind is None else Format(kind), given, tell=tell)
        usages: list[_Brief] = []
        for at, usage in enumerate(write_all(folder, found.usages, replace=replace)):
            usages.append(_Brief(usage))
            tell(f"{usage.server}: written", at / found.servers)
    if session.out.as_json:
        session.out.json({"servers": [one.json for one in usages], "skipped": found.skipped})
    else:
        _print(session.out, folder, usages, found.skipped)


def _interval(text: str) -> int:
    seconds = parse_duration(text, "--interval")
    if seconds > 86400:
        raise InvalidInput(f"{text} is too long", field="--interval", expected="1s to 1d")
    return seconds


def _moment(text: str) -> datetime:
    from datetime import UTC, datetime

    from hanok.assess.times import is_sane

    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        if is_sane(moment.timestamp()):
            return moment
    except (ValueError, OverflowError):
        pass  # told below, as every other text that is none
    raise InvalidInput(
        f"{text[:40]!r} is no time to begin at",
        field="--start",
        expected="a time from 1991 to 2198, such as 2011-03-03T00:00Z",
    )


def _sizes(cores: int | None, memory: str | None, disk: str | None) -> Sizes:
    from hanok.model.usage import Sizes

    return Sizes(
        cores=cores,
        memory=None if memory is None else parse_size(memory, field="--memory"),
        disk=None if disk is None else parse_size(disk, field="--disk"),
    )


class _Brief:
    """What is told of an imported server; its samples need not stay in memory."""

    def __init__(self, usage: Usage) -> None:
        self.name = usage.server
        self.start, self.end, self.interval = usage.start, usage.end, usage.interval
        self.findings = usage.findings
        self.json = {
            "server": usage.server,
            "start": usage.start.isoformat(),
            "end": usage.end.isoformat(),
            "interval": usage.interval,
            "intervals": usage.length,
            "metrics": list(usage.samples),
            "sizes": usage.sizes.model_dump(),
            "findings": findings_of(usage),
        }


def _print(out: Output, folder: Path, usages: Sequence[_Brief], skipped: Mapping[str, str]) -> None:
    first = min(one.start for one in usages)
    last = max(one.end for one in usages)
    every = sorted({one.interval for one in usages})
    noun = "server" if len(usages) == 1 else "servers"
    out.line(
        f"{len(usages)} {noun} in {folder}, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC,"
        f" every {', '.join(span(one) for one in every[:4])}{' …' if len(every) > 4 else ''}"
    )
    rows = _rows_of_findings(usages)
    if rows:
        out.line()
        out.table(("FINDING", ">SERVERS", ">TIMES", "FIRST"), rows)
    for name, why in skipped.items():
        out.note(f"{name} is left out: {why}")


def _rows_of_findings(usages: Sequence[_Brief]) -> list[tuple[str, str, str, str]]:
    """Return one row a kind of finding: how many servers have it, how often, and the first."""
    codes = sorted({finding.code for one in usages for finding in one.findings})
    rows = []
    for code in codes:
        having = [
            (one, finding) for one in usages for finding in one.findings if finding.code == code
        ]
        server, finding = having[0]
        times = sum(found.count for _, found in having)
        rows.append((code, str(len(having)), str(times), f"{server.name}: {finding.text}"))
    return rows
