"""Changes of real guests of Xen while they run, seen from inside them, in its Dom0."""

from __future__ import annotations

from typing import Any

import pytest

from hanok.hypervisors.xen.toolstack import is_dom0
from hanok.units import MIB
from tests.daemon.harness import wait_until
from tests.e2e.conftest import Cli
from tests.e2e.dom0 import traces
from tests.e2e.web import SERVE, fetch

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not is_dom0(), reason="Xen is driven from its Dom0"),
]
_SIZES = "cat /sys/class/block/xvd*/size 2>/dev/null || true"


def sh(xen: Cli, name: str, script: str) -> str:
    return xen.ok("exec", name, "--", "sh", "-c", script).strip()


def sectors(size: int) -> str:
    return str(size // 512)


def memory_of(xen: Cli, name: str) -> int:
    """Return what the guest's kernel has, in KiB."""
    return int(sh(xen, name, "grep MemTotal /proc/meminfo").split()[1])


def card(xen: Cli, name: str, network: str) -> Any:
    """Return the VM's card on the network, as 'hanok show' tells of it."""
    return next(one for one in xen.json("show", name)["networks"] if one["network"] == network)


def change_shape(xen: Cli, name: str) -> None:
    """Take a vCPU and memory away, which is done at once, and ask for more, which waits."""
    assert sh(xen, name, "nproc") == "2"
    assert "pending" not in xen.ok("set", name, "--cpus", "1")
    wait_until(lambda: sh(xen, name, "nproc") == "1", 20, "a vCPU has gone")
    xen.ok("set", name, "--cpus", "2")
    wait_until(lambda: sh(xen, name, "nproc") == "2", 20, "it has come back")
    assert "vCPUs pending" in xen.ok("set", name, "--cpus", "3")
    before = memory_of(xen, name)
    xen.ok("set", name, "--memory", "128M")
    less = before - 24 * 1024  # of 32 MiB: the balloon goes by its own steps
    wait_until(lambda: memory_of(xen, name) < less, 30, "memory is given back")
    assert "memory pending" in xen.ok("set", name, "--memory", "192M")
    assert "disk pending" in xen.ok("set", name, "--disk", "320M")


def change_devices(xen: Cli, name: str) -> None:
    """Plug a disk and a card in, use them, and take the disk out and in again."""
    xen.ok("disk", "attach", name, "data", "--size", "64M")
    size = sectors(64 * MIB)
    look = ("exec", name, "--", "sh", "-c", f"grep -lx {size} /sys/class/block/xvd*/size")
    wait_until(lambda: xen(*look).returncode == 0, 30, f"{name} has found its disk")
    disk = xen.ok(*look).split("/")[4]
    sh(xen, name, f"mke2fs -q /dev/{disk} && mount -t ext2 /dev/{disk} /mnt && echo kept > /mnt/f")
    sh(xen, name, "umount /mnt")
    xen.ok("disk", "detach", name, "data")
    assert size not in sh(xen, name, _SIZES).split()
    xen.ok("disk", "attach", name, "data")
    xen.ok("set", name, "--add-network", "back")
    nic = card(xen, name, "back")
    assert nic["mac"] in sh(xen, name, "ip link")
    assert nic["address"] in sh(xen, name, "ip -4 addr")


def take_card_away(xen: Cli, name: str) -> None:
    """Take a card away again, while the guest runs."""
    mac = card(xen, name, "back")["mac"]
    xen.ok("set", name, "--remove-network", "back")
    assert mac not in sh(xen, name, "ip link")


@pytest.mark.parametrize("mode", ["para", "hybrid"])
def test_a_guest_is_changed_while_it_runs(xen: Cli, mode: str) -> None:
    before = traces()
    script = xen.daemon.home / "serve"
    script.write_text(SERVE)
    xen.ok(
        *("run", "micro", "--name", "web", "--mode", mode, "--memory", "160M", "--disk", "256M"),
        *("--cpus", "2", "--user-data", str(script), "--ready-url", "http://guest/"),
    )
    xen.ok("network", "create", "back")
    xen.ok("set", "web", "--publish", "18191:80")
    assert fetch(18191) == "web"
    change_shape(xen, "web")
    change_devices(xen, "web")
    xen.ok("set", "web", "--rename", "shop")
    assert sh(xen, "shop", "hostname") == "shop"
    xen.ok("restart", "shop")
    shown = xen.json("show", "shop")
    assert (shown["pending"], shown["memory"], shown["cpus"]) == ([], 192 * MIB, 3)
    assert sh(xen, "shop", "nproc") == "3"
    assert memory_of(xen, "shop") > 150 * 1024
    assert {sectors(320 * MIB), sectors(64 * MIB)} <= set(sh(xen, "shop", _SIZES).split())
    assert card(xen, "shop", "back")["address"] in sh(xen, "shop", "ip -4 addr")
    wait_until(lambda: fetch(18191) == "shop", 30, "it serves")
    take_card_away(xen, "shop")
    xen.ok("delete", "--force", "shop")
    xen.ok("network", "delete", "back")
    assert traces() == before


def test_a_guest_in_mode_full_is_changed_by_a_restart(xen: Cli) -> None:
    before = traces()
    xen.ok(
        *("run", "micro", "--name", "old", "--mode", "full", "--memory", "128M"),
        *("--disk", "256M"),
        limit=600,
    )
    assert "vCPUs pending" in xen.ok("set", "old", "--cpus", "2")
    said = xen.ok("disk", "attach", "old", "data", "--size", "64M")
    assert "mode full" in said
    assert "restart" in said
    xen.ok("restart", "old", limit=600)
    assert xen.json("show", "old")["pending"] == []
    assert sh(xen, "old", "nproc") == "2"
    assert sectors(64 * MIB) in sh(xen, "old", "cat /sys/class/block/sd*/size").split()
    xen.ok("delete", "--force", "old")
    assert traces() == before
