"""``hanok plan compare`` of one plan: sampling of VMs, usage files, what is printed and refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, cast

import pytest

from hanok.cli.planmeasure import Clock, Probe, parse_span, take
from hanok.client.client import Client
from hanok.errors import HanokError, InvalidInput, NotFound
from tests.cli.conftest import Hanok
from tests.consolidation.fleets import usage
from tests.consolidation.test_measured import forecast_plan


class Guest:
    """A VM whose CPU time is told reading by reading; None: its daemon does not answer."""

    def __init__(self, seconds: list[float | None], memory: str = "") -> None:
        self.seconds = iter(seconds)
        self.memory = memory

    def vm(self, name: str) -> dict[str, Any]:
        told = next(self.seconds)
        if told is None:
            raise NotFound(f"there is no VM {name}")
        return {"cpu_seconds": told}

    def execute(self, _name: str, _command: list[str], **_: Any) -> dict[str, Any]:
        if not self.memory:
            raise HanokError("no agent")
        return {"stdout": base64.b64encode(self.memory.encode()).decode()}


def sample(guest: Guest, count: int) -> Any:
    """Sample ``guest`` every 2 s on a clock that only sleeping moves."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    probe = Probe("A.1", "a-1", cast("Client", guest), 2, 2**30)
    clock = Clock(lambda: now[0], sleep)
    return take([probe], 2.0 * count, 2.0, lambda _message, _fraction: None, clock)[0]


def test_cpu_time_becomes_cores_and_gaps_stay_gaps() -> None:
    memory = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   400 kB\n"
    found = sample(Guest([10.0, 13.0, None, 1.0, 2.0, 0.5], memory), 5)
    assert found.samples["cpu"] == (1.5, None, None, 0.5, None)
    assert found.samples["memory"] == (600 * 1024, None, None, None, 600 * 1024)
    assert [one.text for one in found.findings] == ["3 of 5 samples are missing"]
    silent = sample(Guest([0.0, 1.0]), 1)
    assert silent.samples == {"cpu": (0.5,), "memory": (None,)}
    assert (silent.server, silent.interval, silent.findings) == ("A.1", 2.0, ())


def test_times_are_read() -> None:
    assert [parse_span(text, "--for") for text in ("5s", "2m", "1.5h", "7")] == [5, 120, 5400, 7]
    for text in ("", "0s", "-1", "2d", "x"):
        with pytest.raises(InvalidInput):
            parse_span(text, "--for")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text(forecast_plan().model_dump_json())
    measured = tmp_path / "measured"
    measured.mkdir()
    for name, cpu in (("a", 1.9), ("b", 0.5), ("other", 1.0)):
        text = usage(name, [cpu] * 10, [2e8] * 10, interval=60).model_dump_json()
        (measured / f"{name}.usage.json").write_text(text)
    return tmp_path


def test_usage_files_are_held_against_the_forecast(hanok: Hanok, folder: Path) -> None:
    words = ("plan", "compare", str(folder), "--usage", str(folder / "measured"))
    done = hanok(*words)
    assert done.returncode == 0, done.stderr
    assert "2.40 (1.00)" in done.stdout
    assert "h1 was above its forecast 100% of the time, by 0.40 cores at 2026-03-02 00:0" in (
        done.stdout
    )
    assert "more CPU" in done.stdout
    assert "Note: not of this plan: other" in done.stdout
    found = json.loads(hanok(*words, "--json").stdout)
    assert found["hosts"][0]["verdict"] == "above"
    assert found["hosts"][0]["difference"]["mean"] == pytest.approx(1.4)
    assert [(vm["cpu"], vm["ram"]) for vm in found["vms"]] == [("more", "less"), ("less", "less")]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--for", "5x"), 2, "no time"),
        (("--for", "1s", "--every", "5s"), 2, "--every"),
        (("--for", "1s", "--every", "1s"), 1, "run hanok apply first"),
        (("--usage", "none"), 1, "there is no folder none"),
        (("--usage", "."), 1, "nothing measured is in"),
        (("other", "--for", "1s"), 2, "for one plan"),
        ((), 2, "two plans"),
    ],
)
def test_what_is_missing_is_told(
    hanok: Hanok, folder: Path, words: tuple[str, ...], status: int, told: str
) -> None:
    done = hanok("plan", "compare", "plan.json", *words, cwd=folder)
    assert done.returncode == status
    assert told in done.stderr
