"""Guests that are no Debian and no Linux: GNU Mach, memtest86+, a UEFI shell, Alpine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.model.image import Image
from tests import strangers
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.e2e.conftest import Cli
from tests.images.library import library_of_its_own
from tests.screens import Picture, look

pytestmark = pytest.mark.vm

# What the tests looked at is kept there, for people.
_KEEP = os.environ.get("HANOK_TEST_PICTURES")
_PANIC = (
    "panic ../kern/bootstrap.c:181: bootstrap_create: No bootstrap code loaded with the kernel!"
)


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon with a library of its own: what is imported here concerns nobody else."""
    image, folder = micro_image
    with library_of_its_own(image, folder) as images, new_daemon("qemu", images) as started:
        yield started


def seen(hanok: Cli, name: str) -> Picture:
    picture = hanok("screenshot", name, "-").stdout
    if _KEEP:
        Path(_KEEP, f"{name}.png").write_bytes(picture)
    return look(picture)


def test_gnu_mach_speaks_panics_and_is_a_crash(hanok: Cli) -> None:
    kernel = ("--format", "kernel", "--cmdline", "console=com0 noide")
    hanok.ok("image", "import", str(strangers.gnu_mach()), "--name", "mach", *kernel)
    # Its console is a serial port, and the text that it says first makes it ready.
    ready = ("--ready", "console:Probing PCI hardware")
    hanok.ok("run", "own:mach", "--name", "mach", "--memory", "128M", *ready)
    shown = hanok.json("show", "mach")
    assert (shown["state"], shown["mode"], shown["image"]) == ("ready", "full", "own:mach")
    assert "GNU Mach 1.8" in hanok.ok("logs", "mach")
    # It finds no servers to start, after minutes of looking for cards of its time, and gives up.
    wait_until(lambda: hanok.json("show", "mach")["state"] == "failed", 240, "its panic is seen")
    reason = hanok.json("show", "mach")["reason"]
    assert reason.startswith(f"the guest's kernel panicked: {_PANIC}")
    assert "last lines: " in reason
    assert "RTC time is" in reason.partition("last lines: ")[2]
    assert any(line["name"] == "failed" for line in hanok.daemon.client.events(follow=False))
    # It can still be looked at, and goes without being asked first.
    assert seen(hanok, "mach").lit > 0
    hanok.ok("delete", "mach", limit=30)


def test_what_is_no_bare_kernel_is_bad_input(hanok: Cli, tmp_path: Path) -> None:
    packed, other = tmp_path / "mach.gz", tmp_path / "other"
    packed.write_bytes(b"\x1f\x8b" + bytes(600))
    other.write_bytes(b"\x7fELF" + bytes(9000))
    for file, words in ((packed, b"gunzip"), (other, b"32-bit multiboot kernel")):
        done = hanok("image", "import", str(file), "--name", "wrong", "--format", "kernel")
        assert done.returncode == 2
        assert words in done.stderr
    done = hanok("image", "import", str(other), "--name", "wrong", "--cmdline", "x")
    assert done.returncode == 2
    assert b"only a kernel has a command line" in done.stderr


def test_memtest_is_seen_on_its_screen(hanok: Cli) -> None:
    kernel = ("--format", "kernel", "--os", "memtest86+ 6")
    hanok.ok("image", "import", str(strangers.memtest()), "--name", "memtest", *kernel)
    done = hanok("run", "own:memtest", "--name", "mt", "--memory", "64M", "--mode", "para")
    assert done.returncode == 2
    assert b"mode para" in done.stderr
    hanok.ok("run", "own:memtest", "--name", "mt", "--memory", "64M")

    def is_blue() -> bool:
        found = seen(hanok, "mt")
        return found.colours >= 4 and found.lit > found.width * found.height // 2

    wait_until(is_blue, 120, "its screen is there")
    hanok.ok("delete", "mt", "--force")


def test_the_uefi_shell_is_seen_on_its_screen(hanok: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    uefi = ("--format", "raw", "--firmware", "uefi", "--no-cloud-init")
    hanok.ok("image", "import", str(empty), "--name", "nothing", *uefi)
    ready = ("--ready", "console:Shell>", "--ready-timeout", "240")
    hanok.ok("run", "own:nothing", "--name", "efi", "--mode", "full", "--memory", "256M", *ready)
    found = seen(hanok, "efi")
    assert (found.width, found.height) >= (800, 600)
    assert found.colours >= 3
    assert found.lit > 5000
    hanok.ok("delete", "efi", "--force")


@pytest.mark.skipif(
    not os.environ.get("HANOK_TEST_LAB"),
    reason="takes minutes to boot without KVM: HANOK_TEST_LAB=1",
)
def test_alpine_boots_from_its_disk_and_has_its_address_by_dhcp(hanok: Cli) -> None:
    disk = ("--no-cloud-init", "--agent", "--os", "Alpine Linux 3.23")
    hanok.ok("image", "import", str(strangers.alpine()), "--name", "alpine", *disk)
    hanok.ok("run", "own:alpine", "--name", "alpine", "--memory", "256M")
    shown = hanok.json("show", "alpine")
    assert (shown["state"], shown["firmware"]) == ("ready", "bios")
    assert shown["evidence"]["disk_driver"] == "virtio_blk"
    assert shown["evidence"]["nic_driver"] == "virtio_net"
    look = "cat /etc/os-release; ip -4 -o addr show eth0; ip route"
    said = hanok.ok("exec", "alpine", "--", "sh", "-c", look)
    assert 'NAME="Alpine Linux"' in said
    (address,) = shown["addresses"]
    assert f"inet {address}/" in said
    assert "default via" in said
    hanok.ok("stop", "alpine")
    hanok.ok("delete", "alpine")
