"""The main job, on the example that users get: three servers, three systems, one machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hanok.model.stack import parse_stack
from tests.daemon.harness import Daemon
from tests.e2e.conftest import Cli

EXAMPLE = Path(__file__).parents[2] / "examples/three-servers.yaml"
BUILDING = 1800


def test_the_example_is_a_stack() -> None:
    machines = parse_stack(yaml.safe_load(EXAMPLE.read_text())).machines()
    assert [machine.spec.name for machine in machines] == ["db", "legacy", "web"]
    assert {machine.spec.name: machine.spec.image for machine in machines} == {
        "web": "debian:12",
        "db": "debian:13",
        "legacy": "micro",
    }
    assert [machine.spec.name for machine in machines if machine.spec.publish] == ["legacy", "web"]


@dataclass(frozen=True)
class Up:
    """The example that is up: its file, what up answered, and where its ports are published."""

    file: Path
    answer: dict[str, Any]
    ports: dict[str, int]


@pytest.fixture(scope="module")
def example(hanok: Cli, daemon: Daemon) -> Iterator[Up]:
    """The example on host ports that are free: a user's own may be up."""
    content = yaml.safe_load(EXAMPLE.read_text())
    ports = {"web": _free_port(), "legacy": _free_port()}
    content["vms"]["web"]["publish"] = [f"{ports['web']}:80"]
    content["vms"]["legacy"]["publish"] = [f"{ports['legacy']}:7000"]
    file = daemon.home / "stack.yaml"
    file.write_text(yaml.safe_dump(content))
    answer = json.loads(hanok.ok("up", str(file), "--json", limit=BUILDING))
    yield Up(file, answer, ports)
    hanok.ok("down", str(file))
    assert hanok.json("list") == []
    assert hanok.json("network", "list") == []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.vm
@pytest.mark.timeout(BUILDING)
def test_all_three_are_ready_in_systems_that_differ(hanok: Cli, example: Up) -> None:
    vms = {vm["name"]: vm for vm in hanok.json("list")}
    assert {name: vm["state"] for name, vm in vms.items()} == dict.fromkeys(
        ("web", "db", "legacy"), "ready"
    )
    assert sorted(example.answer["created"]) == ["db", "legacy", "web"]
    systems = {
        name: hanok.ok("exec", name, "--", "cat", "/etc/os-release")
        for name in ("web", "db", "legacy")
    }
    assert "bookworm" in systems["web"]
    assert "trixie" in systems["db"]
    assert "micro" in systems["legacy"]
    assert hanok.json("show", "legacy")["evidence"]["nic_driver"] == "e1000e"


@pytest.mark.vm
def test_the_page_reads_the_row_at_each_request(example: Up) -> None:
    pages = [_fetch(example.ports["web"]) for _ in range(2)]
    read = [re.search(r"Hello from the database .*read ([\d:.]+) UTC", page) for page in pages]
    assert all(read), pages
    assert len({found[1] for found in read if found}) == 2


def _fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.vm
def test_the_database_is_not_published_and_web_reaches_it_by_name(hanok: Cli, example: Up) -> None:
    db = hanok.json("show", "db")
    assert db["ports"] == []
    assert db["addresses"][0] in hanok.ok("exec", "web", "--", "getent", "hosts", "db")


@pytest.mark.vm
def test_the_old_service_answers(example: Up) -> None:
    with socket.create_connection(("127.0.0.1", example.ports["legacy"]), timeout=30) as talk:
        talk.sendall(b"COUNT bolts\nQUIT\n")
        with talk.makefile("r") as lines:
            said = [line.rstrip("\n") for line in lines]
    assert said == ["STOCK 1.0 on legacy ready", "6 pieces", "BYE"]


@pytest.mark.vm
def test_up_again_changes_nothing(hanok: Cli, example: Up) -> None:
    before = {vm["name"]: vm["uuid"] for vm in hanok.json("list")}
    again = hanok.json("up", str(example.file))
    assert again["created"] == []
    assert {vm["name"]: vm["uuid"] for vm in hanok.json("list")} == before


@pytest.mark.vm
def test_ssh_and_cp_use_the_keys_that_hanok_made(hanok: Cli, example: Up, tmp_path: Path) -> None:
    assert hanok.ok("ssh", "web", "--", "whoami; hostname") == "debian\nweb\n"
    assert hanok("ssh", "web", "--", "exit 7").returncode == 7
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(os.urandom(3_000_000))
    hanok.ok("cp", str(sent), "web:/tmp/file")
    hanok.ok("cp", "web:/tmp/file", str(back))
    assert back.read_bytes() == sent.read_bytes()


@pytest.mark.vm
def test_no_secret_is_shown(hanok: Cli, daemon: Daemon, example: Up) -> None:
    shown = hanok.ok("show", "db", "--json") + hanok.ok("events", "--json") + daemon.log()
    assert "an-example-password" not in shown
    assert "PRIVATE KEY" not in shown
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            assert b"an-example-password" not in command.read_bytes()
