"""Names and commands for systemd, against golden files (HANOK_UPDATE_GOLDEN=1 writes them)."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanok.systemd.names import (
    NETWORK_LIMITS,
    attach_argv,
    job_in,
    limit_in,
    network_scope,
    resize_argv,
    start_scope_argv,
    unit_in,
    vm_limits,
    vm_scope,
)
from hanok.units import GIB, MIB
from tests.golden import check_golden

GOLDEN = Path(__file__).parent / "golden"
UUID = "0f4d53a2-9a8e-4a44-9a39-55e8b4b1a6f0"
ALL = frozenset({"cpu", "memory", "pids", "io"})
HOME = "/var/lib/hanok"
COMMANDS = {
    "vm": start_scope_argv(
        vm_scope(UUID), [4711], vm_limits(2, GIB, 100 * MIB), ALL, daemon="hanokd.service"
    ),
    "vm-resize": resize_argv(vm_scope(UUID), vm_limits(4, 2 * GIB, 100 * MIB), ALL),
    "vm-without-controllers": start_scope_argv(
        vm_scope(UUID), [4711], vm_limits(2, GIB, 100 * MIB), (), daemon=None
    ),
    "network": start_scope_argv(
        network_scope("lan", HOME),
        [1, 2, 3],
        NETWORK_LIMITS,
        ALL,
        daemon="hanokd.service",
        grows=True,
    ),
    "attach": attach_argv(network_scope("lan", HOME), [4, 5]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str) -> None:
    check_golden(GOLDEN / f"{name}.txt", "\n".join(COMMANDS[name]) + "\n")


def test_the_limit_is_what_placement_counts() -> None:
    limits = vm_limits(3, GIB, 70 * MIB)
    assert limits.memory == GIB + 70 * MIB
    assert limits.cpu_weight == 300
    assert vm_limits(500, GIB, 0).cpu_weight == 10_000


def test_networks_of_one_name_in_two_data_directories_are_apart() -> None:
    assert network_scope("lan", "/tmp/a") != network_scope("lan", "/tmp/b")


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/hanokd.service\n", "hanokd.service"),
        (f"0::/hanok.slice/hanok-vm-{UUID}.scope\n", f"hanok-vm-{UUID}.scope"),
        ("0::/hanok.slice/hanok-net-a.scope/child\n", "hanok-net-a.scope"),
        ("12:pids:/x\n1:name=systemd:/system.slice/hanokd.service\n0::/\n", "hanokd.service"),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_unit_of_a_cgroup(text: str, unit: str | None) -> None:
    assert unit_in(text) == unit


def test_job_of_the_unit() -> None:
    jobs = "1021 hanokd.service restart running\n1022 other.service stop waiting\n"
    assert job_in(jobs, "hanokd.service") == "restart"
    assert job_in(jobs, "other.service") == "stop"
    assert job_in(jobs, "third.service") is None
    assert job_in("No jobs running.\n", "hanokd.service") is None


def test_limits_of_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("123456\n")
    (tmp_path / "pids.max").write_text("max\n")
    assert limit_in(tmp_path, "memory.max") == 123456
    assert limit_in(tmp_path, "pids.max") is None
    with pytest.raises(FileNotFoundError):
        limit_in(tmp_path, "cpu.weight")
