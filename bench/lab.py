"""How long lab hosts take until their daemons answer: a boot, clones of it, three at once."""

from __future__ import annotations

import tempfile

from rich.console import Console

from bench.hanok import own_hanok
from bench.report import Figure, Report

_COLD_LIMIT = 60.0
_CLONE_LIMIT = 2.0
_THREE_LIMIT = 4.0


def measure_lab(report: Report, console: Console, rounds: int) -> None:
    """Measure ``hanok lab up`` as whole commands, the image built before."""
    # The remotes are nobody's but this run's.
    with (
        tempfile.TemporaryDirectory(prefix="hk-bench-", dir="/tmp") as folder,
        own_hanok(settings={"HANOK_WARM": "0", "HANOK_CONFIG": folder}) as hanok,
    ):
        hanok.run("image", "build", "lab")
        cold = hanok.seconds("lab", "up", "cold", "--cold")
        hanok.run("lab", "down", "cold")
        console.print(f"  booted: {cold:.1f} s")
        report.add(Figure("lab host boots to its daemon's answer", cold, "s", _COLD_LIMIT))
        first = hanok.seconds("lab", "up", "first")
        report.add(Figure("the first of its kind, its template made", first, "s"))
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
        hanok.run("lab", "down", "--all")
