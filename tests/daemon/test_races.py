"""Requests that meet each other, and ends that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hanok.errors import Conflict, HanokError, HostError, NotFound
from tests.daemon.harness import Daemon, wait_until
from tests.daemon.test_faults import break_it

SPEC = {"image": "micro", "memory": "128M", "disk": "1G"}


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    yield fake_daemon
    break_it(fake_daemon)
    for vm in fake_daemon.client.vms():
        fake_daemon.done(fake_daemon.client.delete(vm["name"], force=True))


def follow_until(daemon: Daemon, operation: Any, words: str) -> None:
    """Return once the operation says ``words``."""
    for seen in daemon.client.follow(operation["id"]):
        if words in seen["message"]:
            return
    raise AssertionError(f"it never said {words!r}")


def ended(daemon: Daemon, operation: Any) -> str:
    """Return how the operation ended."""
    *_, last = daemon.client.follow(operation["id"])
    return last["state"]


def test_a_request_behind_a_delete_does_not_bring_the_vm_back(daemon: Daemon) -> None:
    daemon.run("a")
    break_it(daemon, methods={"kill": {"delay": 1.0}})
    deleting = daemon.client.delete("a", force=True)
    wait_until(lambda: daemon.client.vm("a")["state"] == "deleting", 10, "it is being deleted")
    for action in ("stop", "restart", "start"):
        with pytest.raises(HanokError):
            daemon.done(daemon.client.change("a", action))
    assert ended(daemon, deleting) == "done"
    with pytest.raises(NotFound):
        daemon.client.vm("a")


def test_a_stop_and_a_delete_at_once_end_with_nothing(daemon: Daemon) -> None:
    daemon.run("a")
    break_it(daemon, methods={"kill": {"delay": 0.5}})
    stopping = daemon.client.change("a", "stop", {"force": True})
    deleting = daemon.client.delete("a", force=True)
    assert ended(daemon, deleting) == "done"
    assert ended(daemon, stopping) in ("cancelled", "failed", "done")
    assert daemon.client.vms() == []


def test_cancelling_up_keeps_the_vms_that_were_there(daemon: Daemon) -> None:
    stack = {"name": "shop", "vms": {"db": SPEC}}
    daemon.done(daemon.client.up("shop", stack))
    before = daemon.client.vm("db")["uuid"]
    daemon.done(daemon.client.change("db", "stop", {"force": True}))
    break_it(daemon, silent_agent=True)
    operation = daemon.client.up("shop", stack)
    follow_until(daemon, operation, "waiting")
    daemon.client.cancel(operation["id"])
    kept = daemon.client.vm("db")
    assert (kept["uuid"], kept["state"]) == (before, "stopped")
    break_it(daemon)
    daemon.done(daemon.client.down("shop"))


def test_cancelling_up_removes_what_it_made(daemon: Daemon) -> None:
    break_it(daemon, silent_agent=True)
    operation = daemon.client.up("shop", {"name": "shop", "vms": {"db": SPEC}})
    follow_until(daemon, operation, "waiting")
    daemon.client.cancel(operation["id"])
    assert daemon.client.vms() == []
    daemon.done(daemon.client.down("shop"))


def test_cancelling_a_start_leaves_a_stopped_vm(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    break_it(daemon, methods={"start": {"delay": 5.0}})
    operation = daemon.client.change("a", "start")
    follow_until(daemon, operation, "starting")
    daemon.client.cancel(operation["id"])
    assert daemon.client.vm("a")["state"] == "stopped"
    break_it(daemon)
    daemon.done(daemon.client.change("a", "start"))


@pytest.mark.parametrize("what", ["stop", "delete"])
def test_what_cannot_be_undone_is_not_cancelled(daemon: Daemon, what: str) -> None:
    daemon.run("a")
    break_it(daemon, methods={"kill": {"delay": 0.5}})
    if what == "stop":
        operation = daemon.client.change("a", "stop", {"force": True})
    else:
        operation = daemon.client.delete("a", force=True)
    with pytest.raises(Conflict, match="cannot be cancelled"):
        daemon.client.cancel(operation["id"])
    assert ended(daemon, operation) == "done"


def test_a_start_that_fails_at_its_disk_leaves_no_network_running(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    (disk,) = daemon.home.glob("vms/**/disk.qcow2")
    disk.unlink()
    before = daemon.left_over()
    in_its_way = disk.with_suffix(".new")
    in_its_way.mkdir()
    with pytest.raises(HostError, match="the files of a cannot be written: Is a directory"):
        daemon.done(daemon.client.change("a", "start"))
    assert not daemon.client.network("default")["running"]
    in_its_way.rmdir()
    assert daemon.left_over() == before
    daemon.done(daemon.client.change("a", "start"))
