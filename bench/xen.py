"""Guests of Xen in a lab host: how long each mode takes, by Hanok and by ``xl create`` by hand."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

from rich.console import Console
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from bench.hanok import Hanok, finish
from bench.lab import lab
from bench.report import Figure, Report
from hanok.client.remotes import RemoteBook, open_remote

_LIMITS = {"para": 15.0, "hybrid": 15.0, "full": 60.0}
_OVERHEAD = 1.15
_SHAPE: dict[str, object] = {
    "image": "micro",
    "memory": "128M",
    "disk": "512M",
    "networks": [],
    "cold": True,
    "ready": {"timeout": 600},
}
_SCRIPT = Path(__file__).with_name("by_hand.py")
_SLOW_ROUNDS = 2


def measure_xen(report: Report, console: Console, rounds: int) -> None:
    """Measure request to ready in each mode, by turns with the same guest by hand.

    The request comes from outside, as of any remote; by hand it is given in Dom0 itself.
    """
    with lab("lab-xen") as hanok:
        hanok.run("lab", "up", "x", "--hypervisor", "xen", "--cold")
        hanok.run("cp", str(_SCRIPT), "x:/run/by_hand.py")
        book = RemoteBook(Path(hanok.environ["HANOK_CONFIG"]))
        client = open_remote(book.find("x"))
        for mode, limit in _LIMITS.items():
            ours, asked, hand = [], [], []
            for number in range(min(rounds, _SLOW_ROUNDS) if mode == "full" else rounds):
                name = f"g{number}"
                begun = time.perf_counter()
                finish(client, client.run({**_SHAPE, "name": name, "mode": mode}))
                asked.append(time.perf_counter() - begun)
                seconds = client.vm(name)["ready_seconds"]
                if seconds is None:
                    raise RuntimeError(f"{name} does not say when it was ready")
                ours.append(seconds)
                finish(client, client.delete(name, force=True))
                hand.append(_by_hand(hanok, mode))
                console.print(
                    f"  {mode}: ready after {ours[-1]:.1f} s, {asked[-1]:.1f} s from the request,"
                    f" by hand {hand[-1]:.1f} s"
                )
            report.median(f"micro on Xen, {mode}: ready", ours, limit=limit)
            report.median(f"micro on Xen, {mode}: by hand, to the agent's ping", hand)
            ratio = statistics.median(mine / base for mine, base in zip(asked, hand, strict=True))
            report.add(Figure(f"micro on Xen, {mode}: Hanok / by hand", ratio, "x", _OVERHEAD))


def _by_hand(hanok: Hanok, mode: str) -> float:
    """Return the seconds by hand; typed again when the guest died in its boot.

    On an emulated CPU one of PVH does at times, by a triple fault; Hanok starts it again too.
    """
    again = Retrying(
        stop=stop_after_attempt(3),
        retry=retry_if_exception_type(subprocess.CalledProcessError),
        reraise=True,
    )
    return float(again(hanok.run, "exec", "x", "--", "python3", "/run/by_hand.py", mode))
