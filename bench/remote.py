"""What a remote adds to every command, as whole processes: the same daemon by both ways.

Each command runs by turns over the unix socket and over TLS with a token, so that what else the
machine does weighs on both. The hypervisor is the fake one: guests would only add noise.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from bench.hanok import Hanok, own_hanok
from bench.report import Figure, Report
from hanok.client.remotes import Remote, RemoteBook

_LIMIT = 0.060
_VMS = 10
_SHAPE = ("--memory", "64M", "--disk", "64M")
_ROLES = {"role": "administrator", "expires_in": None}


def measure_remote(report: Report, console: Console, rounds: int) -> None:
    """Measure every command that asks a daemon, both ways."""
    with (
        own_hanok("fake", {"HANOK_LISTEN": "127.0.0.1:0"}) as hanok,
        _other_user(hanok) as environ,
        tempfile.TemporaryDirectory(prefix="hk-bench-", dir="/tmp") as folder,
    ):
        for number in range(_VMS):
            hanok.run("run", "micro", "--name", f"vm{number}", *_SHAPE)
        hanok.run("template", "create", "base", "--from", "vm0")
        worst = ("", 0.0)
        for name, commands in _commands(Path(folder)).items():
            seen = [_both_ways(hanok, environ, commands, turn) for turn in range(rounds)]
            added = _add(report, name, seen)
            worst = max(worst, (name, added), key=lambda one: one[1])
            console.print(f"  {name}: {added * 1000:+.0f} ms")
        report.add(Figure("remote adds at most", worst[1], "s", _LIMIT, remark=worst[0]))


def _add(report: Report, name: str, seen: Sequence[tuple[float, float]]) -> float:
    """Report what a remote adds to a command, by pairs that follow each other, and return it."""
    here = statistics.median(one for one, _ in seen)
    quickest = min(one for _, one in seen) - min(one for one, _ in seen)
    return report.median(
        f"remote adds to: {name}",
        [there - early for early, there in seen],
        limit=_LIMIT,
        remark=f"{here:.3f} s here; quickest {quickest * 1000:+.0f} ms",
    )


def _commands(folder: Path) -> dict[str, Sequence[Sequence[str]]]:
    """Return commands by what they are called; of several the first is measured.

    ``{turn}`` is the number of the round, ``{way}`` here or there.
    """
    file, back = folder / "file", folder / "back"
    file.write_bytes(os.urandom(100_000))
    new = "n{turn}{way}"
    drop = ("delete", "--force", new)
    return {
        "version": [("version",)],
        "list": [("list",)],
        "list --json": [("list", "--json")],
        "show": [("show", "vm1")],
        "host show": [("host", "show")],
        "fit": [("fit", "--memory", "64M")],
        "image list": [("image", "list")],
        "network list": [("network", "list")],
        "template list": [("template", "list")],
        "operations list": [("operations", "list")],
        "token list": [("token", "list")],
        "events": [("events",)],
        "logs": [("logs", "vm1")],
        "exec": [("exec", "vm1", "--", "echo", "hello")],
        "cp to a guest": [("cp", str(file), "vm1:/tmp/file")],
        "cp from a guest": [("cp", "vm1:/tmp/file", str(back))],
        "pause": [("pause", "vm2"), ("resume", "vm2")],
        "console": [("console", "--linger", "0", "vm1")],
        "stop": [("stop", "--force", "vm3"), ("start", "vm3")],
        "run": [("run", "micro", "--name", new, *_SHAPE), drop],
        "clone": [("clone", "base", "--name", new), drop],
    }


def _both_ways(
    hanok: Hanok, environ: Mapping[str, str], commands: Sequence[Sequence[str]], turn: int
) -> tuple[float, float]:
    """Return the seconds of the first of ``commands`` here and there."""
    ways = [("h", hanok.environ), ("t", environ)]
    found = {}
    for way, variables in ways if turn % 2 else reversed(ways):
        words = [[word.format(turn=turn, way=way) for word in one] for one in commands]
        started = time.perf_counter()
        _run(words[0], variables)
        found[way] = time.perf_counter() - started
        for rest in words[1:]:
            _run(rest, variables)
    return found["h"], found["t"]


def _run(words: Sequence[str], environ: Mapping[str, str]) -> None:
    subprocess.run(
        [str(Path(sys.executable).with_name("hanok")), *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,  # by pipes: waiting with a time limit alone looks every 50 ms only
        check=True,
        timeout=120,
    )


@contextmanager
def _other_user(hanok: Hanok) -> Iterator[dict[str, str]]:
    """Give the environment of someone whose commands go to that daemon over the network."""
    client = hanok.client()
    told = client.host()
    token = client.create_token({"name": "bench", **_ROLES})["token"]
    with tempfile.TemporaryDirectory(prefix="hk-bench-", dir="/tmp") as folder:
        fingerprint = told["fingerprint"] or ""
        RemoteBook(Path(folder)).put(
            Remote("bench", f"https://{told['listen']}", fingerprint, token)
        )
        own = {"HANOK_HOME": f"{folder}/none", "HANOK_CONFIG": folder, "HANOK_REMOTE": "bench"}
        yield {**hanok.environ, **own}
