"""What the hypervisor or the guest does wrong: it is told, and nothing half done is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hanok.client.tunnel import open_console
from hanok.errors import GuestError, HypervisorError, NotFound
from tests.daemon.harness import Daemon, wait_until


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    yield fake_daemon
    break_it(fake_daemon)
    for vm in fake_daemon.client.vms():
        fake_daemon.done(fake_daemon.client.delete(vm["name"], force=True))


def break_it(daemon: Daemon, **faults: Any) -> None:
    """Let the fake hypervisor do this wrong from now on; without faults: nothing."""
    (daemon.home / "fake").mkdir(exist_ok=True)
    draft = daemon.home / "fake" / "faults.new"
    draft.write_text(json.dumps(faults))
    draft.rename(daemon.home / "fake" / "faults.json")


def test_a_run_that_cannot_start_leaves_nothing(daemon: Daemon) -> None:
    break_it(daemon, methods={"start": {"error": "no more memory"}})
    with pytest.raises(HypervisorError, match="no more memory"):
        daemon.run("a")
    with pytest.raises(NotFound):
        daemon.client.vm("a")
    assert daemon.left_over() == []
    break_it(daemon)
    daemon.run("a")


def test_a_start_that_fails_keeps_the_vm_and_says_why(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    break_it(daemon, methods={"start": {"error": "no more memory"}})
    with pytest.raises(HypervisorError):
        daemon.done(daemon.client.change("a", "start"))
    vm = daemon.client.vm("a")
    assert (vm["state"], vm["reason"]) == ("failed", "no more memory")
    break_it(daemon)
    daemon.done(daemon.client.change("a", "start"))
    assert daemon.client.vm("a")["state"] == "ready"


def test_a_guest_in_another_mode_than_asked_is_failed(daemon: Daemon) -> None:
    break_it(daemon, shown_mode="para")
    with pytest.raises(GuestError, match="virtio"):
        daemon.run("a", mode="full")
    vm = daemon.client.vm("a")
    assert vm["state"] == "failed"
    assert "virtio" in (vm["reason"] or "")


def test_a_guest_that_ignores_the_power_button_is_ended(daemon: Daemon) -> None:
    break_it(daemon, ignore_power_button=True, silent_agent=True)
    with pytest.raises(GuestError):
        daemon.run("a", ready={"timeout": 1})
    daemon.done(daemon.client.change("a", "stop", {"force": False, "timeout": 0.5}))
    assert daemon.client.vm("a")["state"] == "stopped"


def test_a_stop_that_fails_can_be_asked_again(daemon: Daemon) -> None:
    daemon.run("a")
    break_it(daemon, methods={"kill": {"error": "it does not die"}})
    with pytest.raises(HypervisorError):
        daemon.done(daemon.client.change("a", "stop", {"force": True}))
    assert daemon.client.vm("a")["state"] in ("stopping", "failed")
    break_it(daemon)
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    assert daemon.client.vm("a")["state"] == "stopped"


def test_a_delete_that_fails_can_be_asked_again(daemon: Daemon) -> None:
    daemon.run("a")
    break_it(daemon, methods={"kill": {"error": "it does not die"}})
    with pytest.raises(HypervisorError):
        daemon.done(daemon.client.delete("a", force=True))
    assert daemon.client.vm("a")["state"] == "deleting"
    break_it(daemon)
    daemon.done(daemon.client.delete("a", force=True))
    assert daemon.left_over() == []


def test_a_pause_that_fails_changes_nothing(daemon: Daemon) -> None:
    daemon.run("a")
    break_it(daemon, methods={"pause": {"error": "not now"}})
    with pytest.raises(HypervisorError, match="not now"):
        daemon.done(daemon.client.change("a", "pause"))
    assert daemon.client.vm("a")["state"] == "ready"


def test_a_run_that_is_cancelled_is_undone(daemon: Daemon) -> None:
    break_it(daemon, silent_agent=True)
    spec = {"name": "a", "image": "micro", "memory": "128M", "disk": "1G"}
    operation = daemon.client.run(spec)
    for seen in daemon.client.follow(operation["id"]):
        if "waiting" in seen["message"]:
            break
    assert daemon.client.cancel(operation["id"])
    assert daemon.client.operation(operation["id"])["state"] == "cancelled"
    with pytest.raises(NotFound):
        daemon.client.vm("a")
    assert daemon.left_over() == []


def test_a_delete_does_not_wait_for_a_guest_that_never_answers(daemon: Daemon) -> None:
    break_it(daemon, silent_agent=True)
    spec = {"name": "a", "image": "micro", "memory": "128M", "disk": "1G"}
    operation = daemon.client.run(spec)
    for seen in daemon.client.follow(operation["id"]):
        if "waiting" in seen["message"]:
            break
    daemon.done(daemon.client.delete("a", force=True))
    assert daemon.client.operation(operation["id"])["state"] == "cancelled"
    assert daemon.left_over() == []


def test_a_vm_whose_console_is_gone_is_taken_over_without_one(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.kill()
    break_it(daemon, methods={"open_console": {"error": "nobody serves it"}})
    daemon.start()
    assert daemon.client.vm("a")["state"] == "ready"
    with pytest.raises(HypervisorError, match="nobody serves it"), open_console(daemon.client, "a"):
        pass
    break_it(daemon)  # it is served again
    with open_console(daemon.client, "a") as tunnel:
        tunnel.send(b"x")
        assert b"fake hypervisor" in (tunnel.receive() or b"")


def test_the_log_of_a_vm_goes_on_once_its_console_is_served_again(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.kill()
    (log,) = (daemon.home / "vms").glob("*/console.log")
    said = log.stat().st_size
    break_it(daemon, methods={"open_console": {"error": "nobody serves it"}})
    daemon.start()
    assert daemon.client.vm("a")["state"] == "ready"
    assert log.stat().st_size == said
    break_it(daemon)  # it is served again, and says its greeting
    wait_until(lambda: log.stat().st_size > said, 60, "the console says something")


def test_a_stack_whose_database_fails_says_so_and_can_be_taken_down(daemon: Daemon) -> None:
    break_it(daemon, methods={"start": {"error": "no more memory", "times": 1}})
    vm = {"image": "micro", "memory": "128M", "disk": "1G"}
    stack = {"name": "shop", "vms": {"db": vm, "web": {**vm, "depends_on": ["db"]}}}
    with pytest.raises(HypervisorError, match="db: no more memory"):
        daemon.done(daemon.client.up("shop", stack))
    assert [seen["name"] for seen in daemon.client.vms()] == []
    daemon.done(daemon.client.down("shop"))
    assert daemon.left_over() == []
