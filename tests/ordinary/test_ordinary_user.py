"""Issue A without root: the wheel outside the checkout, and the life of VMs of an ordinary user."""

from __future__ import annotations

import os
import signal
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hanok.proc import find_owned
from tests.daemon.harness import wait_until
from tests.e2e.web import SERVE, fetch
from tests.ordinary.account import UID, Ordinary
from tests.ordinary.conftest import ROOT, daemon_of

pytestmark = pytest.mark.vm

MakeUser = Callable[..., Ordinary]


def kill_daemon(user: Ordinary) -> None:
    pid = daemon_of(user)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: daemon_of(user) is None, 10, "the daemon is dead")


def qemus(user: Ordinary) -> list[int]:
    return [process.pid for process in find_owned(user.data, "vm")]


def run_web(user: Ordinary, name: str, port: int) -> None:
    """Run a guest that serves its name, and is ready once it does."""
    script = user.home / "serve"
    script.write_text(SERVE)
    script.chmod(0o644)
    user.ok(
        *("run", "micro", "--name", name, "--memory", "128M", "--disk", "1G"),
        *("--publish", f"{port}:80", "--user-data", str(script), "--ready-url", f"http://{name}/"),
    )


# --- the wheel --------------------------------------------------------------------------------


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "src/hanok", "packaging"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the package is not known")
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename: info for info in archive.infolist()}
    for name in listed.stdout.decode().split():
        path = ROOT / name
        if not path.exists():
            continue
        inside = name.removeprefix("src/")
        if name.startswith("packaging/"):
            inside = f"hanok-0.1.0.data/data/share/hanok/{path.name}"
        assert inside in held, f"{name} is not in the wheel"
        is_program = bool(path.stat().st_mode & 0o100)
        assert bool(held[inside].external_attr >> 16 & 0o100) == is_program, name


def test_the_installed_wheel_keeps_programs_executable(venv: Path) -> None:
    (launcher,) = venv.glob("lib/python*/site-packages/hanok/hypervisors/xen/files/device-model")
    assert os.access(launcher, os.X_OK)
    assert (venv / "share/hanok/hanokd-user.service").is_file()


def test_the_command_says_its_version_outside_the_checkout(make_user: MakeUser) -> None:
    user = make_user(tun="none")
    assert user.ok("version").startswith("hanok 0.1.0")
    assert not user.data.exists(), "asking for the version makes no data directory"


# --- with namespaces --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_tun(make_user: MakeUser) -> Ordinary:
    """A user who may open /dev/net/tun, as on an ordinary Debian, with two VMs."""
    user = make_user(tun="0666")
    run_web(user, "web", 18391)
    user.ok("run", "micro", "--name", "peer", "--memory", "128M", "--disk", "1G")
    return user


def test_networks_are_in_namespaces_where_tun_is_open(open_tun: Ordinary) -> None:
    host = open_tun.json("host", "show")
    assert host["networking"] == {"kind": "namespace", "reason": "", "limits": []}
    assert host["home"] == str(open_tun.data)
    assert open_tun.data.stat().st_mode & 0o077 == 0


def test_vms_reach_each_other_by_name(open_tun: Ordinary) -> None:
    assert open_tun.ok("exec", "peer", "--", "wget", "-qO-", "http://web/").strip() == "web"
    assert fetch(18391) == "web"


def test_qemu_is_the_users_own_and_sandboxed(open_tun: Ordinary) -> None:
    assert len(qemus(open_tun)) == 2
    for pid in qemus(open_tun):
        facts = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert facts["Uid"].split() == [str(UID)] * 4
        assert int(facts["CapEff"], 16) == 0
        assert facts["NoNewPrivs"].strip() == "1"
        assert facts["Seccomp"].strip() == "2"


def test_the_whole_life_of_a_vm(open_tun: Ordinary) -> None:
    assert open_tun.ok("exec", "peer", "--", "cat", input=b"typed\n") == "typed\n"
    (open_tun.home / "there").write_text("copied\n")
    (open_tun.home / "there").chmod(0o644)
    open_tun.ok("cp", str(open_tun.home / "there"), "peer:/root/there")
    assert open_tun.ok("exec", "peer", "--", "cat", "/root/there") == "copied\n"
    open_tun.ok("pause", "peer")
    assert open_tun.json("show", "peer")["state"] == "paused"
    open_tun.ok("resume", "peer")
    assert "peer" in open_tun.ok("logs", "peer")
    open_tun.ok("stop", "peer")
    assert len(qemus(open_tun)) == 1
    open_tun.ok("start", "peer")
    assert open_tun.ok("exec", "peer", "--", "cat", "/root/there") == "copied\n"


def test_vms_outlive_the_daemon(open_tun: Ordinary) -> None:
    before = sorted(qemus(open_tun))
    kill_daemon(open_tun)
    assert {vm["state"] for vm in open_tun.json("list")} == {"ready"}
    assert sorted(qemus(open_tun)) == before
    assert fetch(18391) == "web"
    assert open_tun.ok("exec", "peer", "--", "wget", "-qO-", "http://web/").strip() == "web"


# --- without them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_tun(make_user: MakeUser) -> Ordinary:
    """A user to whom /dev/net/tun is closed, with a VM that was ready once its page came."""
    user = make_user(tun="0600")
    run_web(user, "alone", 18392)
    return user


def test_user_networking_says_why_and_what_it_lacks(closed_tun: Ordinary) -> None:
    facts = closed_tun.json("host", "show")["networking"]
    assert facts["kind"] == "user"
    assert "/dev/net/tun cannot be opened (Permission denied)" in facts["reason"]
    assert "VMs do not reach one another" in facts["limits"][0]
    assert "VMs do not reach one another" in closed_tun.ok("show", "alone")
    (network,) = closed_tun.json("network", "list")
    assert "user networking" in network["reason"]


def test_a_published_port_leads_to_the_guest_without_tun(closed_tun: Ordinary) -> None:
    assert fetch(18392) == "alone"
    shown = closed_tun.json("show", "alone")
    inside = closed_tun.ok("exec", "alone", "--", "ip", "-4", "addr", "show", "eth0")
    assert shown["networks"][0]["address"] in inside


def test_a_port_that_is_taken_is_named_without_tun(closed_tun: Ordinary) -> None:
    done = closed_tun("run", "micro", "--name", "second", "--publish", "18392:80")
    assert done.returncode == 1
    assert b"18392" in done.stderr
    assert [vm["name"] for vm in closed_tun.json("list")] == ["alone"]


def test_a_closed_port_is_not_ready_without_tun(closed_tun: Ordinary) -> None:
    done = closed_tun(
        *("run", "micro", "--name", "deaf", "--memory", "128M", "--disk", "1G"),
        *("--ready", "tcp:81", "--ready-timeout", "15"),
    )
    assert done.returncode == 1
    assert b"81" in done.stderr
    assert closed_tun.json("show", "deaf")["state"] == "failed"
    closed_tun.ok("delete", "--force", "deaf")


def test_vms_without_tun_outlive_the_daemon(closed_tun: Ordinary) -> None:
    before = qemus(closed_tun)
    kill_daemon(closed_tun)
    assert fetch(18392) == "alone", "published ports need no daemon"
    assert [vm["state"] for vm in closed_tun.json("list")] == ["ready"]
    assert qemus(closed_tun) == before


def test_a_template_is_refused_without_tun(closed_tun: Ordinary) -> None:
    done = closed_tun("template", "create", "base", "--from", "alone")
    assert done.returncode != 0
    assert b"network" in done.stderr
    assert closed_tun.json("template", "list") == []


# --- building ---------------------------------------------------------------------------------


def test_a_build_without_subordinate_ids_says_what_is_missing(make_user: MakeUser) -> None:
    user = make_user(tun="none", subordinate=False, HANOK_IMAGES="")
    done = user("image", "build", "micro")
    assert done.returncode == 1
    assert b"/etc/subuid" in done.stderr
    assert b"usermod --add-subuids" in done.stderr


def test_micro_is_built_by_an_ordinary_user(make_user: MakeUser) -> None:
    if not os.environ.get("HANOK_TEST_LAB"):
        pytest.skip("takes more than a minute: HANOK_TEST_LAB=1 runs it")
    user = make_user(tun="none", HANOK_IMAGES="")
    user.ok("image", "build", "micro")
    user.ok("run", "micro", "--name", "own", "--memory", "128M", "--disk", "1G")
    assert user.ok("exec", "own", "--", "hostname").strip() == "own"
