"""``up`` and ``down`` against recorded answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import recorded
from tests.cli.conftest import Hanok
from tests.cli.stand_in import StandIn, ndjson

SHOP = """\
name: shop
vms:
  web:
    image: debian:12
    memory: lots
"""
STACK = {
    "name": "shop",
    "vms": [recorded.vm_view("web"), recorded.vm_view("db", ports=[], ready_seconds=None)],
    "networks": ["shop"],
    "created": ["web", "db"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hanok.yaml").write_text(SHOP)
    return tmp_path


def test_up_sends_the_file_and_shows_what_to_try(api: StandIn, hanok: Hanok, folder: Path) -> None:
    api.on("PUT", "stacks/shop", recorded.operation("up", "shop"), status=202)
    done = recorded.operation("up", "shop", state="done", result=STACK)
    api.stream("GET", "operations/op1/follow", ndjson(done))
    shown = hanok("up", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert api.only("PUT", "stacks/shop").json == {
        "name": "shop",
        "vms": {"web": {"image": "debian:12", "memory": "lots"}},
    }
    lines = shown.stdout.splitlines()
    assert lines[0].split() == (
        ["NAME", "IMAGE", "HYPERVISOR", "MODE", "VCPUS", "MEMORY", "ADDRESS", "PORTS", "READY"]
    )
    assert " ".join(lines[1].split()) == (
        "web debian:12 qemu/tcg para 2 512 MiB 10.77.0.10 8080:80 14.8 s"
    )
    for command in ("curl http://127.0.0.1:8080/", "hanok exec web -- uname -a", "hanok down"):
        assert f"  {command}" in lines
    assert max(len(line) for line in lines) <= 100
    assert json.loads(hanok("up", "--json", cwd=folder).stdout) == STACK


def test_up_shows_file_and_line_of_a_bad_field(api: StandIn, hanok: Hanok, folder: Path) -> None:
    told = recorded.problem(
        "invalid-input", 422, "'lots' is not a size", field="vms.web.memory", expected="as 512M"
    )
    api.on("PUT", "stacks/shop", told, status=422)
    done = hanok("up", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: hanok.yaml:5: 'lots' is not a size",
        "  field:    vms.web.memory",
        "  expected: as 512M",
    ]
    found = json.loads(hanok("up", "--json", cwd=folder).stderr)
    assert (found["field"], found["place"]) == ("vms.web.memory", "hanok.yaml:5")


def test_a_bad_file_never_reaches_the_daemon(api: StandIn, hanok: Hanok, folder: Path) -> None:
    (folder / "hanok.yaml").write_text("name: shop\nvms: {}\nname: shop2\n")
    done = hanok("up", cwd=folder)
    assert done.returncode == 2
    assert "hanok.yaml:3: the key 'name' is there twice" in done.stderr
    assert hanok("up", "gone.yaml", cwd=folder).returncode == 2
    assert api.asked == []


def test_down_by_file_and_by_name(api: StandIn, hanok: Hanok, folder: Path) -> None:
    api.on("DELETE", "stacks/shop", recorded.operation("down", "shop", state="done"), status=202)
    assert hanok("down", cwd=folder).stdout == "shop is down\n"
    assert hanok("down", "--name", "shop").returncode == 0
    assert [asked.method for asked in api.asked] == ["DELETE", "DELETE"]
