"""Warm starts: the second run of an image goes on from memory; replicas are clones of the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hanok.model.image import Image
from tests.daemon.harness import Daemon, new_daemon, wait_until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def warm_daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon that keeps at most one warm template."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent, HANOK_WARM="1") as daemon:
        yield daemon


@pytest.fixture
def daemon(warm_daemon: Daemon) -> Iterator[Daemon]:
    """The same, empty at the start of each test."""
    quiet(warm_daemon)
    warm_daemon.empty()
    yield warm_daemon
    quiet(warm_daemon)
    warm_daemon.empty()


def quiet(daemon: Daemon) -> None:
    """Wait until nothing is made in the background any more."""

    def done() -> bool:
        return all(operation["finished"] for operation in daemon.client.operations())

    wait_until(done, 120, "all operations have ended")


def run(daemon: Daemon, name: str, **fields: Any) -> str:
    """Run a small VM, wait for what follows it, and return how it came up."""
    daemon.run(name, memory="128M", disk="256M", **fields)
    quiet(daemon)
    return daemon.client.vm(name)["boot"] or ""


def test_the_second_run_goes_on_from_memory(daemon: Daemon) -> None:
    assert run(daemon, "a").startswith("booted: there was no warm template")
    (template,) = daemon.client.templates()
    assert template["owner"] == "warm"
    assert [vm["name"] for vm in daemon.client.vms()] == ["a"]
    assert "from the memory" in run(daemon, "b")
    assert daemon.sh("b", "hostname; cat /etc/hostname").split() == ["b", "b"]
    assert daemon.client.vm("b")["clone"] == "instant"


def test_show_says_why_a_vm_booted(daemon: Daemon) -> None:
    run(daemon, "a")
    assert run(daemon, "b", cold=True) == "booted: a cold start was asked for"
    assert "user data" in run(daemon, "c", user_data="#!/bin/sh\ntouch /run/done\n")
    assert "mode full" in run(daemon, "d", mode="full")
    assert "no warm template" in run(daemon, "e", cpus=2)


def test_a_network_goes_while_a_warm_start_is_made_on_it(daemon: Daemon) -> None:
    """Nobody sees the VM that is booted for it, so nobody has to wait for it."""
    daemon.client.create_network({"name": "side"})
    daemon.run("a", memory="128M", disk="256M", networks=["side"])

    def made() -> list[str]:  # the newest first
        return [op["state"] for op in daemon.client.operations() if op["kind"] == "warm"]

    wait_until(lambda: made()[:1] == ["running"], 30, "a warm start is being made")
    assert daemon.client.network("side")["vms"] == ["a"]
    daemon.client.delete("a", force=True)
    wait_until(lambda: not daemon.client.vms(), 30, "the VM is gone")
    daemon.client.delete_network("side")
    assert made()[0] == "cancelled"
    assert "side" not in [network["name"] for network in daemon.client.networks()]
    assert not daemon.client.templates()
    assert not list((daemon.home / "vms").iterdir())


def test_a_warm_template_goes_while_it_is_made(daemon: Daemon) -> None:
    """And with it the VM that nobody sees."""
    daemon.run("a", memory="128M", disk="256M")

    def made() -> list[str]:
        return [template["state"] for template in daemon.client.templates()]

    wait_until(lambda: made() == ["making"], 60, "a warm template is being made")
    daemon.client.delete_template(daemon.client.templates()[0]["name"])
    assert made() == []
    left = [path.name for path in (daemon.home / "vms").iterdir()]
    assert left == [daemon.client.vm("a")["uuid"]]


def test_what_was_done_in_the_first_vm_is_not_in_the_next(daemon: Daemon) -> None:
    daemon.run("a", memory="128M", disk="256M")
    daemon.sh("a", "echo secret > /root/secret; echo secret > /run/secret; sync")
    quiet(daemon)
    assert "from the memory" in run(daemon, "b")
    assert daemon.sh("b", "ls /root/secret /run/secret 2>/dev/null || echo none") == "none\n"


def test_warm_templates_give_way_to_newer_ones(daemon: Daemon) -> None:
    run(daemon, "a")
    (first,) = daemon.client.templates()
    run(daemon, "b", cpus=2)
    (second,) = daemon.client.templates()
    assert second["name"] != first["name"]
    assert "from the memory" in run(daemon, "c", cpus=2)
    run(daemon, "d", tcg_buffer="32M")
    assert daemon.client.templates()[0]["name"] == second["name"], "one in use stays"


def test_a_daemon_that_died_while_one_was_made_makes_it(daemon: Daemon) -> None:
    daemon.run("a", memory="128M", disk="256M")
    daemon.kill()
    daemon.start()
    quiet(daemon)
    (template,) = daemon.client.templates()
    assert template["state"] == "ready"
    assert "from the memory" in run(daemon, "b")


def test_replicas_are_clones_of_the_first(daemon: Daemon) -> None:
    script = "#!/bin/sh\necho set-up > /run/set-up\n"
    stack = {
        "vms": {
            "web": {
                "image": "micro",
                "memory": "128M",
                "disk": "256M",
                "replicas": 3,
                "user_data": script,
                "ready": {"command": "test -e /run/set-up"},
            }
        }
    }
    daemon.done(daemon.client.up("shop", stack))
    vms = {vm["name"]: vm for vm in daemon.client.vms()}
    assert {name: vm["clone"] for name, vm in vms.items()} == {
        "web-1": None,
        "web-2": "instant",
        "web-3": "instant",
    }
    assert daemon.sh("web-3", "hostname; cat /run/set-up").split() == ["web-3", "set-up"]
    daemon.sh("web-2", "ping -c 1 -W 5 web-3")
    daemon.done(daemon.client.down("shop"))
    assert daemon.client.templates() == []
    assert daemon.client.vms() == []
