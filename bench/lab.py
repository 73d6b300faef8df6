"""How long lab hosts take until their daemons answer: a boot, clones of it, three at once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from rich.console import Console

from bench.hanok import Hanok, own_hanok
from bench.report import Figure, Report

_COLD_LIMIT = 60.0
_CLONE_LIMIT = 2.0
_THREE_LIMIT = 4.0
_MIB = 1024 * 1024


def measure_lab(report: Report, console: Console, rounds: int) -> None:
    """Measure ``hanok lab up`` as whole commands, the image built before."""
    with lab("lab") as hanok:
        _measure_cold(report, console, hanok, "lab host")
        clones = []
        for number in range(rounds):
            clones.append(hanok.seconds("lab", "up", f"c{number}"))
            hanok.run("lab", "down", f"c{number}")
        seen = report.median(
            "lab host, a clone, to its daemon's answer", clones, limit=_CLONE_LIMIT
        )
        console.print(f"  a clone: {seen:.2f} s")
        three = hanok.seconds("lab", "up", "rack", "--count", "3")
        report.add(Figure("three lab hosts, clones, to the last answer", three, "s", _THREE_LIMIT))


def measure_lab_xen(report: Report, console: Console, rounds: int) -> None:
    """Measure the same below Xen, and what Xen's own tools in Dom0 take to answer.

    A clone's first ``xl list`` comes right after it is there; its code is translated then.
    """
    kind = ("--hypervisor", "xen")
    with lab("lab-xen") as hanok:
        _measure_cold(report, console, hanok, "Xen host", *kind)
        clones, first, again, memory = [], [], [], []
        for number in range(rounds):
            name = f"c{number}"
            clones.append(hanok.seconds("lab", "up", name, *kind))
            first.append(hanok.seconds("exec", name, "--", "xl", "list"))
            again.append(hanok.seconds("exec", name, "--", "xl", "list"))
            memory.append(hanok.json("show", name)["proportional"] / _MIB)
            hanok.run("lab", "down", name)
        seen = report.median("Xen host, a clone, to its daemon's answer", clones)
        console.print(f"  a clone: {seen:.2f} s")
        whole = [up + asked for up, asked in zip(clones, first, strict=True)]
        report.median("the same and xl list in it", whole, limit=_CLONE_LIMIT)
        report.median("xl list in a clone, first", first)
        report.median("xl list in a clone, again", again)
        report.median("proportional memory of such a clone", memory, "MiB")


@contextlib.contextmanager
def lab(image: str) -> Iterator[Hanok]:
    """Give a Hanok with the image; its remotes are nobody's but this run's."""
    with (
        tempfile.TemporaryDirectory(prefix="hk-bench-", dir="/tmp") as folder,
        own_hanok(settings={"HANOK_WARM": "0", "HANOK_CONFIG": folder}) as hanok,
    ):
        hanok.run("image", "build", image)
        yield hanok
        hanok.run("lab", "down", "--all")


def _measure_cold(report: Report, console: Console, hanok: Hanok, what: str, *options: str) -> None:
    """Measure a boot, and a boot with its template made, which stays."""
    cold = hanok.seconds("lab", "up", "cold", "--cold", *options)
    hanok.run("lab", "down", "cold")
    console.print(f"  booted: {cold:.1f} s")
    report.add(Figure(f"{what} boots to its daemon's answer", cold, "s", _COLD_LIMIT))
    first = hanok.seconds("lab", "up", "first", *options)
    report.add(Figure(f"{what}, the first of its kind, its template made", first, "s"))
