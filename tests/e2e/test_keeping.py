"""Real guests that are kept running: killed, powered off, unhealthy and hung."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from hanok.proc import is_alive
from tests.daemon.harness import Daemon, wait_until
from tests.e2e.conftest import Cli
from tests.machine import patient

pytestmark = pytest.mark.vm

# Seconds: how often a watchdog is to be fed, and for how long an agent may be silent. A guest that
# gets no CPU hangs too.
_FEED = int(patient(8))
_SILENT = f"{patient(3):g}"
_SHAPE = ("--memory", "128M", "--disk", "1G", "--network", "default")


def run(hanok: Cli, name: str, *options: str) -> None:
    hanok.ok("run", "micro", "--name", name, *_SHAPE, *options)


def pid_of(hanok: Cli, daemon: Daemon, name: str) -> int:
    folder = daemon.home / "vms" / hanok.json("show", name)["uuid"] / "m"
    return int((folder / "qemu.pid").read_text())


def restarted(daemon: Daemon, name: str, times: int) -> Any:
    """Wait until a VM is ready after that many restarts, and return it."""

    def holds() -> bool:
        vm = daemon.client.vm(name)
        return vm["state"] == "ready" and vm["restarts"]["total"] == times

    wait_until(holds, 120, f"{name} is ready after {times} restarts")
    return daemon.client.vm(name)


def health(daemon: Daemon, name: str) -> str | None:
    """Return what the health check of a VM says."""
    seen = daemon.client.vm(name).get("health_seen")
    return None if seen is None else seen["state"]


def named(daemon: Daemon, name: str, event: str) -> list[str]:
    """Return the messages of a VM's events of one name."""
    found = daemon.client.events(follow=False)
    return [seen["message"] for seen in found if (seen["target"], seen["name"]) == (name, event)]


def test_kept_on_failure(hanok: Cli, daemon: Daemon) -> None:
    """QEMU is killed with and without a daemon, and the daemon as it waits; then a power-off."""
    run(hanok, "kept", "--restart", "on-failure", "--restart-delay", "0.5")
    before = hanok.json("show", "kept")["addresses"]

    os.kill(pid_of(hanok, daemon, "kept"), signal.SIGKILL)
    vm = restarted(daemon, "kept", 1)
    assert vm["addresses"] == before
    assert "ended by itself" in vm["restarts"]["reason"]
    assert hanok.ok("exec", "kept", "--", "hostname") == "kept\n"

    pid = pid_of(hanok, daemon, "kept")
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    vm = restarted(daemon, "kept", 2)
    assert "killed while no daemon ran" in vm["restarts"]["reason"]

    pid = pid_of(hanok, daemon, "kept")
    daemon.stop()
    daemon.start(failpoint="restart.counted")
    os.kill(pid, signal.SIGKILL)
    daemon.wait_died()
    daemon.start()
    restarted(daemon, "kept", 3)
    shown = hanok.ok("show", "kept")
    assert "on-failure; 3 so far" in shown

    hanok("exec", "kept", "--", "poweroff")
    wait_until(lambda: daemon.client.vm("kept")["state"] == "stopped", 60, "kept is stopped")
    assert len(named(daemon, "kept", "restarting")) == 3
    hanok.ok("delete", "kept")


def test_a_power_off_while_no_daemon_runs_is_no_failure(hanok: Cli, daemon: Daemon) -> None:
    run(hanok, "off", "--restart", "on-failure")
    pid = pid_of(hanok, daemon, "off")
    hanok.ok("exec", "off", "--", "sh", "-c", "(sleep 2; poweroff) >/dev/null 2>&1 &")
    daemon.kill()
    wait_until(lambda: not is_alive(pid), 60, "its QEMU has ended")
    daemon.start()
    vm = daemon.client.vm("off")
    assert (vm["state"], vm["restarts"]["total"]) == ("stopped", 0)
    hanok.ok("delete", "off")


def test_kept_always_and_by_a_health_command(hanok: Cli, daemon: Daemon) -> None:
    run(
        hanok,
        "always",
        *("--restart", "always:3", "--restart-delay", "0.5"),
        *("--health-command", "test ! -e /tmp/ill", "--health-interval", "1"),
        *("--health-retries", "2", "--health-grace", "0", "--on-unhealthy", "restart"),
    )
    hanok("exec", "always", "--", "poweroff")
    vm = restarted(daemon, "always", 1)
    assert vm["restarts"]["reason"] == "its guest powered itself off"
    wait_until(lambda: health(daemon, "always") == "healthy", 60, "it is healthy")
    hanok.ok("exec", "always", "--", "touch", "/tmp/ill")
    vm = restarted(daemon, "always", 2)
    assert "unhealthy: command" in vm["restarts"]["reason"]
    assert "exit status 1" in named(daemon, "always", "unhealthy")[0]

    hanok.ok("stop", "always")  # while it is looked after: that is the end of it
    assert hanok.json("show", "always")["state"] == "stopped"
    daemon.stop()
    daemon.start()
    assert hanok.json("show", "always")["state"] == "stopped"
    hanok.ok("delete", "always")


def fed(hanok: Cli, daemon: Daemon, name: str) -> None:
    """See that a guest feeds its watchdog: it goes on for longer than it would otherwise."""
    before = daemon.client.vm(name)["started"]
    assert hanok.ok("exec", name, "--", "pidof", "watchdog").strip()
    hanok.ok("exec", name, "--", "sleep", str(_FEED * 3 // 2))
    assert daemon.client.vm(name)["started"] == before


_HANG = "(sleep 1; kill -9 $(pidof watchdog)) >/dev/null 2>&1 &"


def test_a_guest_that_hangs_is_ended_and_started_again(hanok: Cli, daemon: Daemon) -> None:
    """First its agent falls silent, which the health check sees; then it feeds no watchdog."""
    run(
        hanok,
        "stuck",
        *("--restart", "on-failure", "--restart-delay", "0.5", "--watchdog", f"stop:{_FEED}"),
        *("--health", "agent", "--health-interval", "1", "--health-timeout", _SILENT),
        *("--health-retries", "2", "--health-grace", "0", "--on-unhealthy", "restart"),
    )
    fed(hanok, daemon, "stuck")
    hanok.ok(
        "exec", "stuck", "--", "sh", "-c", "(sleep 1; killall -STOP qemu-ga) >/dev/null 2>&1 &"
    )
    vm = restarted(daemon, "stuck", 1)
    assert "unhealthy" in vm["restarts"]["reason"]
    hanok.ok("exec", "stuck", "--", "sh", "-c", _HANG)
    vm = restarted(daemon, "stuck", 2)
    assert "its watchdog expired" in vm["restarts"]["reason"]
    hanok.ok("delete", "stuck", "--force")


def test_a_guest_that_hangs_is_reset_in_mode_full(hanok: Cli, daemon: Daemon) -> None:
    run(hanok, "old", "--watchdog", f"reset:{_FEED}", "--mode", "full")
    fed(hanok, daemon, "old")
    before = daemon.client.vm("old")["started"] or 0.0
    hanok.ok("exec", "old", "--", "sh", "-c", _HANG)
    wait_until(lambda: bool(named(daemon, "old", "watchdog")), 60, "the reset is told")
    wait_until(lambda: daemon.client.vm("old")["state"] == "ready", 120, "it is ready again")
    assert (daemon.client.vm("old")["started"] or 0.0) > before
    hanok.ok("delete", "old", "--force")


def test_each_clone_has_a_watchdog_of_its_own(hanok: Cli, daemon: Daemon) -> None:
    """Taken over in the middle of a count, it goes on; and one that expires ends no other."""
    restart = ("--restart", "on-failure", "--restart-delay", "0.5")
    run(hanok, "dog", *restart, "--watchdog", f"stop:{_FEED}")
    hanok.ok("template", "create", "dogs", "--from", "dog")
    hanok.ok("clone", "dogs", "--count", "2", "--name", "pup-{n}")
    others = {name: daemon.client.vm(name)["started"] for name in ("dog", "pup-2")}
    fed(hanok, daemon, "pup-1")
    hanok.ok("exec", "pup-1", "--", "sh", "-c", _HANG)
    vm = restarted(daemon, "pup-1", 1)
    assert "its watchdog expired" in vm["restarts"]["reason"]
    fed(hanok, daemon, "pup-1")  # the one that its cold start gave it
    assert {name: daemon.client.vm(name)["started"] for name in others} == others
    hanok.ok("delete", "dog", "pup-1", "pup-2", "--force")
    hanok.ok("template", "delete", "dogs")


def test_debians_systemd_feeds_the_watchdog(hanok: Cli, daemon: Daemon) -> None:
    """It is process 1 that feeds it; frozen, it hangs, while all else goes on."""
    shape = ("--memory", "384M", "--network", "default", "--watchdog", f"reset:{_FEED}")
    hanok.ok("run", "debian:12", "--name", "deb", "--cold", *shape, limit=900)
    # One that is closed meanwhile is nothing to it.
    opened = hanok.ok("exec", "deb", "--", "sh", "-c", "readlink /proc/1/fd/* || true")
    assert "/dev/watchdog0" in opened.split()
    before = daemon.client.vm("deb")["started"] or 0.0
    hanok.ok("exec", "deb", "--", "sleep", str(_FEED * 3 // 2))
    assert daemon.client.vm("deb")["started"] == before
    freeze = "echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze"
    hanok.ok("exec", "deb", "--", "sh", "-c", freeze)
    wait_until(lambda: bool(named(daemon, "deb", "watchdog")), 60, "the reset is told")
    wait_until(lambda: daemon.client.vm("deb")["state"] == "ready", 240, "it is ready again")
    assert (daemon.client.vm("deb")["started"] or 0.0) > before
    hanok.ok("delete", "deb", "--force")
