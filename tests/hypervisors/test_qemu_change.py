"""Changes of a real QEMU whose vCPUs do not run: what it is asked is what it knows.

What a guest makes of it is in tests/e2e/test_change.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.optional import CanResize, NotLive
from hanok.hypervisors.qemu import change
from hanok.hypervisors.qemu.arch import X86_64
from hanok.hypervisors.qemu.argv import HOTPLUG_PORTS, Platform, build_argv
from hanok.hypervisors.qemu.driver import QemuHypervisor
from hanok.hypervisors.qemu.process import QemuProcess
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.proc import SystemRunner, find_program
from hanok.storage.volumes import grow, virtual_size
from hanok.units import MIB

_TUNSETIFF, _TAP, _NO_PI, _VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
EMULATOR = "qemu-system-x86_64"
pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(find_program(EMULATOR) is None, reason="needs QEMU"),
]


def make_disk(folder: Path, name: str, port: int | None = None) -> Disk:
    path = folder / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], check=True)
    return Disk(name, path, DiskFormat.QCOW2, serial=name, port=port)


@pytest.fixture
async def process(short_tmp: Path, request: pytest.FixtureRequest) -> AsyncIterator[QemuProcess]:
    """A machine that waits for its first instruction, by default in mode para."""
    machine = Machine(
        uuid="11111111-2222-3333-4444-555555555555",
        name="still",
        cpus=1,
        memory=128 * MIB,
        mode=getattr(request, "param", Mode.PARA),
        folder=short_tmp,
        account=None,
        disks=(make_disk(short_tmp, "root"),),
        agent=False,
    )
    argv = [*build_argv(machine, Platform(X86_64, "tcg", "q35", sandbox=True)), "-S"]
    with subprocess.Popen([EMULATOR, *argv[1:]]) as started:
        found = QemuProcess(machine, started.pid)
        try:
            await found.wait_until_answering()
            yield found
        finally:
            await found.kill()
            started.wait()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest will ever answer: do not wait for one."""
    monkeypatch.setattr(change, "_GUEST_LIMIT", 0.2)


def test_the_driver_can_all_this() -> None:
    assert issubclass(QemuHypervisor, CanResize)
    assert QemuHypervisor.hotplug_ports == HOTPLUG_PORTS


async def test_disks_are_plugged_in_once_and_nothing_is_left_of_what_fails(
    process: QemuProcess, short_tmp: Path
) -> None:
    disk = make_disk(short_tmp, "data", port=0)
    await change.attach_disk(process, disk)
    await change.attach_disk(process, disk)
    assert "hot0-disk-dev" in await change._devices(process)
    missing = Disk("none", short_tmp / "none.qcow2", DiskFormat.QCOW2, port=1)
    before = await change._nodes(process)
    with pytest.raises(HypervisorError, match="No such file"):
        await change.attach_disk(process, missing)
    assert (await change._nodes(process)).keys() == before.keys()
    with pytest.raises(NotLive, match="has not let go"):
        await change.detach_disk(process, disk)


async def test_cards_are_plugged_in(process: QemuProcess) -> None:
    nic = Nic("52:54:00:00:00:01", "back", port=2)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"hk%d", _TAP | _NO_PI | _VNET_HDR))
        await change.attach_nic(process, nic, tap)
    finally:
        os.close(tap)
    assert "hot2-net-dev" in await change._devices(process)
    await change.detach_nic(process, Nic(nic.mac, "other", port=3))  # nothing is there


async def test_vcpus_come_up_to_the_room_there_is(process: QemuProcess) -> None:
    await change.set_cpus(process, 3)
    await change.set_cpus(process, 3)
    slots = await change._cpu_slots(process)
    assert sum("qom-path" in slot for slot in slots) == 3
    with pytest.raises(NotLive, match="room for 8"):
        await change.set_cpus(process, 9)
    with pytest.raises(NotLive, match="takes no vCPUs"):
        await change.set_cpus(process, 1)


async def test_memory_waits_for_the_guest_and_says_so(process: QemuProcess) -> None:
    with pytest.raises(NotLive, match="given back no more than 0 B"):
        await change.set_memory(process, 64 * MIB, 128 * MIB)
    with pytest.raises(NotLive, match="no room for more"):
        await change.set_memory(process, 256 * MIB, 128 * MIB)


async def test_a_disk_grows_and_never_shrinks(process: QemuProcess, short_tmp: Path) -> None:
    await change.grow_disk(process, 128 * MIB)
    await change.grow_disk(process, 64 * MIB)
    assert virtual_size(short_tmp / "root.qcow2") == 128 * MIB


@pytest.mark.parametrize("process", [Mode.FULL], indirect=True)
async def test_mode_full_has_no_ports(process: QemuProcess, short_tmp: Path) -> None:
    with pytest.raises(NotLive, match="mode full"):
        await change.attach_disk(process, make_disk(short_tmp, "data", port=0))
    with pytest.raises(NotLive, match="no balloon"):
        await change.set_memory(process, 64 * MIB, 128 * MIB)
    with pytest.raises(NotLive, match="room for 1"):
        await change.set_cpus(process, 2)


async def test_a_disk_file_grows_without_its_base(short_tmp: Path) -> None:
    """What its header names is not opened: a base that is not there is no obstacle."""
    base, path = make_disk(short_tmp, "base").path, short_tmp / "disk.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path)]
    subprocess.run(make, check=True)
    base.unlink()
    await grow(SystemRunner(), path, 128 * MIB, None)
    await grow(SystemRunner(), path, 64 * MIB, None)
    assert virtual_size(path) == 128 * MIB
