"""What goes wrong in a real Dom0: seen, said in words that help, and cleaned up after."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from hanok.hypervisors.xen.overhead import LEAST_IN_DOM0
from hanok.hypervisors.xen.toolstack import is_dom0
from hanok.units import MIB
from tests.daemon.harness import wait_until
from tests.e2e.conftest import Cli, use_console
from tests.e2e.dom0 import device_model, traces

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not is_dom0(), reason="Xen is driven from its Dom0"),
]
# What starts what Dom0 serves its domains with, where it does not run (the image lab-xen).
_DAEMONS = "/usr/lib/hanok/xen-daemons"
_CONSOLED = Path("/run/xenconsoled.pid")
_SHAPE = ("--memory", "128M", "--disk", "256M", "--cold")


def run(xen: Cli, name: str, mode: str = "para") -> None:
    xen.ok("run", "micro", "--name", name, "--mode", mode, *_SHAPE)


def wait_failed(xen: Cli, name: str) -> str:
    """Wait until the VM has failed and return why, as a user reads it."""
    wait_until(lambda: xen.daemon.client.vm(name)["state"] == "failed", 30, f"{name} has failed")
    return str(xen.json("show", name)["reason"])


def logs_what_it_says(xen: Cli, name: str) -> bool:
    xen.ok("exec", name, "--", "sh", "-c", "echo and so on > /dev/console")
    return "and so on" in xen.ok("logs", name)


@pytest.mark.parametrize("mode", ["para", "hybrid"])
def test_a_panic_is_told_and_the_guest_starts_again(xen: Cli, mode: str) -> None:
    before = traces()
    run(xen, "frail", mode)
    xen("exec", "frail", "--", "sh", "-c", "echo c > /proc/sysrq-trigger", limit=60)
    assert "kernel crashed" in wait_failed(xen, "frail")
    assert "sysrq" in xen.ok("logs", "frail")
    assert [vm["state"] for vm in xen.json("list")] == ["failed"]
    xen.ok("restart", "frail")
    assert xen.ok("exec", "frail", "--", "hostname").strip() == "frail"
    xen.ok("delete", "--force", "frail")
    assert traces() == before


def test_a_dead_device_model_is_a_crash_with_a_reason(xen: Cli) -> None:
    before = traces()
    run(xen, "headless")
    os.kill(device_model(xen.json("show", "headless")["uuid"]).pid, signal.SIGKILL)
    assert "device model ended by itself" in wait_failed(xen, "headless")
    xen.ok("restart", "headless")
    assert xen.ok("exec", "headless", "--", "hostname").strip() == "headless"
    xen.ok("delete", "--force", "headless")
    assert traces() == before


def test_without_xenconsoled_domains_go_on_and_none_starts(xen: Cli) -> None:
    run(xen, "quiet")
    os.kill(int(_CONSOLED.read_text()), signal.SIGKILL)
    try:
        assert xen.ok("exec", "quiet", "--", "hostname").strip() == "quiet"
        assert b"xenconsoled does not serve it" in xen("console", "quiet", input=b"").stderr
        before = traces()
        done = xen("run", "micro", "--name", "late", "--mode", "para", *_SHAPE)
        assert done.returncode == 1
        assert b"xenconsoled" in done.stderr
        assert xen("show", "late").returncode == 1
        assert traces() == before
    finally:
        subprocess.run([_DAEMONS], check=True)
    wait_until(lambda: logs_what_it_says(xen, "quiet"), 60, "its log goes on")
    use_console("quiet", xen.environ())
    run(xen, "late")
    assert xen.ok("exec", "late", "--", "hostname").strip() == "late"
    xen.ok("delete", "--force", "quiet", "late")


def test_more_memory_than_is_left_is_refused_with_what_is(xen: Cli) -> None:
    before = traces()
    done = xen("run", "micro", "--name", "huge", "--memory", "64G", "--disk", "256M")
    assert done.returncode in (1, 2)
    assert b"memory" in done.stderr
    assert traces() == before
    assert xen("show", "huge").returncode == 1


def test_a_dom0_short_of_memory_refuses_and_goes_on(xen: Cli) -> None:
    before = traces()
    run(xen, "stays")
    hog = bytearray()
    while psutil.virtual_memory().available > LEAST_IN_DOM0 - 8 * MIB:
        hog += os.urandom(4 * MIB)
    done = xen("run", "micro", "--name", "starved", *_SHAPE)
    del hog
    assert done.returncode == 1
    assert b"Dom0" in done.stderr
    assert b"memory" in done.stderr
    assert xen.ok("exec", "stays", "--", "hostname").strip() == "stays"
    for name in ("stays", "starved"):
        if xen("show", name).returncode == 0:
            xen.ok("delete", "--force", name)
    assert traces() == before
    run(xen, "fed")
    xen.ok("delete", "--force", "fed")


def test_a_full_run_refuses_and_goes_on(xen: Cli) -> None:
    before = traces()
    filler = Path("/run/full")
    with filler.open("wb") as file:
        free = shutil.disk_usage("/run").free
        os.posix_fallocate(file.fileno(), 0, free)
    try:
        done = xen("run", "micro", "--name", "squeezed", *_SHAPE)
    finally:
        filler.unlink()
    if done.returncode == 0:  # nothing of a start needs room there: then it has to work
        assert xen.ok("exec", "squeezed", "--", "hostname").strip() == "squeezed"
    else:
        assert b"No space left" in done.stderr
    if xen("show", "squeezed").returncode == 0:
        xen.ok("delete", "--force", "squeezed")
    assert traces() == before
    run(xen, "roomy")
    xen.ok("delete", "--force", "roomy")
