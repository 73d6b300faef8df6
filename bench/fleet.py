"""Time, memory and gap of planning N servers: ``python -m bench.fleet N --data DIR``.

DIR holds the folders planetlab (``DAY.csv.gz``) and bitbrains (``meta.csv``, ``trace.csv.gz``). The
generator: each server draws a day of a PlanetLab machine (CPU %) or, one in five, of a Bitbrains VM
(MHz over its size), at random with a fixed seed, keeps the time of day, and gets cores and memory
of a Bitbrains VM. Hosts are of one kind, with 64 cores of 2.5 GHz, 90 % of which may be used at any
time, and 512 GiB; memory is never oversold. That is the usual 8 GiB a core, and as usual memory is
what such hosts run out of first: ``--cores`` 32 ``--memory`` 768 makes CPU over time the limit.

The search ends at the gap asked for or at the time limit, which is the processor's time of this one
process: on one core of a machine that does nothing else it is the time that passes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanok.consolidation.checker import check_plan
from hanok.consolidation.meter import Meter
from hanok.consolidation.planner import plan
from hanok.consolidation.request import Headroom, HostKind, Plan, PlanRequest, Rules, Server

MHZ = 2500.0
STEPS = 288
SEED = 11
LIMITS = ((1_000, 2.0), (10_000, 20.0), (100_000, 300.0))
Shares = NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """What a VM was sold: MHz and bytes."""

    cpu: float
    memory: float


@dataclass(frozen=True)
class Outcome:
    """What came of a fleet; seconds are the processor's, memory the most that was resident."""

    servers: int
    hosts: int
    first_hosts: int
    first_seconds: float
    bound: int
    bound_reason: str
    gap: float
    seconds: float
    limit: float
    peak_memory: int
    faults: int


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__)
    parser.add_argument("servers", type=int)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--time-limit", type=float, help="CPU seconds; else by the size")
    parser.add_argument("--gap", type=float, default=0.03, help="the search ends at it")
    parser.add_argument("--cores", type=int, default=64, help="of a host")
    parser.add_argument("--memory", type=int, default=512, help="GiB of a host")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help="file that gets the placement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    host = HostKind(
        f"{options.cores}-core",
        {"cpu": options.cores * MHZ, "memory": options.memory * float(2**30)},
    )
    request = make_fleet(options.servers, options.data, host, options.seed)
    limit = options.time_limit or next(
        (seconds for most, seconds in LIMITS if options.servers <= most), LIMITS[-1][1]
    )
    _warm(options.data, host)
    outcome = run(request, limit, options.gap, options.out)
    if options.json:
        print(json.dumps(asdict(outcome)))
        return
    print(
        f"{outcome.servers} servers: {outcome.hosts} hosts, at least {outcome.bound} by "
        f"{outcome.bound_reason}, gap {outcome.gap:.2%}\n"
        f"{outcome.seconds:.1f} s of {limit:.0f} s (first plan: {outcome.first_hosts} hosts after "
        f"{outcome.first_seconds:.1f} s), {outcome.peak_memory / 2**30:.2f} GiB, "
        f"{outcome.faults} faults"
    )


def _warm(data: Path, host: HostKind) -> None:
    """Compile the hot loops, which happens once an installation, before anything is timed."""
    plan(make_fleet(60, data, host, 1), Meter(steps=1_000))


def run(request: PlanRequest, limit: float, gap: float, out: Path | None) -> Outcome:
    """Plan the fleet and check the plan."""
    began = time.process_time()
    shown: list[tuple[float, Plan]] = []
    meter = Meter(
        seconds=limit,
        clock=time.process_time,
        stop=lambda: bool(shown) and shown[-1][1].gap <= gap,
    )
    answer = plan(request, meter, show=lambda one: shown.append((time.process_time() - began, one)))
    seconds = time.process_time() - began
    if out:
        out.write_text(json.dumps(dict(answer.placement)))
    return Outcome(
        servers=len(request.servers),
        hosts=len(answer.hosts),
        first_hosts=len(shown[0][1].hosts),
        first_seconds=shown[0][0],
        bound=answer.bound.bins,
        bound_reason=answer.bound.reason,
        gap=answer.gap,
        seconds=seconds,
        limit=limit,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        faults=len(check_plan(request, answer)),
    )


def make_fleet(count: int, data: Path, host: HostKind, seed: int = SEED) -> PlanRequest:
    """Return a request of ``count`` servers, always the same for a seed."""
    random = np.random.default_rng(seed)
    planetlab = np.concatenate([read_day(path) for path in _days(data / "planetlab")])
    sizes = read_sizes(data / "bitbrains/meta.csv")
    bitbrains = read_trace(data / "bitbrains/trace.csv.gz", sizes)
    all_sizes = list(sizes.values())
    servers = []
    for number in range(count):
        pool = bitbrains if random.random() < 0.2 else planetlab
        share = pool[random.integers(len(pool))]
        size = all_sizes[random.integers(len(all_sizes))]
        load = (share * np.float32(size.cpu)).astype(np.float32)
        servers.append(Server(f"server-{number + 1}", {"cpu": load}, {"memory": size.memory}))
    return PlanRequest(tuple(servers), offer=host, rules=Rules(Headroom(100.0, 0.1)))


def _days(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.csv.gz"))


def read_day(path: Path) -> Shares:
    """Return the load of each machine of a PlanetLab day, as a share of its CPU."""
    with gzip.open(path, "rt") as file:
        rows = [row[1:] for row in csv.reader(file) if len(row) == STEPS + 1 and row[1].isdigit()]
    return np.array(rows, np.float32) / np.float32(100.0)


def read_sizes(path: Path) -> dict[str, Size]:
    """Return what each Bitbrains VM was sold."""
    with path.open() as file:
        return {
            row["id"]: Size(float(row["cpu_capacity"]), float(row["mem_capacity"]) * 1024)
            for row in csv.DictReader(file)
        }


def read_trace(path: Path, sizes: dict[str, Size]) -> Shares:
    """Return the whole days of the Bitbrains VMs, as shares of their CPU, by time of day.

    A day counts when at least half of its intervals were measured; a gap holds the last value.
    """
    days: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            day, _, clock = row["timestamp"].partition(" ")
            slot = int(clock[:2]) * 12 + int(clock[3:5]) // 5
            days[row["id"], day][slot] = float(row["cpu_usage"]) / sizes[row["id"]].cpu
    whole = [list(_filled(of)) for _, of in sorted(days.items()) if len(of) >= STEPS // 2]
    return np.clip(np.array(whole, np.float32), 0.0, 1.0)


def _filled(slots: dict[int, float]) -> Iterator[float]:
    value = slots[min(slots)]
    for slot in range(STEPS):
        value = slots.get(slot, value)
        yield value


if __name__ == "__main__":
    main()
