"""The daemon is killed at every step of run, stop and delete; the next one cleans up after it."""

from __future__ import annotations

import pytest

from hanok.errors import HanokError, NotFound
from hanok.services.failpoints import DELETE_STEPS, START_STEPS, STOP_STEPS
from tests.daemon.harness import Daemon, wait_until


def crash(daemon: Daemon, step: str, ask: str) -> None:
    """Start the daemon with a failpoint, ask for something, and see it die there."""
    daemon.stop()
    daemon.start(failpoint=step)
    try:
        if ask == "run":
            daemon.client.run({"name": "a", "image": "micro", "memory": "128M", "disk": "1G"})
        elif ask == "stop":
            daemon.client.change("a", "stop", {"force": False, "timeout": 20})
        else:
            daemon.client.delete("a", force=True)
    except HanokError:
        pass  # it may die before it has answered: then nothing was promised
    daemon.wait_died()
    daemon.start()


def settled(daemon: Daemon) -> bool:
    """Whether no operation is under way any more."""
    final = ("done", "failed", "cancelled")
    return all(operation["state"] in final for operation in daemon.client.operations())


def check_run(daemon: Daemon, step: str) -> None:
    """A run that was interrupted is finished by the next daemon, once."""
    crash(daemon, step, "run")
    wait_until(lambda: settled(daemon), 120, "the run is finished or undone")
    vm = daemon.client.vm("a")
    assert vm["state"] == "ready"
    assert daemon.client.operations()[0]["state"] == "done"
    answer = daemon.client.execute("a", ["echo", "alive"], stdin=None, timeout=30)
    assert answer["exit_status"] == 0
    daemon.done(daemon.client.delete("a", force=True))
    assert daemon.left_over() == []


def check_stop(daemon: Daemon, step: str) -> None:
    """A stop that was interrupted is finished by the next daemon."""
    daemon.run("a")
    crash(daemon, step, "stop")
    wait_until(lambda: settled(daemon), 120, "the stop is finished")
    assert daemon.client.vm("a")["state"] == "stopped"
    daemon.done(daemon.client.change("a", "start"))
    assert daemon.client.vm("a")["state"] == "ready"
    daemon.done(daemon.client.delete("a", force=True))
    assert daemon.left_over() == []


def check_delete(daemon: Daemon, step: str) -> None:
    """A delete that was interrupted is finished by the next daemon: nothing is left."""
    daemon.run("a")
    crash(daemon, step, "delete")
    wait_until(lambda: settled(daemon), 120, "the delete is finished")
    with pytest.raises(NotFound):
        daemon.client.vm("a")
    assert daemon.left_over() == []


@pytest.mark.parametrize("step", ["run.accepted", *START_STEPS])
def test_run_survives_a_crash(fake_daemon: Daemon, step: str) -> None:
    check_run(fake_daemon, step)


@pytest.mark.parametrize("step", STOP_STEPS)
def test_stop_survives_a_crash(fake_daemon: Daemon, step: str) -> None:
    check_stop(fake_daemon, step)


@pytest.mark.parametrize("step", DELETE_STEPS)
def test_delete_survives_a_crash(fake_daemon: Daemon, step: str) -> None:
    check_delete(fake_daemon, step)


@pytest.mark.vm
@pytest.mark.parametrize("step", ["run.accepted", *START_STEPS])
def test_run_survives_a_crash_with_real_vms(qemu_daemon: Daemon, step: str) -> None:
    check_run(qemu_daemon, step)


@pytest.mark.vm
@pytest.mark.parametrize("step", STOP_STEPS)
def test_stop_survives_a_crash_with_real_vms(qemu_daemon: Daemon, step: str) -> None:
    check_stop(qemu_daemon, step)


@pytest.mark.vm
@pytest.mark.parametrize("step", DELETE_STEPS)
def test_delete_survives_a_crash_with_real_vms(qemu_daemon: Daemon, step: str) -> None:
    check_delete(qemu_daemon, step)
