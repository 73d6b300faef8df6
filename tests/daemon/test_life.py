"""The life of VMs over the API, on the fake hypervisor: states, refusals, operations, stacks."""

from __future__ import annotations

from typing import Any

import pytest

from hanok.errors import Conflict, InvalidInput, NotAdmitted, NotFound, Unsupported
from tests.daemon.harness import Daemon, new_daemon, wait_until


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Any:
    yield fake_daemon
    for vm in fake_daemon.client.vms():
        fake_daemon.done(fake_daemon.client.delete(vm["name"], force=True))


def spec(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "micro", "memory": "128M", "disk": "1G", **fields}


def test_a_vm_lives_through_every_state(daemon: Daemon) -> None:
    client = daemon.client
    vm = daemon.run("web", publish=["18080:80"])
    assert vm["state"] == "ready"
    assert vm["ports"] == [{"address": "127.0.0.1", "host_port": 18080, "guest_port": 80}]
    assert vm["addresses"]
    assert vm["networks"][0]["mac"].startswith("52:54:")
    daemon.done(client.change("web", "pause"))
    assert client.vm("web")["state"] == "paused"
    daemon.done(client.change("web", "resume"))
    assert client.vm("web")["state"] == "ready"
    daemon.done(client.change("web", "restart"))
    assert client.vm("web")["state"] == "ready"
    daemon.done(client.change("web", "stop", {"force": False, "timeout": 10}))
    assert client.vm("web")["state"] == "stopped"
    daemon.done(client.change("web", "start"))
    again = client.vm("web")
    assert again["state"] == "ready"
    assert again["addresses"] == vm["addresses"]
    daemon.done(client.delete("web", force=True))
    with pytest.raises(NotFound):
        client.vm("web")
    names = [event["name"] for event in client.events(follow=False) if event["target"] == "web"]
    for name in ("created", "starting", "running", "ready", "paused", "stopped", "deleted"):
        assert name in names


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cpus": 0}, "cpus"),
        ({"memory": "lots"}, "memory"),
        ({"memory": "1K"}, "memory"),
        ({"memroy": "1G"}, "memroy"),
        ({"mode": "fast"}, "mode"),
        ({"image": "windows"}, "image"),
        ({"publish": ["80"]}, "publish.0"),
        ({"publish": ["8080:80", "8080:81"]}, "publish"),
        ({"networks": ["default", "default"]}, "networks"),
        ({"user_data": "hello"}, "user_data"),
        ({"packages": ["--eval"]}, "packages.0"),
        ({"name": "Web"}, "name"),
    ],
)
def test_bad_input_names_the_field_and_changes_nothing(
    daemon: Daemon, fields: dict[str, Any], field: str
) -> None:
    before = daemon.client.operations()
    with pytest.raises(InvalidInput) as caught:
        daemon.client.run(spec("bad") | fields)
    assert caught.value.field == field
    assert caught.value.expected
    assert daemon.client.operations() == before
    assert daemon.client.vms() == []


def test_hybrid_is_refused_with_what_is_offered(daemon: Daemon) -> None:
    with pytest.raises(Unsupported) as caught:
        daemon.client.run(spec("bad", mode="hybrid"))
    told = f"{caught.value.message} {caught.value.expected}"
    assert "full" in told
    assert "para" in told


def test_what_does_not_fit_is_refused_with_the_missing_amount(daemon: Daemon) -> None:
    with pytest.raises(NotAdmitted) as caught:
        daemon.client.run(spec("big", memory="2T"))
    assert "missing" in caught.value.message
    assert daemon.client.vms() == []


def test_a_name_and_a_host_port_are_taken_once(daemon: Daemon) -> None:
    daemon.run("a", publish=["18081:80"])
    with pytest.raises(Conflict):
        daemon.client.run(spec("a"))
    with pytest.raises(Conflict) as caught:
        daemon.client.run(spec("b", publish=["18081:81"]))
    assert caught.value.field == "publish"


def test_states_forbid_what_makes_no_sense(daemon: Daemon) -> None:
    daemon.run("a")
    with pytest.raises(Conflict):
        daemon.client.change("a", "start")
    with pytest.raises(Conflict):
        daemon.client.change("a", "resume")
    with pytest.raises(Conflict):
        daemon.client.delete("a", force=False)
    daemon.done(daemon.client.change("a", "stop", {"force": True}))
    with pytest.raises(Conflict):
        daemon.client.change("a", "pause")


def test_a_guest_that_cannot_answer_is_not_asked(daemon: Daemon) -> None:
    daemon.run("a")
    for verb, waking in (("pause", "resume"), ("stop", "start")):
        daemon.done(daemon.client.change("a", verb, {"force": True} if verb == "stop" else None))
        with pytest.raises(Conflict) as caught:
            daemon.client.execute("a", ["true"], stdin=None, timeout=30)
        assert caught.value.hint == f"'hanok {waking} a' first"
        daemon.done(daemon.client.change("a", waking))


def test_fit_counts_down_as_vms_come(daemon: Daemon) -> None:
    shape = {"cpus": 1, "memory": "128M", "disk": "64M"}
    before = daemon.client.fit(shape)["by_resource"]["memory"]
    daemon.run("a")
    after = daemon.client.fit(shape)["by_resource"]["memory"]
    assert after == before - 1


STACK = {
    "name": "shop",
    "vms": {
        "db": {"image": "micro", "memory": "128M", "disk": "1G"},
        "web": {"image": "micro", "memory": "128M", "disk": "1G", "depends_on": ["db"]},
    },
}


def test_a_stack_comes_up_stays_and_goes(daemon: Daemon) -> None:
    client = daemon.client
    first = daemon.done(client.up("shop", STACK))["result"]
    assert sorted(first["created"]) == ["db", "web"]
    assert {vm["state"] for vm in first["vms"]} == {"ready"}
    again = daemon.done(client.up("shop", STACK))["result"]
    assert again["created"] == []
    assert [vm["uuid"] for vm in again["vms"]] == [vm["uuid"] for vm in first["vms"]]
    changed = {**STACK, "vms": {**STACK["vms"], "db": {"image": "micro", "memory": "256M"}}}  # type: ignore[dict-item]
    with pytest.raises(Conflict) as caught:
        client.up("shop", changed)
    assert "memory" in caught.value.message
    daemon.done(client.down("shop"))
    assert client.vms() == []
    assert [network["name"] for network in client.networks()] == ["default"] or (
        client.networks() == []
    )


def test_a_stopped_vm_of_a_stack_is_started_by_up(daemon: Daemon) -> None:
    client = daemon.client
    daemon.done(client.up("shop", STACK))
    daemon.done(client.change("web", "stop", {"force": True}))
    daemon.done(client.up("shop", STACK))
    assert client.vm("web")["state"] == "ready"
    daemon.done(client.down("shop"))


def test_vms_are_adopted_by_the_next_daemon(daemon: Daemon) -> None:
    before = daemon.run("a")
    daemon.kill()
    daemon.start()
    after = daemon.client.vm("a")
    assert after["state"] == "ready"
    assert after["addresses"] == before["addresses"]
    assert daemon.client.execute("a", ["true"], stdin=None, timeout=10)["exit_status"] == 0


def test_a_second_daemon_gives_way(daemon: Daemon) -> None:
    second = Daemon(daemon.home, "fake", daemon.images)
    second.start()
    assert second.process is not None
    wait_until(lambda: second.process is not None and second.process.poll() == 1, 20, "it ended")
    assert daemon.client.version()["pid"] == (daemon.process.pid if daemon.process else 0)


def test_an_idle_daemon_ends_itself(fake_daemon: Daemon) -> None:
    with new_daemon("fake", fake_daemon.images, HANOK_IDLE_EXIT="1") as idle:
        assert idle.process is not None
        assert idle.process.wait(20) == 0
        idle.start()


def test_the_administrator_sets_the_policy(fake_daemon: Daemon) -> None:
    with new_daemon("fake", fake_daemon.images, HANOK_CPU_RATIO="1.5") as daemon:
        cpus = next(room for room in daemon.client.host()["rooms"] if room["resource"] == "cpus")
        assert cpus["capacity"] == int(1.5 * daemon.client.host()["cpus"])
