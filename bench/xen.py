"""Guests of Xen in a lab host: how long each mode takes, by Hanok and by ``xl create`` by hand."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

from rich.console import Console
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from bench.by_hanok import NAME
from bench.hanok import Hanok
from bench.lab import lab
from bench.report import Figure, Report
from hanok.images.payload import PREFIX

_LIMITS = {"para": 15.0, "hybrid": 15.0, "full": 60.0}
_OVERHEAD = 1.15
_SCRIPTS = tuple(Path(__file__).with_name(name) for name in ("by_hanok.py", "by_hand.py"))
_PYTHON = f"{PREFIX}/bin/python3"
_SEED = "/run/seed.iso"
_SLOW_ROUNDS = 2


def measure_xen(report: Report, console: Console, rounds: int) -> None:
    """Measure request to ready in each mode, by turns with the same guest by hand.

    Both are asked for in Dom0 itself: the way there, which a remote has, is not Xen's matter.
    """
    with lab("lab-xen") as hanok:
        hanok.run("lab", "up", "x", "--hypervisor", "xen", "--cold")
        for script in _SCRIPTS:
            hanok.run("cp", str(script), f"x:/run/{script.name}")
        for mode, limit in _LIMITS.items():
            ready, asked, hand = [], [], []
            for _ in range(min(rounds, _SLOW_ROUNDS) if mode == "full" else rounds):
                ours = json.loads(_run(hanok, _PYTHON, "by_hanok.py", mode))
                ready.append(ours["ready"])
                asked.append(ours["asked"])
                hand.append(_by_hand(hanok, mode))
                console.print(
                    f"  {mode}: ready after {ready[-1]:.1f} s, {asked[-1]:.1f} s from the request,"
                    f" by hand {hand[-1]:.1f} s"
                )
            report.median(f"micro on Xen, {mode}: ready", ready, limit=limit)
            report.median(f"micro on Xen, {mode}: by hand, to the agent's ping", hand)
            ratio = statistics.median(mine / base for mine, base in zip(asked, hand, strict=True))
            report.add(Figure(f"micro on Xen, {mode}: Hanok / by hand", ratio, "x", _OVERHEAD))


def _run(hanok: Hanok, python: str, script: str, mode: str, *more: str) -> str:
    return hanok.run("exec", "x", "--", python, f"/run/{script}", mode, _SEED, *more)


def _by_hand(hanok: Hanok, mode: str) -> float:
    """Return the seconds by hand; typed again when the guest died in its boot.

    On an emulated CPU one of PVH does at times, by a triple fault; Hanok starts it again too.
    """
    again = Retrying(
        stop=stop_after_attempt(3),
        retry=retry_if_exception_type(subprocess.CalledProcessError),
        reraise=True,
    )
    return float(again(_run, hanok, "python3", "by_hand.py", mode, NAME))
