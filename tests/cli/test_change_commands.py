"""``hanok set`` and ``hanok disk`` against recorded answers: what is asked, what is told."""

from __future__ import annotations

from typing import Any

from tests.cli import recorded
from tests.cli.conftest import Hanok
from tests.cli.stand_in import StandIn

PORT = {"address": "127.0.0.1", "host_port": 8080, "guest_port": 80}


def done(**result: Any) -> dict[str, Any]:
    told = {"name": "web", "uuid": "u", "changed": [], "pending": {}, "notes": [], **result}
    return recorded.operation("set", state="done", result=told)


def test_what_is_asked_is_what_was_typed(api: StandIn, hanok: Hanok) -> None:
    api.on("PATCH", "vms/web", done(changed=["cpus", "disk"], notes=["the file system has grown"]))
    ran = hanok("set", "web", "--cpus", "2", "--disk", "8G", "--rename", "shop")
    assert ran.returncode == 0
    assert api.asked[-1].json == {"cpus": 2, "disk": "8G", "name": "shop"}
    assert ran.stdout == "web: changed vCPUs, disk\nthe file system has grown\n"


def test_lists_are_made_of_what_there_is(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "vms/web", recorded.vm_detail(generation=3, ports=[PORT]))
    api.on("PATCH", "vms/web", done(changed=["publish", "nics"]))
    hanok("set", "web", "--publish", "8443:443", "--unpublish", "8080", "--add-network", "back")
    assert api.asked[-1].json == {
        "generation": 3,
        "networks": ["default", "back"],
        "publish": ["8443:443"],
    }
    hanok("set", "web", "--publish", "8080:80")  # is published
    assert api.asked[-1].json["publish"] == [PORT]
    wrong = hanok("set", "web", "--unpublish", "99")
    assert wrong.returncode == 2
    assert "one of its published ports: 8080" in wrong.stderr
    wrong = hanok("set", "web", "--remove-network", "nowhere")
    assert "not on the network nowhere" in wrong.stderr


def test_what_is_pending_is_told_with_what_it_takes(api: StandIn, hanok: Hanok) -> None:
    api.on("PATCH", "vms/web", done(changed=["memory"], pending={"memory": "it takes a restart"}))
    ran = hanok("set", "web", "--memory", "1G")
    assert ran.returncode == 0
    assert "memory pending:  it takes a restart" in ran.stdout
    pending = {"field": "memory", "now": "512 MiB", "wanted": "1 GiB", "needs": "a restart"}
    disks = [{"name": "data", "size": 1 << 30, "attached": False}]
    api.on("GET", "vms/web", recorded.vm_detail(pending=[pending], data_disks=disks))
    shown = hanok("show", "web").stdout
    assert "memory: 1 GiB instead of 512 MiB; a restart" in shown
    assert "data: 1 GiB (detached)" in shown


def test_nothing_to_change_is_a_mistake(hanok: Hanok) -> None:
    ran = hanok("set", "web")
    assert ran.returncode == 2
    assert "nothing was asked" in ran.stderr


def test_disks(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms/db/disks", done(name="db", changed=["disks"]))
    assert hanok("disk", "attach", "db", "data", "--size", "2G").stdout == (
        "db: changed data disks\n"
    )
    assert api.asked[-1].json == {"name": "data", "size": "2G"}
    api.on("DELETE", "vms/db/disks/data?delete=true", done(name="db", changed=["disks"]))
    assert hanok("disk", "detach", "db", "data", "--delete").returncode == 0
    disks = [{"name": "data", "size": 1 << 30, "attached": True}]
    api.on("GET", "vms/db", recorded.vm_detail("db", data_disks=disks))
    assert "data" in hanok("disk", "list", "db").stdout


def test_policies_are_made_of_what_there_is(api: StandIn, hanok: Hanok) -> None:
    had = {"policy": "always", "retries": None, "delay": 1, "longest": 300, "reset_after": 600}
    check = {"port": 80, "url": None, "command": None, "interval": 10}
    api.on("GET", "vms/web", recorded.vm_detail(restart=had, health_check=check))
    api.on("PATCH", "vms/web", done(changed=["restart", "health"]))
    hanok("set", "web", "--restart-delay", "5", "--health", "http://web/")
    assert api.asked[-1].json["restart"] == {**had, "delay": 5.0}
    assert api.asked[-1].json["health"] == {"interval": 10, "url": "http://web/"}
    hanok("set", "web", "--no-health")
    assert api.asked[-1].json["health"] is None
    assert hanok("set", "web", "--watchdog", "reset").returncode == 2
