"""Changes of real guests while they run, seen from inside the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.daemon.harness import Daemon, wait_until
from tests.e2e.conftest import Cli
from tests.e2e.web import SERVE, fetch

pytestmark = pytest.mark.vm

GIB = 1024**3

_DATA_DISK = "grep -l data /sys/class/block/*/serial"


@pytest.fixture(scope="module")
def web(hanok: Cli, daemon: Daemon) -> str:
    """A guest in mode para that serves its name on port 80."""
    script = daemon.home / "serve"
    script.write_text(SERVE)
    hanok.ok(
        *("run", "micro", "--name", "web", "--memory", "192M", "--disk", "1G"),
        *("--user-data", str(script), "--ready-url", "http://web/"),
    )
    return "web"


def sh(hanok: Cli, name: str, script: str) -> str:
    return hanok.ok("exec", name, "--", "sh", "-c", script).strip()


def data_disk(hanok: Cli, name: str) -> str:
    """Return what a guest calls its disk "data", once it has found it."""
    look = ("exec", name, "--", "sh", "-c", _DATA_DISK)
    wait_until(lambda: hanok(*look).returncode == 0, 20, f"{name} has found its disk")
    return hanok.ok(*look).split("/")[4]


def test_a_port_is_published_and_taken_away(hanok: Cli, web: str) -> None:
    hanok.ok("set", web, "--publish", "18191:80")
    assert fetch(18191) == "web"
    hanok.ok("set", web, "--publish", "18192:80", "--unpublish", "18191")
    assert fetch(18192) == "web"
    with pytest.raises(OSError):
        fetch(18191)


def test_the_disk_grows_with_its_file_system(hanok: Cli, web: str) -> None:
    said = hanok.ok("set", web, "--disk", "2G")
    assert "has grown: ext4" in said
    assert sh(hanok, web, "cat /sys/class/block/vda/size") == str(2 * GIB // 512)
    blocks = int(sh(hanok, web, "df -k / | tail -1").split()[1])
    assert blocks * 1024 > 1.8 * GIB
    refused = hanok("set", web, "--disk", "1G")
    assert refused.returncode == 2
    assert b"cannot become smaller" in refused.stderr


def test_an_instant_clone_is_changed_like_any_other(hanok: Cli, web: str) -> None:
    hanok.ok("template", "create", "two", "--from", web)
    hanok.ok("clone", "two", "--name", "twin")
    assert sh(hanok, "twin", "nproc") == "1"
    hanok.ok("set", "twin", "--cpus", "3", "--disk", "3G")
    assert sh(hanok, "twin", "nproc") == "3"
    assert sh(hanok, "twin", "cat /sys/class/block/vda/size") == str(3 * GIB // 512)
    hanok.ok("disk", "attach", "twin", "data", "--size", "64M")
    disk = data_disk(hanok, "twin")
    assert sh(hanok, "twin", f"cat /sys/class/block/{disk}/size") == str(64 * 1024**2 // 512)
    hanok.ok("delete", "--force", "twin")
    hanok.ok("template", "delete", "two")


def test_vcpus_come_at_once_and_go_with_a_restart(hanok: Cli, web: str) -> None:
    hanok.ok("set", web, "--cpus", "2")
    assert sh(hanok, web, "nproc") == "2"
    refused = hanok("template", "create", "two", "--from", web)
    assert b"vCPUs were changed" in refused.stderr
    assert "vCPUs pending" in hanok.ok("set", web, "--cpus", "1")
    assert sh(hanok, web, "nproc") == "2"


def test_memory_is_given_back_at_once_and_more_waits_for_a_restart(hanok: Cli, web: str) -> None:
    before = int(sh(hanok, web, "grep MemTotal /proc/meminfo").split()[1])
    said = hanok.ok("set", web, "--memory", "160M")
    assert "memory pending" in said
    after = int(sh(hanok, web, "grep MemTotal /proc/meminfo").split()[1])
    assert 30_000 < before - after < 34_000  # 32 MiB
    hanok.ok("set", web, "--memory", "256M")
    assert int(sh(hanok, web, "grep MemTotal /proc/meminfo").split()[1]) == before
    pending = {one["field"]: one for one in hanok.json("show", web)["pending"]}
    assert pending["memory"]["wanted"] == "256 MiB"
    assert "restart" in pending["memory"]["needs"]


def test_a_data_disk_is_plugged_in_and_out(hanok: Cli, web: str) -> None:
    hanok.ok("disk", "attach", web, "data", "--size", "256M")
    disk = data_disk(hanok, web)
    assert sh(hanok, web, f"cat /sys/class/block/{disk}/size") == str(256 * 1024**2 // 512)
    sh(hanok, web, f"mke2fs -q /dev/{disk} && mount -t ext2 /dev/{disk} /mnt && echo kept > /mnt/f")
    sh(hanok, web, "umount /mnt")
    hanok.ok("disk", "detach", web, "data")
    assert hanok("exec", web, "--", "sh", "-c", _DATA_DISK).returncode != 0
    assert hanok.json("disk", "list", web) == [
        {"name": "data", "size": 256 * 1024**2, "attached": False}
    ]
    hanok.ok("disk", "attach", web, "data")
    disk = data_disk(hanok, web)
    assert sh(hanok, web, f"mount -t ext2 /dev/{disk} /mnt && cat /mnt/f") == "kept"
    sh(hanok, web, "umount /mnt")


def test_a_network_card_is_plugged_in(hanok: Cli, web: str) -> None:
    hanok.ok("network", "create", "back")
    said = hanok.ok("set", web, "--add-network", "back")
    assert "networks" in said
    nic = next(n for n in hanok.json("show", web)["networks"] if n["network"] == "back")
    links = sh(hanok, web, "ip link")
    assert nic["mac"] in links
    assert nic["address"] in sh(hanok, web, "ip -4 addr")


def test_another_name_is_known_everywhere(hanok: Cli, web: str) -> None:
    hanok.ok("set", web, "--rename", "shop")
    assert sh(hanok, "shop", "hostname") == "shop"
    assert hanok("show", "web").returncode != 0
    address = hanok.json("show", "shop")["networks"][0]["address"]
    wait_until(lambda: address in sh(hanok, "shop", "nslookup shop || true"), 10, "DNS knows it")
    assert fetch(18192) == "web"  # its port is still there


def test_what_is_pending_comes_with_a_restart_and_the_rest_stays(hanok: Cli, web: str) -> None:
    hanok.ok("restart", "shop")
    shown = hanok.json("show", "shop")
    assert shown["pending"] == []
    assert (shown["memory"], shown["cpus"]) == (256 * 1024**2, 1)
    assert sh(hanok, "shop", "nproc") == "1"
    assert int(sh(hanok, "shop", "grep MemTotal /proc/meminfo").split()[1]) > 200_000
    assert sh(hanok, "shop", "hostname") == "shop"
    assert sh(hanok, "shop", "cat /sys/class/block/vda/size") == str(2 * GIB // 512)
    disk = data_disk(hanok, "shop")
    assert sh(hanok, "shop", f"mount -t ext2 /dev/{disk} /mnt && cat /mnt/f") == "kept"
    sh(hanok, "shop", "umount /mnt")
    wait_until(lambda: fetch(18192) == "shop", 20, "it serves")
    # A disk and a card in their ports go again, after a restart too.
    hanok.ok("disk", "detach", "shop", "data", "--delete")
    mac = next(n for n in shown["networks"] if n["network"] == "back")["mac"]
    hanok.ok("set", "shop", "--remove-network", "back")
    assert mac not in sh(hanok, "shop", "ip link")
    hanok.ok("network", "delete", "back")
    hanok.ok("delete", "--force", "shop")


def test_mode_full_says_what_it_takes(hanok: Cli, daemon: Daemon, tmp_path: Path) -> None:
    hanok.ok("run", "micro", "--name", "old", "--mode", "full", "--memory", "128M", "--disk", "1G")
    said = hanok.ok("disk", "attach", "old", "data", "--size", "128M")
    assert "mode full" in said
    assert "restart" in said
    hanok.ok("set", "old", "--cpus", "2")
    hanok.ok("restart", "old")
    assert hanok.json("show", "old")["pending"] == []
    assert sh(hanok, "old", "nproc") == "2"
    assert str(128 * 1024**2 // 512) in sh(hanok, "old", "cat /sys/class/block/sd*/size").split()
    hanok.ok("delete", "--force", "old")


@pytest.mark.skipif(
    "HANOK_TEST_LAB" not in os.environ,
    reason="a Debian takes a minute to boot: HANOK_TEST_LAB=1 runs it",
)
def test_a_debian_is_changed_while_it_runs(hanok: Cli) -> None:
    hanok.ok("network", "create", "side")
    hanok.ok("run", "debian:12", "--name", "deb", "--memory", "512M", "--cold", limit=600)
    hanok.ok("set", "deb", "--cpus", "2", "--disk", "6G", "--add-network", "side")
    hanok.ok("disk", "attach", "deb", "data", "--size", "1G")
    assert sh(hanok, "deb", "nproc") == "2"
    disk = sh(hanok, "deb", "udevadm settle; readlink -f /dev/disk/by-id/virtio-data")
    assert sh(hanok, "deb", f"lsblk -bno SIZE {disk}") == str(GIB)
    assert int(sh(hanok, "deb", "df -B1 --output=size / | tail -1")) > 5.5 * GIB
    nic = next(n for n in hanok.json("show", "deb")["networks"] if n["network"] == "side")
    assert nic["address"] in sh(hanok, "deb", "ip -4 addr")
    hanok.ok("set", "deb", "--rename", "shop")
    hanok.ok("restart", "shop", limit=600)
    assert sh(hanok, "shop", "hostname; nproc") == "shop\n2"
    assert sh(hanok, "shop", "lsblk -bno SIZE /dev/disk/by-id/virtio-data") == str(GIB)
    hanok.ok("delete", "--force", "shop")
    hanok.ok("network", "delete", "side")
