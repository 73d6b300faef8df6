"""The daemon is killed at every step of a restart; the next one goes on, and counts it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from hanok.errors import HanokError
from hanok.services.failpoints import HEAL_STEPS, RESTART_STEPS
from tests.daemon.harness import Daemon, wait_until

_FAST = {"policy": "on-failure", "delay": 0.1}
_HEALTH = {
    "command": "cat /well",
    **{"interval": 0.5, "retries": 1, "grace": 0, "on_unhealthy": "restart"},
}


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    yield fake_daemon
    fake_daemon.empty()


def once_restarted(daemon: Daemon) -> bool:
    vm = daemon.client.vm("a")
    return vm["state"] == "ready" and vm["restarts"]["total"] == 1


@pytest.mark.parametrize("step", [*RESTART_STEPS, "start.begin", "start.process", "start.ready"])
def test_a_restart_survives_a_crash(daemon: Daemon, step: str) -> None:
    daemon.run("a", restart=_FAST)
    daemon.stop()
    daemon.start(failpoint=step)
    with pytest.raises(HanokError):  # the daemon may die before it has told of the guest's end
        daemon.client.execute("a", ["die"], stdin=None, timeout=20)
    daemon.wait_died()
    daemon.start()
    wait_until(lambda: once_restarted(daemon), 60, "it is ready after one restart")
    assert daemon.client.execute("a", ["true"], stdin=None, timeout=10)["exit_status"] == 0


@pytest.mark.parametrize("step", [*HEAL_STEPS, "stop.begin", "stop.gone", "restart.waiting"])
def test_a_restart_of_the_unhealthy_survives_a_crash(daemon: Daemon, step: str) -> None:
    daemon.stop()
    daemon.start(failpoint=step)
    with suppress(HanokError):  # it may be ill, and the daemon dead, before the answer came
        daemon.run("a", restart=_FAST, health=_HEALTH)
    daemon.wait_died()
    daemon.start()
    wait_until(
        lambda: daemon.client.vm("a")["restarts"]["total"] >= 1, 60, "it was restarted, and again"
    )


@pytest.mark.parametrize("step", ["restart.waiting", "restart.counted"])
def test_a_stop_after_the_crash_is_the_end_of_it(daemon: Daemon, step: str) -> None:
    daemon.run("a", restart={"policy": "always", "delay": 0.1})
    daemon.stop()
    daemon.start(failpoint=step)
    with pytest.raises(HanokError):
        daemon.client.execute("a", ["die"], stdin=None, timeout=20)
    daemon.wait_died()
    daemon.start()
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    assert daemon.client.vm("a")["state"] == "stopped"
    daemon.stop()
    daemon.start()
    assert daemon.client.vm("a")["state"] == "stopped"
