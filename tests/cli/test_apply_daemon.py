"""``hanok apply`` with a real daemon on the fake hypervisor: faults, and kill -9 at every step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.cli.apply import digest_of
from hanok.cli.planfiles import read_plan
from tests.cli.conftest import Hanok
from tests.cli.test_apply import plan
from tests.daemon.harness import Daemon, new_daemon
from tests.fake_image import fake_images

# The command, killed as by kill -9 at its note number argv[1], "before" or "after" it is written.
KILLED = """
import os, signal, sys
from hanok.cli.applystate import State
from hanok.cli.main import main

left, when, note = int(sys.argv[1]), sys.argv[2], State.note

def noted(*arguments):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    note(*arguments)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

State.note = noted
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with fake_images() as images, new_daemon("fake", images) as started:
        yield started


@pytest.fixture
def hanok(daemon: Daemon) -> Iterator[Hanok]:
    """The command line at that daemon, without VMs and faults."""
    yield Hanok(daemon.home, {"HANOK_REMOTE": "local"})
    set_fault(daemon, None)
    daemon.empty()


def set_fault(daemon: Daemon, error: str | None) -> None:
    """Let starts of VMs fail with ``error``, or go well again."""
    methods = {} if error is None else {"start": {"error": error}}
    (daemon.home / "fake").mkdir(exist_ok=True)
    (daemon.home / "fake/faults.json").write_text(json.dumps({"methods": methods}))


def write_plan(folder: Path, *vms: tuple[str, str], memory: int = 128 * 2**20) -> tuple[str, ...]:
    """Write a plan of small VMs, and return the words that apply it to this machine."""
    found = plan(*vms)
    small = tuple(vm.model_copy(update={"memory": memory, "vcpus": 1}) for vm in found.vms)
    (folder / "plan.json").write_text(found.model_copy(update={"vms": small}).model_dump_json())
    where = [word for host in {host for _, host in vms} for word in ("--host", f"{host}=local")]
    return ("apply", str(folder), "--image", "micro", *where, "--json")


def times_made(daemon: Daemon, since: float) -> Counter[str]:
    """Count by VM how often the daemon was asked to make it, from ``since`` (epoch) on."""
    operations = daemon.client.operations()
    runs = [one for one in operations if one["kind"] == "run" and one["created"] >= since]
    return Counter(one["target"] for one in runs)


def test_a_failure_at_a_vm_is_told_and_the_next_run_goes_on(
    daemon: Daemon, hanok: Hanok, tmp_path: Path
) -> None:
    words = write_plan(tmp_path, ("a", "h1"), ("b", "h2"), ("c", "h2"))
    first = hanok(*words, "--only", "h1")
    assert json.loads(first.stdout)["made"] == ["a"], first.stderr
    set_fault(daemon, "no luck")
    failed = hanok(*words)
    assert failed.returncode == 1
    error = json.loads(failed.stderr)
    assert "b on local: " in error["detail"]
    assert "no luck" in error["detail"]
    assert "1 of 3 VMs are made (a), left: b, c; run it again" in error["hint"]
    set_fault(daemon, None)
    again = hanok(*words)
    assert json.loads(again.stdout)["made"] == ["b", "c"], again.stderr
    assert [vm["state"] for vm in daemon.client.vms()] == ["ready"] * 3


def test_what_cannot_fit_is_refused_before_anything_is_made(
    daemon: Daemon, hanok: Hanok, tmp_path: Path
) -> None:
    words = write_plan(tmp_path, ("a", "h1"), ("b", "h1"), memory=2**42)
    done = hanok(*words)
    assert done.returncode == 1
    error = json.loads(done.stderr)
    assert error["code"] == "not-admitted"
    assert "h1 (local) has no room for 2 VMs" in error["detail"]
    assert daemon.client.vms() == []


def test_a_vm_of_somebody_else_is_left_alone(daemon: Daemon, hanok: Hanok, tmp_path: Path) -> None:
    theirs = daemon.run("b")["uuid"]
    done = hanok(*write_plan(tmp_path, ("a", "h1"), ("b", "h1")))
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "conflict"
    assert [vm["uuid"] for vm in daemon.client.vms()] == [theirs]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("note", [1, 2, 3])
def test_after_kill_9_at_any_step_no_vm_is_made_twice(
    daemon: Daemon, hanok: Hanok, tmp_path: Path, note: int, when: str
) -> None:
    words = write_plan(tmp_path, ("a", "h1"), ("b", "h1"))
    known = daemon.client.operations()
    since = max((one["created"] for one in known), default=0.0) + 1e-6
    dead = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(note), when, *words],
        env=hanok.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    again = hanok(*words)
    assert again.returncode == 0, again.stderr
    assert times_made(daemon, since) == {"a": 1, "b": 1}
    steps = json.loads((tmp_path / "apply.json").read_text())["vms"]
    assert {name: one["step"] for name, one in steps.items()} == {"a": "done", "b": "done"}
    assert json.loads(hanok(*words).stdout)["made"] == []


def test_a_killed_run_whose_vm_is_still_being_made_is_waited_for(
    daemon: Daemon, hanok: Hanok, tmp_path: Path
) -> None:
    """The first run dies while the daemon is at the VM; the second waits for that same VM."""
    (daemon.home / "fake").mkdir(exist_ok=True)
    slow = {"methods": {"start": {"delay": 2.0, "times": 1}}}
    (daemon.home / "fake/faults.json").write_text(json.dumps(slow))
    words = write_plan(tmp_path, ("a", "h1"))
    since = max((one["created"] for one in daemon.client.operations()), default=0.0) + 1e-6
    dead = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, "2", "after", *words],
        env=hanok.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    again = hanok(*words)
    assert json.loads(again.stdout)["made"] == ["a"], again.stderr
    assert times_made(daemon, since) == {"a": 1}


def test_applied_vms_are_measured_and_held_against_the_forecast(
    daemon: Daemon, hanok: Hanok, tmp_path: Path
) -> None:
    """A fake CPU is always busy: each VM uses one core, and the two of a host two."""
    words = write_plan(tmp_path, ("a", "h1"), ("b", "h1"))
    assert hanok(*words).returncode == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    day = {"step": 900, "mean": [0.5] * 96, "high": [1.0] * 96, "room": 1.5, "capacity": 2}
    found["hosts"][0]["forecast"] = {**day, "risk": 0, "overload": 0}
    (tmp_path / "plan.json").write_text(json.dumps(found))
    compare = ("plan", "compare", str(tmp_path), "--for", "1s", "--every", "0.5s", "--json")
    other = hanok(*compare)
    assert other.returncode == 1
    assert "is of another plan" in other.stderr

    set_digest(tmp_path)
    done = hanok(*compare)
    assert done.returncode == 0, done.stderr
    (host,) = json.loads(done.stdout)["hosts"]
    assert (host["verdict"], host["measured_vms"], host["above_room"]) == ("above", 2, 1.0)
    assert host["measured"]["mean"] == pytest.approx(2.0, abs=0.2)
    names = sorted(path.name for path in (tmp_path / "measured").iterdir())
    assert names == ["a.usage.json", "b.usage.json"]
    daemon.done(daemon.client.delete("b", force=True))
    gone = json.loads(hanok(*compare).stdout)
    assert gone["hosts"][0]["verdict"] == "not measured"
    assert "b: 2 of 2 samples are missing" in gone["notes"]


def set_digest(folder: Path) -> None:
    """Let apply.json be of the plan beside it."""
    state = json.loads((folder / "apply.json").read_text())
    state["digest"] = digest_of(read_plan(folder))
    (folder / "apply.json").write_text(json.dumps(state))
