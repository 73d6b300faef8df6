"""A plain Debian server is made a Type 1 host and taken back, by SeaBIOS and by OVMF.

The server has its own boot loader; what is broken on purpose must bring it back as Linux without
anyone's hands. About ten minutes for each firmware, in software emulation.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.images.payload import make_payload, payload_digest
from hanok.proc import SystemRunner
from tests.daemon.harness import wait_until
from tests.lab.server.image import server_disk
from tests.lab.server.machine import ServerVm, has_ovmf, running
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(3600)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]

HANOK = "/opt/hanok/bin/hanok"
BOOT_FILES = "/boot/grub/grub.cfg /boot/grub/grubenv"
OWN_FILES = (
    "/etc/default/grub.d/hanok-xen.cfg",
    "/etc/grub.d/45_hanok_xen",
    "/etc/systemd/system/hanok-xen-healthy.service",
)


@pytest.fixture(scope="module")
def payload() -> Iterator[Path]:
    """A disk with this Hanok."""
    with tempfile.TemporaryDirectory(prefix="hk-payload-", dir="/tmp") as name:
        folder = Path(name)
        work, disk = folder / "work", folder / "hanok.img"
        work.mkdir()
        asyncio.run(make_payload(disk, work, payload_digest(), SystemRunner()))
        yield disk


@pytest.fixture(params=["seabios", "ovmf"])
def server(request: pytest.FixtureRequest, payload: Path) -> Iterator[ServerVm]:
    """A server as its installer left it: it has made its own boot entries and booted by them."""
    firmware = request.param
    if firmware == "ovmf" and not has_ovmf():
        pytest.skip("the package ovmf is not installed")
    with tempfile.TemporaryDirectory(prefix="hk-server-", dir="/tmp") as name:
        folder = Path(name)
        disk = folder / "disk.qcow2"
        base = ("-b", str(server_disk()), "-F", "qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)], check=True)
        with running(folder, disk, payload, firmware) as vm:
            vm.sh("update-grub", 300)
            vm.reboot()
            vm.sh("mount -o ro LABEL=hanok-opt /opt/hanok")
            yield vm


def attempt(vm: ServerVm) -> str:
    """Return what GRUB remembers of an attempt to start Xen."""
    return vm.sh("grub-editenv list").strip()


def mounted(vm: ServerVm) -> None:
    vm.sh("mountpoint -q /opt/hanok || mount -o ro LABEL=hanok-opt /opt/hanok")


def test_a_server_boots_xen_comes_back_by_itself_and_is_what_it_was(server: ServerVm) -> None:
    assert not server.on_xen()
    efi = server.try_sh("test -d /sys/firmware/efi")[0] == 0
    before = server.sh(f"sha256sum {BOOT_FILES}")
    packages = server.sh("dpkg-query -W")

    shown = server.sh(f"{HANOK} host prepare --type 1 --dry-run --dom0-memory 1G")
    assert "+GRUB_DEFAULT=hanok-xen" in shown
    assert "install xen-system-amd64 qemu-system-xen isolinux syslinux-common" in shown
    assert server.sh(f"sha256sum {BOOT_FILES}") == before
    assert server.sh("dpkg-query -W") == packages

    server.sh(f"{HANOK} host prepare --type 1 --dom0-memory 1G", 900)
    assert "Nothing to change" in server.sh(f"{HANOK} host prepare --type 1 --dom0-memory 1G")

    # Xen, and once it is healthy GRUB is told.
    server.reboot()
    assert server.on_xen()
    assert (server.try_sh("test -d /sys/firmware/efi")[0] == 0) == efi
    _name, _id, memory, cpus, *_ = server.sh("xl list 0").splitlines()[1].split()
    assert (memory, cpus) == ("1024", "2")
    wait_until(lambda: attempt(server) == "", 120, "GRUB was told that Xen is healthy")

    # A Xen that cannot be loaded: the same boot starts Linux.
    server.sh("cp /boot/xen-4.17-amd64.gz /root/ && truncate -s 100000 /boot/xen-4.17-amd64.gz")
    server.reboot()
    assert not server.on_xen()
    assert "Xen could not be loaded: starting Linux without it" in server.console
    server.sh("cp /root/xen-4.17-amd64.gz /boot/")

    # A Xen that panics: it reboots, and that boot starts Linux.
    server.sh("sed -i 's/dom0_mem=1024M,max:1024M/dom0_mem=1M,max:1M/' /boot/grub/grub.cfg")
    server.reboot()
    assert not server.on_xen()
    assert "Panic on CPU 0" in server.console
    assert attempt(server) == "hanok_xen_try=1"

    mounted(server)
    done = server.sh(f"{HANOK} host prepare --type 2", 900)
    assert "those of before, byte for byte" in done
    assert server.sh(f"sha256sum {BOOT_FILES}") == before
    assert server.sh("dpkg-query -W") == packages
    for path in OWN_FILES:
        server.sh(f"test ! -e {path}")
    assert "not prepared" in server.sh(f"{HANOK} host prepare --type 2")
    server.reboot()
    assert not server.on_xen()
