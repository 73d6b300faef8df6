"""A guest of another architecture than the host's, emulated whole: the second row of the table."""

from __future__ import annotations

import platform

import pytest

from hanok.proc import find_program
from tests.e2e.conftest import Cli

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        find_program("qemu-system-aarch64") is None,
        reason="qemu-system-aarch64 is not installed (package qemu-system-arm)",
    ),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 is not foreign here"),
]


@pytest.fixture(scope="module")
def arm(hanok: Cli) -> str:
    """A ready guest of arm64; its image is built when it is not there yet."""
    hanok.ok(
        *("run", "micro", "--arch", "arm64", "--name", "arm", "--memory", "256M"),
        *("--disk", "1G", "--publish", "18490:80"),
        limit=600,
    )
    return "arm"


def test_the_guest_runs_on_an_arm_processor(hanok: Cli, arm: str) -> None:
    assert hanok.ok("exec", arm, "--", "uname", "-m").strip() == "aarch64"
    shown = hanok.json("show", arm)
    assert shown["image"] == "micro:arm64"
    assert shown["accelerator"] == "tcg"
    assert "not of the host's architecture" in shown["boot"]
    evidence = shown["evidence"]
    assert evidence["disk_driver"] == "virtio_blk"
    assert evidence["nic_driver"] == "virtio_net"
    assert "arm64" in evidence["kernel"]


def test_its_console_is_the_board_s_own_serial_port(hanok: Cli, arm: str) -> None:
    assert "ttyAMA0" in hanok.ok("exec", arm, "--", "cat", "/proc/consoles")
    assert "arm" in hanok.ok("logs", arm)


def test_it_has_its_address_and_its_name(hanok: Cli, arm: str) -> None:
    address = hanok.json("show", arm)["networks"][0]["address"]
    assert address in hanok.ok("exec", arm, "--", "ip", "-4", "addr", "show", "eth0")
    assert hanok.ok("exec", arm, "--", "hostname").strip() == "arm"


def test_it_stops_and_starts_and_keeps_its_disk(hanok: Cli, arm: str) -> None:
    hanok.ok("exec", arm, "--", "sh", "-c", "echo kept > /root/kept && sync")
    hanok.ok("pause", arm)
    hanok.ok("resume", arm)
    hanok.ok("stop", arm)
    hanok.ok("start", arm)
    assert hanok.ok("exec", arm, "--", "cat", "/root/kept").strip() == "kept"


def test_it_is_not_frozen_and_says_why(hanok: Cli, arm: str) -> None:
    done = hanok("template", "create", "base", "--from", arm)
    assert done.returncode != 0
    assert b"not of the host's architecture" in done.stderr


def test_what_cannot_be_is_refused_at_once(hanok: Cli) -> None:
    done = hanok("run", "debian:12", "--arch", "arm64", "--name", "none")
    assert done.returncode == 2
    assert b"architecture" in done.stderr
    assert b"micro" in done.stderr
    done = hanok("run", "micro", "--arch", "arm64", "--mode", "full", "--name", "none")
    assert done.returncode != 0
    assert b"mode" in done.stderr
    assert hanok.json("list") == [] or all(vm["name"] != "none" for vm in hanok.json("list"))
