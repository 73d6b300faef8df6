"""Changes of VMs on the fake hypervisor: what is applied, what waits, what is taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hanok.errors import Conflict, HypervisorError, InvalidInput, NotAdmitted, NotFound
from hanok.services.failpoints import SET_STEPS
from hanok.units import GIB, MIB
from tests.daemon.harness import Daemon, wait_until
from tests.daemon.test_crash import settled
from tests.daemon.test_faults import break_it

# What a daemon killed at any step has still to do: a bit of everything.
EVERYTHING: dict[str, Any] = {
    "name": "b",
    "cpus": 2,
    "memory": "96M",
    "disk": "2G",
    "publish": ["18195:80"],
    "networks": ["default", "back"],
}


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    fake_daemon.client.create_network({"name": "back"})
    yield fake_daemon
    break_it(fake_daemon)
    for vm in fake_daemon.client.vms():
        fake_daemon.done(fake_daemon.client.delete(vm["name"], force=True))
    fake_daemon.client.delete_network("back")


def change(daemon: Daemon, vm: str, /, **wanted: Any) -> Any:
    return daemon.done(daemon.client.set(vm, wanted))["result"]


def machine(daemon: Daemon, name: str) -> Any:
    """Return what the fake hypervisor has of a VM."""
    uuid = daemon.client.vm(name)["uuid"]
    return json.loads((daemon.home / "fake" / "machines.json").read_text())[uuid]


def seen(daemon: Daemon, name: str) -> dict[str, Any]:
    """Return of a VM what changes may change."""
    vm = daemon.client.vm(name)
    kept = ("name", "cpus", "memory", "disk", "ports", "networks", "data_disks", "pending")
    return {key: vm[key] for key in kept}  # type: ignore[literal-required]


def check_everything(daemon: Daemon) -> None:
    """The VM named a has become all that EVERYTHING says."""
    with pytest.raises(NotFound):
        daemon.client.vm("a")
    vm = daemon.client.vm("b")
    assert vm["state"] == "ready"
    assert (vm["cpus"], vm["memory"], vm["disk"]) == (2, 128 * MIB, 2 * GIB)
    assert [port["host_port"] for port in vm["ports"]] == [18195]
    assert [nic["network"] for nic in vm["networks"]] == ["default", "back"]
    (pending,) = vm["pending"]
    assert (pending["field"], pending["wanted"]) == ("memory", "96 MiB")
    has = machine(daemon, "b")
    assert (has["cpus"], has["memory"], has["disk"]) == (2, 96 * MIB, 2 * GIB)
    assert list(has["devices"].values()) == [vm["networks"][1]["mac"]]


def test_a_running_vm_becomes_what_was_asked(daemon: Daemon) -> None:
    daemon.run("a")
    result = change(daemon, "a", **EVERYTHING)
    assert result["name"] == "b"
    assert set(result["changed"]) == {"name", "publish", "nics", "cpus", "memory", "disk"}
    check_everything(daemon)
    daemon.done(daemon.client.change("b", "restart"))
    vm = daemon.client.vm("b")
    assert (vm["cpus"], vm["memory"], vm["pending"]) == (2, 96 * MIB, [])


@pytest.mark.parametrize("step", SET_STEPS)
def test_a_change_survives_a_crash(daemon: Daemon, step: str) -> None:
    daemon.run("a")
    daemon.stop()
    daemon.start(failpoint=step)
    with pytest.raises(Exception):  # noqa: B017  the daemon dies before or after it answers
        daemon.done(daemon.client.set("a", EVERYTHING))
    daemon.wait_died()
    daemon.start()
    wait_until(lambda: settled(daemon), 60, "the change is finished")
    assert daemon.client.operations()[0]["state"] == "done"
    check_everything(daemon)


@pytest.mark.parametrize("method", ["attach_nic", "set_memory", "set_cpus", "grow_disk"])
def test_a_change_that_fails_is_taken_back_whole(daemon: Daemon, method: str) -> None:
    daemon.run("a", publish=["18194:80"])
    before, had = seen(daemon, "a"), machine(daemon, "a")
    break_it(daemon, methods={method: {"error": "it broke", "times": 1}})
    with pytest.raises(HypervisorError, match="it broke"):
        change(daemon, "a", **EVERYTHING)
    # A disk that has grown before stays grown: that alone cannot be taken back.
    disk = 2 * GIB if method == "set_cpus" else before["disk"]
    assert seen(daemon, "a") == {**before, "disk": disk}
    has = machine(daemon, "a")
    assert {**has, "since": 0, "disk": 0} == {**had, "since": 0, "disk": 0}
    assert daemon.client.network("back")["vms"] == []
    change(daemon, "a", **EVERYTHING)
    check_everything(daemon)


def test_a_crash_before_a_failure_is_taken_back_too(daemon: Daemon) -> None:
    daemon.run("a")
    before = seen(daemon, "a")
    daemon.stop()
    daemon.start(failpoint="set.memory")
    with pytest.raises(Exception):  # noqa: B017
        daemon.done(daemon.client.set("a", EVERYTHING))
    daemon.wait_died()
    break_it(daemon, methods={"set_cpus": {"error": "it broke", "times": 1}})
    daemon.start()
    wait_until(lambda: settled(daemon), 60, "the change is taken back")
    assert daemon.client.operations()[0]["state"] == "failed"
    assert seen(daemon, "a") == {**before, "disk": 2 * GIB}
    has = machine(daemon, "a")
    assert (has["cpus"], has["memory"], has["devices"]) == (1, 128 * MIB, {})


def test_a_vm_that_does_not_run_is_changed_at_once(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    change(daemon, "a", **EVERYTHING)
    vm = daemon.client.vm("b")
    assert (vm["cpus"], vm["memory"], vm["disk"], vm["pending"]) == (2, 96 * MIB, 2 * GIB, [])
    daemon.done(daemon.client.change("b", "start"))
    assert machine(daemon, "b")["cpus"] == 2


def test_what_cannot_be_now_waits_and_says_why(daemon: Daemon) -> None:
    daemon.run("a", mode="full")
    change(daemon, "a", cpus=9, networks=["default", "back"])
    pending = {one["field"]: one for one in daemon.client.vm("a")["pending"]}
    assert set(pending) == {"vCPUs", "networks"}
    assert "restart" in pending["vCPUs"]["needs"]
    # Asked to be as it is, nothing is left to wait for.
    change(daemon, "a", cpus=1)
    assert [one["field"] for one in daemon.client.vm("a")["pending"]] == ["networks"]
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    vm = daemon.client.vm("a")
    assert vm["pending"] == []
    assert [nic["network"] for nic in vm["networks"]] == ["default", "back"]


def test_data_disks_come_and_go(daemon: Daemon) -> None:
    daemon.run("a")
    uuid = daemon.client.vm("a")["uuid"]
    file = daemon.home / "vms" / uuid / "m" / "added-data.qcow2"
    daemon.done(daemon.client.attach_disk("a", {"name": "data", "size": "1G"}))
    assert file.exists()
    assert list(machine(daemon, "a")["devices"].values()) == ["added-data"]
    with pytest.raises(Conflict, match="already"):
        daemon.client.attach_disk("a", {"name": "data", "size": "1G"})
    daemon.done(daemon.client.detach_disk("a", "data", delete=False))
    assert file.exists()
    assert machine(daemon, "a")["devices"] == {}
    with pytest.raises(InvalidInput, match="1 GiB"):
        daemon.client.attach_disk("a", {"name": "data", "size": "2G"})
    daemon.done(daemon.client.attach_disk("a", {"name": "data"}))
    daemon.done(daemon.client.detach_disk("a", "data", delete=True))
    assert not file.exists()
    assert daemon.client.vm("a")["data_disks"] == []
    with pytest.raises(NotFound, match="no data disk"):
        daemon.client.detach_disk("a", "data", delete=True)


def test_a_disk_that_cannot_be_attached_leaves_no_file(daemon: Daemon) -> None:
    daemon.run("a")
    folder = daemon.home / "vms" / daemon.client.vm("a")["uuid"] / "m"
    break_it(daemon, methods={"attach_disk": {"error": "it broke"}})
    with pytest.raises(HypervisorError, match="it broke"):
        daemon.done(daemon.client.attach_disk("a", {"name": "data", "size": "1G"}))
    assert list(folder.glob("added-*")) == []
    assert daemon.client.vm("a")["data_disks"] == []


def refused(daemon: Daemon, kind: type[Exception], match: str, **wanted: Any) -> Any:
    before = seen(daemon, "a")
    with pytest.raises(kind, match=match) as caught:
        daemon.client.set("a", wanted)
    assert seen(daemon, "a") == before
    return caught.value


def test_what_makes_no_sense_is_refused(daemon: Daemon) -> None:
    daemon.run("a", publish=["18193:80"])
    daemon.run("c", publish=["18196:80"])
    assert refused(daemon, InvalidInput, "cannot become smaller", disk="512M").field == "disk"
    assert refused(daemon, Conflict, "named c", name="c").field == "name"
    assert refused(daemon, Conflict, "published by c", publish=["18196:80"]).field == "publish"
    refused(daemon, InvalidInput, "twice", publish=["18197:80", "18197:81"])
    refused(daemon, NotFound, "no network", networks=["default", "nowhere"])
    refused(daemon, InvalidInput, "lead through default", networks=["back"])
    refused(daemon, InvalidInput, "unknown", cpu=2)
    refused(daemon, InvalidInput, "nothing was asked")
    refused(daemon, Conflict, "meanwhile", cpus=2, generation=7)
    missing = refused(daemon, NotAdmitted, "cannot grow", memory="4096G")
    assert missing.field == "memory"
    refused(daemon, NotAdmitted, "disk", disk="4096G")


def test_a_paused_vm_is_left_alone(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.done(daemon.client.change("a", "pause"))
    refused(daemon, Conflict, "paused", cpus=2)
    daemon.done(daemon.client.change("a", "resume"))


def test_room_is_kept_for_what_waits(daemon: Daemon) -> None:
    daemon.run("a")
    sold = next(room for room in daemon.client.host()["rooms"] if room["resource"] == "memory")
    change(daemon, "a", memory="256M")
    now = next(room for room in daemon.client.host()["rooms"] if room["resource"] == "memory")
    assert now["used"] - sold["used"] == 128 * MIB


def test_a_changed_vm_makes_templates_again_once_it_can(daemon: Daemon) -> None:
    daemon.run("a")
    change(daemon, "a", cpus=2)
    with pytest.raises(InvalidInput, match="vCPUs were changed"):
        daemon.client.create_template("t", "a")
    daemon.done(daemon.client.change("a", "restart"))
    daemon.freeze("t", "a")
    (clone,) = daemon.clone("t", "d")
    assert daemon.client.vm(clone)["cpus"] == 2
    change(daemon, clone, cpus=3, disk="2G")
    assert daemon.client.vm(clone)["disk"] == 2 * GIB
    daemon.done(daemon.client.attach_disk("a", {"name": "data", "size": "1G"}))
    with pytest.raises(InvalidInput, match="data disks"):
        daemon.client.create_template("u", "a")
    daemon.done(daemon.client.delete(clone, force=True))
    daemon.client.delete_template("t")


def test_of_two_changes_at_once_one_is_told_to_wait(daemon: Daemon) -> None:
    daemon.run("a")
    break_it(daemon, methods={"set_cpus": {"delay": 1.0}})
    first = daemon.client.set("a", {"cpus": 2})
    with pytest.raises(Conflict, match="just now"):
        daemon.client.set("a", {"cpus": 3})
    with pytest.raises(Conflict, match="just now"):
        daemon.client.attach_disk("a", {"name": "data", "size": "1G"})
    daemon.done(first)
    assert daemon.client.vm("a")["cpus"] == 2


def test_policies_change_at_once(daemon: Daemon) -> None:
    daemon.run("a")
    result = change(daemon, "a", restart="on-failure:5", health="agent", autostart={"start": "yes"})
    assert set(result["changed"]) == {"restart", "health", "autostart"}
    vm = daemon.client.vm("a")
    assert (vm["restart"]["policy"], vm["restart"]["retries"]) == ("on-failure", 5)
    assert vm["health_check"] is not None
    wait_until(lambda: daemon.client.vm("a").get("health") == "healthy", 30, "it is looked after")
    change(daemon, "a", health=None)
    vm = daemon.client.vm("a")
    assert (vm["health_check"], vm["health_seen"]) == (None, None)
    assert vm["autostart"]["start"] == "yes"
    refused(
        daemon,
        InvalidInput,
        "restart policy is no",
        restart="no",
        health={"on_unhealthy": "restart"},
    )
