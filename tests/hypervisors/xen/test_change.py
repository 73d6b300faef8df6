"""What a running domain is changed by: the commands of xl, on a Xen that is played.

Real Xen was not asked here: the forms of the commands are those of xl(1) of Xen 4.17.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.optional import CanHotplug, CanResize, NotLive
from hanok.hypervisors.xen import XenHypervisor
from hanok.hypervisors.xen.config import build_config
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.units import MIB
from tests.hypervisors.xen.stand_in import FakeXen, Wires
from tests.hypervisors.xen.test_config import FULL, PARA

MAC = "52:54:00:aa:bb:cc"


@pytest.fixture
def driver(driver: XenHypervisor) -> XenHypervisor:
    assert isinstance(driver, CanResize)
    assert isinstance(driver, CanHotplug)
    return driver


def small(machine: Machine, folder: Path) -> Machine:
    disk = Disk("root", folder / "disk.raw", DiskFormat.RAW)
    disk.path.touch()
    return dataclasses.replace(machine, folder=folder, disks=(disk,), nics=())


@pytest.fixture
async def uuid(driver: XenHypervisor, xen: FakeXen, tmp_path: Path) -> str:
    """A domain that runs, with room for two vCPUs."""
    machine = small(PARA, tmp_path)
    await driver.start(machine)
    for number in (0, 1):
        xen.store[f"/local/domain/1/cpu/{number}/availability"] = "online"
    xen.calls.clear()
    return machine.uuid


def asked(xen: FakeXen) -> list[tuple[str, ...]]:
    return [call for call in xen.calls if call[0] == "xl" and call[1] != "list"]


async def test_vcpus_up_to_those_it_was_made_with(
    driver: XenHypervisor, xen: FakeXen, uuid: str
) -> None:
    await driver.set_cpus(uuid, 1)
    await driver.set_cpus(uuid, 2)
    assert asked(xen) == [("xl", "vcpu-set", "1", "1"), ("xl", "vcpu-set", "1", "2")]
    with pytest.raises(NotLive, match="room for 2 vCPUs"):
        await driver.set_cpus(uuid, 3)


async def test_memory_by_the_balloon(driver: XenHypervisor, xen: FakeXen, uuid: str) -> None:
    await driver.set_memory(uuid, 256 * MIB, 512 * MIB)
    with pytest.raises(NotLive, match="512 MiB"):
        await driver.set_memory(uuid, 600 * MIB, 512 * MIB)
    assert asked(xen) == [("xl", "mem-set", "1", "256m"), ("xl", "mem-set", "1", "512m")]


async def test_a_disk_that_is_open_keeps_its_size(driver: XenHypervisor, uuid: str) -> None:
    with pytest.raises(NotLive, match="restart"):
        await driver.grow_disk(uuid, 1 << 30)


async def test_a_disk_is_attached_once_and_detached(
    driver: XenHypervisor, xen: FakeXen, uuid: str, tmp_path: Path
) -> None:
    disk = Disk("added-data", tmp_path / "data.raw", DiskFormat.RAW, port=1)
    disk.path.touch()
    await driver.attach_disk(uuid, disk)
    await driver.attach_disk(uuid, disk)
    text = f"format=raw,vdev=xvdr,access=rw,backendtype=qdisk,target={disk.path}"
    assert asked(xen) == [("xl", "block-attach", "1", text)]
    await driver.detach_disk(uuid, disk)
    assert asked(xen)[1:] == [("xl", "block-detach", "1", "xvdr")]


async def test_a_card_is_attached_and_plugged_into_its_network(
    driver: XenHypervisor, xen: FakeXen, wires: Wires, uuid: str
) -> None:
    nic = Nic(MAC, "back", port=0)
    await driver.attach_nic(uuid, nic, -1)
    assert asked(xen) == [
        ("xl", "network-attach", "1", "type=vif", f"mac={MAC}", "script=/bin/true")
    ]
    assert wires.plugged == [("back", uuid, "vif1.0")]
    assert xen.store["/local/domain/0/backend/vif/1/0/hotplug-status"] == "connected"
    await driver.detach_nic(uuid, nic)
    assert asked(xen)[1:] == [("xl", "network-detach", "1", "0")]
    await driver.detach_nic(uuid, nic)  # it is gone
    assert len(asked(xen)) == 2


async def test_what_was_plugged_in_is_there_after_the_guest_restarts(tmp_path: Path) -> None:
    disk = Disk("added-data", tmp_path / "data.raw", DiskFormat.RAW, port=0)
    machine = dataclasses.replace(small(PARA, tmp_path))
    config = build_config(dataclasses.replace(machine, disks=(*machine.disks, disk)))
    assert f"vdev=xvdq,access=rw,backendtype=qdisk,target={disk.path}" in config


async def test_mode_full_says_what_it_takes(
    driver: XenHypervisor, xen: FakeXen, tmp_path: Path
) -> None:
    machine = small(FULL, tmp_path)
    assert machine.mode is Mode.FULL
    await driver.start(machine)
    for change in (
        driver.set_cpus(machine.uuid, 2),
        driver.set_memory(machine.uuid, 64 * MIB, 128 * MIB),
        driver.attach_nic(machine.uuid, Nic(MAC, "back", port=0), -1),
    ):
        with pytest.raises(NotLive, match="restart"):
            await change
