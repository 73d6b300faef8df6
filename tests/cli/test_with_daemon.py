"""The command line and the real daemon, on the fake hypervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.client.daemon import DaemonFinder
from hanok.errors import HanokError
from hanok.proc import is_alive
from tests.cli.conftest import LIMIT, Hanok
from tests.cli.test_apply import plan
from tests.fake_image import fake_images

SHOP = """\
name: shop
vms:
  db: {image: micro, memory: 128M, disk: 1G}
  web:
    image: micro
    memory: 128M
    disk: 1G
    depends_on: [db]
    publish:
      - 18090:80
"""


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    with fake_images() as folder:
        yield folder


@pytest.fixture
def real(hanok: Hanok, images: Path) -> Iterator[Hanok]:
    """The command line on an empty data directory; whatever daemon it started is ended."""
    hanok.environ = {
        "HANOK_HYPERVISOR": "fake",
        "HANOK_IMAGES": str(images),
        "HANOK_IDLE_EXIT": "300",
    }
    hanok.home.chmod(0o711)
    yield hanok
    for vm in json.loads(hanok("list", "--json").stdout):
        hanok("delete", "--force", vm["name"])
    end_daemon(hanok)


def daemon_pid(hanok: Hanok) -> int | None:
    """Return the pid of the daemon that answers, if one does."""
    found = json.loads(hanok("version", "--json").stdout)["daemon"]
    return None if found is None else int(found["pid"])


def end_daemon(hanok: Hanok, number: int = signal.SIGTERM) -> None:
    """End the daemon and wait until it is gone."""
    pid = daemon_pid(hanok)
    if pid is None:
        return
    os.kill(pid, number)
    deadline = time.monotonic() + LIMIT
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(hanok: Hanok, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = hanok(*words)
    assert done.returncode == 0, done.stderr
    return done


def test_two_commands_at_once_start_one_daemon(real: Hanok) -> None:
    processes = [real.popen("list", "--json") for _ in range(3)]
    for process in processes:
        out, said = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (0, b"[]\n"), said
    pid = daemon_pid(real)
    assert pid is not None
    assert os.getsid(pid) == pid
    assert "another hanokd" not in (real.home / "hanokd.log").read_text()


def test_the_life_of_a_vm(real: Hanok) -> None:
    shape = ("--memory", "128M", "--disk", "1G", "--publish", "18091:80")
    made = json.loads(run(real, "run", "micro", "--name", "web", *shape, "--json").stdout)
    [listed] = json.loads(run(real, "list", "--json").stdout)
    assert {key: made[key] for key in listed} == listed
    assert {
        key: listed[key] for key in ("name", "state", "image", "hypervisor", "cpus", "memory")
    } == {
        "name": "web",
        "state": "ready",
        "image": "micro",
        "hypervisor": "fake",
        "cpus": 1,
        "memory": 128 * 1024 * 1024,
    }
    assert listed["uuid"]
    assert listed["addresses"]
    assert listed["mode"] in ("full", "para")
    assert listed["ports"] == [{"address": "127.0.0.1", "host_port": 18091, "guest_port": 80}]
    for words, state in (
        (("pause", "web"), "paused"),
        (("resume", "web"), "ready"),
        (("restart", "web"), "ready"),
        (("stop", "web", "--timeout", "5"), "stopped"),
        (("start", "web"), "ready"),
    ):
        [done] = json.loads(run(real, *words, "--json").stdout)
        assert done["state"] == "done"
        assert json.loads(run(real, "show", "web", "--json").stdout)["state"] == state
    refused = real("delete", "web")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    run(real, "delete", "--force", "web")
    assert json.loads(run(real, "list", "--json").stdout) == []
    names = [json.loads(line)["name"] for line in run(real, "events", "--json").stdout.splitlines()]
    assert {"created", "ready", "paused", "stopped", "deleted"} <= set(names)


def freeze(hanok: Hanok, source: str, name: str) -> subprocess.CompletedProcess[str]:
    """Make a template; skips where the fake guest has no helper to give clones an identity."""
    done = hanok("template", "create", name, "--from", source)
    if "has no helper that gives clones their identity" in done.stderr:
        pytest.skip("the guests of the fake hypervisor take no identity")
    assert done.returncode == 0, done.stderr
    return done


def test_a_template_and_its_clones(real: Hanok) -> None:
    run(real, "run", "micro", "--name", "web", "--memory", "128M", "--disk", "1G")
    made = freeze(real, "web", "base")
    assert "hanok clone base" in made.stdout
    done = run(real, "clone", "base", "--count", "2", "--name", "web-{n}", "--first", "7")
    assert re.search(r"^2 clones of base are ready, web-7, web-8, [0-9.]+ s$", done.stdout, re.M)
    detail = json.loads(run(real, "show", "web-8", "--json").stdout)
    assert (detail["template"], detail["clone"], detail["state"]) == ("base", "instant", "ready")
    assert "base (instant)" in run(real, "show", "web-8").stdout
    single = run(real, "clone", "base", "--name", "alone", "--full", "--json")
    assert json.loads(single.stdout) == {"names": ["alone"]}
    shown = json.loads(run(real, "template", "show", "base", "--json").stdout)
    assert shown["clones"] == ["web-7", "web-8"]
    refused = real("template", "delete", "base")
    assert refused.returncode == 1
    assert "web-7, web-8" in refused.stderr
    fit = json.loads(run(real, "fit", "--template", "base", "--json").stdout)
    assert fit["cost_most"] > 128 * 1024 * 1024
    assert run(real, "host", "show").stdout.count("policy") == 1
    run(real, "delete", "--force", "web-7", "web-8")
    run(real, "template", "delete", "base")
    names = [one["name"] for one in json.loads(run(real, "template", "list", "--json").stdout)]
    assert "base" not in names


def test_bad_clones_change_nothing(real: Hanok) -> None:
    missing = real("clone", "gone", "--name", "x", "--json")
    assert (missing.returncode, json.loads(missing.stderr)["code"]) == (1, "not-found")
    run(real, "run", "micro", "--name", "web", "--memory", "128M", "--disk", "1G", "--cold")
    freeze(real, "web", "base")
    unnumbered = real("clone", "base", "--name", "x", "--count", "2")
    assert unnumbered.returncode == 2
    assert "2 clones need {n} in the name" in unnumbered.stderr
    for words, field in (
        (("--name", "X"), "name"),
        (("--name", "x", "--count", "0"), "count"),
        (("--name", "x", "--publish", "80"), "publish.0"),
    ):
        done = real("clone", "base", *words, "--json")
        assert done.returncode == 2, done.stderr
        assert json.loads(done.stderr)["field"] == field
    assert real("template", "create", "base", "--from", "web").returncode == 1
    assert real("template", "create", "other", "--from", "gone").returncode == 1
    assert [vm["name"] for vm in json.loads(run(real, "list", "--json").stdout)] == ["web"]


def test_bad_input_changes_nothing_and_names_the_field(real: Hanok) -> None:
    for option, field in (
        (("--memory", "lots"), "memory"),
        (("--publish", "80"), "publish.0"),
        (("--mode", "fast"), "mode"),
        (("--mode", "hybrid"), "mode"),
        (("--cpus", "0"), "cpus"),
    ):
        done = real("run", "micro", "--name", "bad", *option, "--json")
        assert done.returncode == 2
        problem = json.loads(done.stderr)
        assert problem["field"] == field
        assert problem["expected"]
    missing = real("show", "bad", "--json")
    assert (missing.returncode, json.loads(missing.stderr)["code"]) == (1, "not-found")
    assert json.loads(run(real, "list", "--json").stdout) == []
    assert json.loads(run(real, "operations", "list", "--json").stdout) == []


def test_a_stack_goes_up_twice_and_down(real: Hanok, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(SHOP)
    first = json.loads(run(real, "up", str(file), "--json").stdout)
    assert {vm["name"]: vm["state"] for vm in first["vms"]} == {"web": "ready", "db": "ready"}
    again = run(real, "up", str(file))
    assert "nothing to change" in again.stdout
    assert "curl http://127.0.0.1:18090/" in again.stdout
    file.write_text(SHOP.replace("128M", "lots", 1))
    bad = real("up", str(file))
    assert bad.returncode == 2
    assert bad.stderr.startswith(f"error: {file}:3: 'lots' is not a size")
    file.write_text(SHOP.replace("publish:", "publsh:"))
    unknown = real("up", str(file))
    assert unknown.returncode == 2
    assert unknown.stderr.startswith(f"error: {file}:9: ")
    assert "publish" in unknown.stderr
    file.write_text(SHOP)
    run(real, "down", str(file))
    assert json.loads(run(real, "list", "--json").stdout) == []
    assert json.loads(run(real, "network", "list", "--json").stdout) == []


def test_a_killed_daemon_is_started_again_with_its_vms(real: Hanok) -> None:
    run(real, "run", "micro", "--name", "web", "--memory", "128M", "--disk", "1G")
    before = daemon_pid(real)
    end_daemon(real, signal.SIGKILL)
    [vm] = json.loads(run(real, "list", "--json").stdout)
    assert (vm["name"], vm["state"]) == ("web", "ready")
    assert daemon_pid(real) not in (None, before)


def test_console_logs_and_what_has_no_ssh(real: Hanok) -> None:
    run(real, "run", "micro", "--name", "web", "--memory", "128M", "--disk", "1G")
    assert "fake hypervisor" in run(real, "logs", "web").stdout
    console = real("console", "--linger", "0.5", "web", stdin=b"\n")
    assert console.returncode == 0, console.stderr
    assert console.stdout
    ssh = real("ssh", "web")
    assert ssh.returncode == 2
    assert "hanok exec" in ssh.stderr
    assert real("console", "gone").returncode == 1
    assert real("proxy", "gone", "22").returncode == 1


def test_serve_runs_in_the_foreground_until_ctrl_c(real: Hanok) -> None:
    process = real.popen("serve")
    deadline = time.monotonic() + LIMIT
    finder = DaemonFinder(real.home, start=False)
    while True:
        try:
            finder.connect().close()
            break
        except HanokError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert daemon_pid(real) == process.pid
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT)
    assert daemon_pid(real) is None


def test_a_daemon_that_cannot_start_says_why(real: Hanok) -> None:
    real.environ["HANOK_HYPERVISOR"] = "nonsense"
    done = real("list")
    assert done.returncode == 1
    assert "ended with status 2" in done.stderr
    assert "nonsense" in done.stderr
    real.environ["HANOK_HYPERVISOR"] = "fake"


def test_host_and_fit(real: Hanok) -> None:
    host = json.loads(run(real, "host", "show", "--json").stdout)
    assert host["cpus"] == os.cpu_count()
    fit = json.loads(run(real, "fit", "--memory", "256M", "--json").stdout)
    assert fit["count"] >= 0
    assert fit["limit"] in fit["by_resource"]
    assert real("fit", "--memory", "lots").returncode == 2
    probed = real("host", "probe")
    assert (probed.returncode, probed.stdout) == (2, "")
    assert "fake has nothing to measure" in probed.stderr


def test_the_vms_of_a_plan_are_made_and_a_second_run_makes_none(
    real: Hanok, tmp_path: Path
) -> None:
    small = plan(("Db.1", "h1"), ("web", "h1"))
    vms = tuple(vm.model_copy(update={"memory": 128 * 2**20, "vcpus": 1}) for vm in small.vms)
    (tmp_path / "plan.json").write_text(small.model_copy(update={"vms": vms}).model_dump_json())
    words = ("apply", str(tmp_path), "--image", "micro", "--host", "h1=local", "--json")
    first = real(*words)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["made"] == ["db-1", "web"]
    assert json.loads(real(*words).stdout)["made"] == []
    found = {vm["name"]: vm for vm in json.loads(real("list", "--json").stdout)}
    assert {name: vm["memory"] for name, vm in found.items()} == {
        "db-1": 128 * 2**20,
        "web": 128 * 2**20,
    }
