"""A day of PlanetLab on the fewest kilowatt-hours: ``python -m bench.planetlab DIR``.

DIR holds ``DAY.csv.gz`` (name, then CPU % at 5-minute steps; one VM a row) and, if known,
``stats_and_floors.csv`` with what each day is compared to. As usual for these traces, CPU alone
counts; a VM is of 2500, 2000, 1000 or 500 MIPS by the quarter of the name-sorted list it is in,
hosts are HP ML110 G5 (2 x 2660 MIPS) and empty ones are off. One static placement a day, no
migration, planned on that day as the packing is that it is compared to (first fit decreasing by
the 95th percentile). What such a plan is worth later is shown too: the overload in the second half
of the day of a plan that knew the first half alone.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hanok.consolidation.checker import check_plan
from hanok.consolidation.meter import Meter
from hanok.consolidation.planner import plan
from hanok.consolidation.request import Headroom, HostKind, PlanRequest, Rules, Server, watts_at

MIPS = (2500.0, 2000.0, 1000.0, 500.0)
HOST = HostKind(
    "ml110-g5",
    {"cpu": 2 * 2660.0},
    watts=(93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0),
)
HOURS = 300 / 3600
REACH, GOAL = 0.20, 0.25
Loads = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What a day costs: planned, and by first fit decreasing; energy in kWh."""

    day: str
    vms: int
    hosts: int
    bound: int
    kwh: float
    overloads: int
    ffd_hosts: int
    ffd_kwh: float
    ffd_overloads: int
    known_ffd_kwh: float | None
    floor_kwh: float
    seconds: float
    steps: int
    faults: int
    unseen_overload: float
    unseen_ffd_overload: float

    @property
    def overload(self) -> float:
        """The share of host intervals in which more was asked than the host has."""
        return self.overloads / (self.hosts * 288)

    @property
    def ffd_overload(self) -> float:
        """The same of first fit decreasing."""
        return self.ffd_overloads / (self.ffd_hosts * 288)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench.planetlab", description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--day", action="append", help="only this day, may be repeated")
    parser.add_argument("--time-limit", type=float, default=30.0, help="CPU seconds a day")
    parser.add_argument("--effort", type=int, help="instead of a time limit: millions of moves")
    parser.add_argument("--out", type=Path, help="folder that gets the placements")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    known = read_known(options.dir / "stats_and_floors.csv")
    days = options.day or sorted(p.name[: -len(".csv.gz")] for p in options.dir.glob("*.csv.gz"))
    outcomes = [
        run(
            day,
            read_day(options.dir / f"{day}.csv.gz"),
            options.time_limit,
            options.effort,
            options.out,
            known.get(day),
        )
        for day in days
    ]
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        _show(outcomes)


def read_known(path: Path) -> dict[str, float]:
    """Return the kWh of first fit decreasing by day, as the file next to the data says."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {row["day"]: float(row["energy_ffd_p95_kwh"]) for row in csv.DictReader(file)}


def read_day(path: Path) -> dict[str, Loads]:
    """Return the load of each VM in MIPS, sorted by name."""
    with gzip.open(path, "rt") as file:
        rows = sorted(row for row in csv.reader(file) if len(row) > 1 and row[1].isdigit())
    block = math.ceil(len(rows) / len(MIPS))
    return {
        row[0]: np.array([float(cell) for cell in row[1:]]) / 100.0 * MIPS[number // block]
        for number, row in enumerate(rows)
    }


def run(
    day: str,
    loads: dict[str, Loads],
    seconds: float,
    effort: int | None,
    out: Path | None,
    known_ffd: float | None,
) -> Outcome:
    """Plan one day, write the placement, check it and count what it costs."""
    began = time.process_time()
    request = _request(loads)
    meter = Meter.of_effort(effort) if effort else Meter(seconds=seconds, clock=time.process_time)
    answer = plan(request, meter)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{day}.json").write_text(json.dumps(dict(answer.placement)))
    planned = cost(loads, dict(answer.placement))
    unseen, unseen_ffd = _unseen(loads, seconds)
    ffd = cost(loads, first_fit(loads))
    return Outcome(
        day=day,
        vms=len(loads),
        hosts=len(answer.hosts),
        bound=answer.bound.bins,
        kwh=planned.kwh,
        overloads=planned.overloads,
        ffd_hosts=ffd.hosts,
        ffd_kwh=ffd.kwh,
        ffd_overloads=ffd.overloads,
        known_ffd_kwh=known_ffd,
        floor_kwh=floor(loads),
        seconds=time.process_time() - began,
        steps=answer.steps,
        faults=len(check_plan(request, answer)),
        unseen_overload=unseen,
        unseen_ffd_overload=unseen_ffd,
    )


def _request(loads: dict[str, Loads], reserve: float = 0.0) -> PlanRequest:
    servers = tuple(Server(name, {"cpu": load}) for name, load in loads.items())
    return PlanRequest(servers, offer=HOST, rules=Rules(headroom=Headroom(100.0, reserve)))


def _unseen(loads: dict[str, Loads], seconds: float) -> tuple[float, float]:
    """Return the overload in the second half of the day of plans made of the first half.

    The first is ours, the second first fit decreasing's.
    """
    half = len(next(iter(loads.values()))) // 2
    seen = {name: load[:half] for name, load in loads.items()}
    meter = Meter(seconds=seconds / 4, clock=time.process_time)
    answer = plan(_request(seen), meter)
    rest = {name: load[half:] for name, load in loads.items()}
    costs = [cost(rest, dict(answer.placement)), cost(rest, first_fit(seen))]
    ours, ffd = (one.overloads / (one.hosts * half) for one in costs)
    return ours, ffd


@dataclass(frozen=True)
class Cost:
    """What a placement costs over the day."""

    hosts: int
    kwh: float
    overloads: int


def cost(loads: dict[str, Loads], placement: dict[str, str]) -> Cost:
    """Return the energy of the hosts in use, and in how many host intervals they lack CPU."""
    total: dict[str, Loads] = {}
    for name, host in placement.items():
        total[host] = total.get(host, 0.0) + loads[name]
    capacity = HOST.capacity["cpu"]
    watts = sum(float(watts_at(HOST, load / capacity).sum()) for load in total.values())
    over = sum(int((load > capacity * (1 + 1e-9)).sum()) for load in total.values())
    return Cost(len(total), watts * HOURS / 1000, over)


def first_fit(loads: dict[str, Loads]) -> dict[str, str]:
    """Return the placement that all is compared to: first fit decreasing, 95th percentile."""
    sizes = {name: float(np.percentile(load, 95)) for name, load in loads.items()}
    left: list[float] = []
    placement: dict[str, str] = {}
    for name in sorted(sizes, key=lambda one: -sizes[one]):
        at = next((n for n, free in enumerate(left) if sizes[name] <= free + 1e-9), len(left))
        if at == len(left):
            left.append(HOST.capacity["cpu"])
        left[at] -= sizes[name]
        placement[name] = f"ffd-{at}"
    return placement


def floor(loads: dict[str, Loads]) -> float:
    """Return the kWh if at any time full hosts did all the work and the others were off."""
    total = np.sum(list(loads.values()), axis=0) / HOST.capacity["cpu"]
    return float(total.sum()) * HOST.watts[-1] * HOURS / 1000


def _show(outcomes: list[Outcome]) -> None:
    table = Table(
        *("day", "VMs", "hosts", "bound", "kWh", "overload"),
        *("FFD kWh", "FFD overload", "saved", "over floor", "faults", "overload, unseen half"),
    )
    for one in outcomes:
        reference = min(one.ffd_kwh, one.known_ffd_kwh or math.inf)
        table.add_row(
            *(one.day, str(one.vms), str(one.hosts), str(one.bound), f"{one.kwh:.1f}"),
            f"{one.overload:.2%}",
            f"{reference:.1f}",
            f"{one.ffd_overload:.2%}",
            f"{1 - one.kwh / reference:.1%} (reach {REACH:.0%})",
            f"{one.kwh / one.floor_kwh - 1:.1%} (goal {GOAL:.0%})",
            str(one.faults),
            f"{one.unseen_overload:.2%} (FFD {one.unseen_ffd_overload:.2%})",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
