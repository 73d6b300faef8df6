"""Vector bin packing against the best of about 350 heuristics: ``python -m bench.vecpack DIR``.

DIR holds ``SET_instances.tar.gz`` (or folders) of .vbp files and ``SET_summary_known.tsv``, as the
authors of Computers & OR 168, 2024 publish them; .vbp files without a summary work as well. One
core; the time limit is the processor's time of this process, so that a busy machine does not count
against the search. An instance ends at its lower bound. Each assignment is written out, read back
and checked by the independent checker.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hanok.consolidation.checker import check_packing
from hanok.consolidation.meter import Meter
from hanok.consolidation.packing import pack
from hanok.consolidation.vectors import PackingProblem

SEED = 7
REACH = {"New": 0.0, "Panigrahy": 0.0, "Triplet": -0.05}
LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True)
class Instance:
    """A problem as its file says, before anything else has looked at it."""

    name: str
    capacity: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Known:
    """What the summary knows of an instance; the optimum is None where it is unknown."""

    bound: int
    optimum: int | None
    best: int


@dataclass(frozen=True)
class Outcome:
    """What came of one instance; times are the processor's seconds."""

    set: str
    name: str
    items: int
    bins: int
    first: int
    bound: int
    known_bound: int | None
    optimum: int | None
    best_heuristic: int | None
    seconds: float
    last_better: float
    steps: int
    faults: int


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    outcomes = _load(options.out / "outcomes.jsonl") if options.out else {}
    began = time.monotonic()
    for name, instance, known in track(_wanted(options), "vecpack", console=Console(stderr=True)):
        key = f"{name}/{instance.name}"
        late = options.pause_after and time.monotonic() - began > options.pause_after
        if key in outcomes or late:
            continue
        outcome = run(name, instance, known, options.time_limit, options.effort, options.out)
        outcomes[key] = outcome
        if options.out:
            with (options.out / "outcomes.jsonl").open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    _show(list(outcomes.values()), options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.vecpack", description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds an instance")
    parser.add_argument("--effort", type=int, help="instead of a time limit: millions of moves")
    parser.add_argument("--only", default="", help="instances whose SET/NAME contains this")
    parser.add_argument("--sample", type=int, help="as many of each set, always the same")
    parser.add_argument(
        "--out", type=Path, help="folder of assignments; what is there is not redone"
    )
    parser.add_argument(
        "--pause-after", type=float, help="seconds; go on later with the same --out"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    return options


def _load(path: Path) -> dict[str, Outcome]:
    if not path.exists():
        return {}
    rows = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]
    return {f"{row.set}/{row.name}": row for row in rows}


def _wanted(options: argparse.Namespace) -> list[tuple[str, Instance, Known | None]]:
    chosen: list[tuple[str, Instance, Known | None]] = []
    for name, instances in read_sets(options.dir).items():
        known = read_known(options.dir / f"{name}_summary_known.tsv")
        matching = [one for one in instances if options.only in f"{name}/{one.name}"]
        if options.sample and options.sample < len(matching):
            matching = random.Random(SEED).sample(matching, options.sample)
        chosen.extend((name, one, known.get(one.name)) for one in matching)
    return chosen


def read_sets(folder: Path) -> dict[str, list[Instance]]:
    """Return the instances of each set below ``folder``, sorted by name."""
    sets: dict[str, list[Instance]] = {}
    for archive in sorted(folder.glob("*_instances.tar.gz")):
        sets[archive.name.removesuffix("_instances.tar.gz")] = list(_in_archive(archive))
    for path in sorted(folder.rglob("*.vbp")):
        sets.setdefault(path.parent.name, []).append(parse(path.stem, path.read_text()))
    return {name: sorted(found, key=lambda one: one.name) for name, found in sets.items()}


def _in_archive(archive: Path) -> Iterator[Instance]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".vbp") else None
            if file is not None and member.size <= LARGEST_FILE:
                yield parse(Path(member.name).stem, file.read().decode())


def parse(name: str, text: str) -> Instance:
    """Return the instance of a text: d, capacities, m, then m lines of sizes and demand."""
    numbers = iter([int(word) for word in text.split()])
    dimensions = next(numbers)
    capacity = tuple(next(numbers) for _ in range(dimensions))
    sizes: list[tuple[int, ...]] = []
    for _ in range(next(numbers)):
        size = tuple(next(numbers) for _ in range(dimensions))
        sizes.extend([size] * next(numbers))
    return Instance(name, capacity, tuple(sizes))


def read_known(path: Path) -> dict[str, Known]:
    """Return what the summary at ``path`` knows, nothing when there is none."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {
            row["instance_name"]: Known(
                bound=int(row["LB"]),
                optimum=int(row["OPT"]) if int(row["OPT"]) >= 0 else None,
                best=int(row["best_overall"]),
            )
            for row in csv.DictReader(file, delimiter="\t")
        }


def run(
    set_name: str,
    instance: Instance,
    known: Known | None,
    seconds: float,
    effort: int | None = None,
    out: Path | None = None,
) -> Outcome:
    """Pack one instance, write the assignment, and check it."""
    began = time.process_time()
    better: list[tuple[float, int]] = []
    meter = Meter.of_effort(effort) if effort else Meter(seconds=seconds, clock=time.process_time)
    packing = pack(
        PackingProblem(np.array(instance.sizes), np.array(instance.capacity)),
        meter,
        show=lambda one: better.append((time.process_time() - began, one.count)),
    )
    bins = [int(b) for b in packing.bins]
    if out:
        path = out / f"{set_name}-{instance.name}.json"
        path.write_text(json.dumps({"bins": bins}))
        bins = json.loads(path.read_text())["bins"]
    return Outcome(
        set=set_name,
        name=instance.name,
        items=len(bins),
        bins=len(set(bins)),
        first=better[0][1] if better else packing.count,
        bound=packing.bound.bins,
        known_bound=known.bound if known else None,
        optimum=known.optimum if known else None,
        best_heuristic=known.best if known else None,
        seconds=time.process_time() - began,
        last_better=better[-1][0] if better else 0.0,
        steps=packing.steps,
        faults=len(check_packing(instance.sizes, instance.capacity, bins)),
    )


@dataclass(frozen=True)
class Summary:
    """The mean figures of a set, as shares: excess 0.01 is one bin in a hundred too many."""

    set: str
    instances: int
    excess: float | None
    worse: int
    better: int
    above_optimum: float | None
    optima_known: int
    gap: float
    at_bound: int
    faults: int
    reach: float | None


def summarize(name: str, outcomes: Sequence[Outcome]) -> Summary:
    """Return the means of one set."""
    against = [(one.bins, one.best_heuristic) for one in outcomes if one.best_heuristic]
    optima = [one.bins / one.optimum - 1 for one in outcomes if one.optimum]
    return Summary(
        set=name,
        instances=len(outcomes),
        excess=_mean([bins / best - 1 for bins, best in against]),
        worse=sum(bins > best for bins, best in against),
        better=sum(bins < best for bins, best in against),
        above_optimum=_mean(optima),
        optima_known=len(optima),
        gap=_mean([one.bins / max(1, one.bound) - 1 for one in outcomes]) or 0.0,
        at_bound=sum(one.bins == one.bound for one in outcomes),
        faults=sum(one.faults for one in outcomes),
        reach=REACH.get(name),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _show(outcomes: Sequence[Outcome], as_json: bool) -> None:
    by_set: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_set.setdefault(outcome.set, []).append(outcome)
    summaries = [summarize(name, found) for name, found in by_set.items()]
    if as_json:
        rows = [asdict(outcome) for outcome in outcomes]
        print(json.dumps({"sets": [asdict(one) for one in summaries], "instances": rows}))
        return
    table = Table(
        "set",
        "n",
        "excess",
        "at most",
        "worse",
        "better",
        "over optimum",
        "gap",
        "at bound",
        "faults",
    )
    for one in summaries:
        table.add_row(
            one.set,
            str(one.instances),
            _percent(one.excess),
            _percent(one.reach),
            str(one.worse),
            str(one.better),
            f"{_percent(one.above_optimum)} (n={one.optima_known})",
            _percent(one.gap),
            str(one.at_bound),
            str(one.faults),
        )
    Console(width=140).print(table)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:+.2%}"


if __name__ == "__main__":
    main()
