"""A host under a Type 1 hypervisor: what there is, is what the hypervisor has, not this system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hanok.app import make_backends, make_daemon, prepare_home
from hanok.config import Settings
from hanok.errors import InvalidInput
from hanok.hypervisors.fake import FakeHypervisor
from hanok.hypervisors.xen import XenHypervisor
from hanok.images.library import ImageLibrary
from hanok.model.host import HostShare
from hanok.model.vm import VmSpec
from hanok.network.keepers import KeeperNetworks
from hanok.proc import SystemRunner
from hanok.services.capacity import CapacityService
from hanok.services.parts import Parts
from hanok.units import GIB, MIB

SHARE = HostShare(
    memory=64 * GIB,
    free=40 * GIB,
    cpus=32,
    scheduler="credit2",
    capabilities=("pv", "hvm", "hap"),
    own_memory=4 * GIB,
    own_cpus=4,
    own_cpu_seconds=12.5,
)


class Below(FakeHypervisor):
    """A fake hypervisor that owns the host."""

    seen: HostShare | None = SHARE

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.looks: list[float] = []

    async def look(self, age: float) -> None:
        self.looks.append(age)

    def share(self) -> HostShare | None:
        return self.seen


@pytest.fixture
async def parts(short_tmp: Path) -> AsyncIterator[Parts]:
    settings = Settings(home=short_tmp, hypervisor="fake")
    prepare_home(settings)
    services = await make_daemon(settings)
    yield replace(services.parts, hypervisor=Below(short_tmp / "fake"))
    await services.close()


def test_what_dom0_has_beyond_the_reserve_is_nobody_elses(parts: Parts) -> None:
    found = CapacityService(parts).resources()
    assert parts.settings.policy.reserve_memory == 1 * GIB
    assert found.memory == 64 * GIB - 3 * GIB
    assert found.available == 40 * GIB
    assert found.cpus == 32


def test_a_small_dom0_is_within_the_reserve(parts: Parts) -> None:
    small = Below(parts.settings.home / "small")
    small.seen = SHARE.model_copy(update={"own_memory": 512 * MIB})
    assert CapacityService(replace(parts, hypervisor=small)).resources().memory == 64 * GIB


def test_before_the_first_probe_this_system_is_all_that_is_known(parts: Parts) -> None:
    unseen = Below(parts.settings.home / "unseen")
    unseen.seen = None
    service = CapacityService(replace(parts, hypervisor=unseen))
    assert service.share() is None
    assert service.resources().cpus < 32


async def test_people_are_told_what_is_and_an_admission_does_not_wait_for_it(parts: Parts) -> None:
    below, service = parts.hypervisor, CapacityService(parts)
    assert isinstance(below, Below)
    await service.fit(1, 256 * MIB, 1 * GIB)
    await service.admit(VmSpec(name="one", image="micro", memory=256 * MIB, disk=1 * GIB), [])
    shown, admitted = below.looks
    assert shown <= 2 < admitted <= 60


async def test_xen_can_be_asked_for_and_others_are_named(short_tmp: Path) -> None:
    runner = SystemRunner()
    images = ImageLibrary(short_tmp / "images", runner, None)
    xen = Settings(home=short_tmp, hypervisor="xen")
    hypervisor, networks = await make_backends(xen, runner, images)
    assert isinstance(hypervisor, XenHypervisor)
    assert isinstance(networks, KeeperNetworks)
    with pytest.raises(InvalidInput) as caught:
        await make_backends(Settings(home=short_tmp, hypervisor="vmware"), runner, images)
    assert caught.value.field == "HANOK_HYPERVISOR"
    assert "xen" in (caught.value.expected or "")
