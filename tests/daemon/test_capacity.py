"""Capacity with sharing: what clones cost is measured aside, and both policies hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hanok.app import make_daemon, prepare_home
from hanok.config import Settings, load_settings
from hanok.errors import HypervisorError, InvalidInput, NotAdmitted, NotFound
from hanok.hypervisors.base import Statistics
from hanok.hypervisors.fake import FakeHypervisor
from hanok.model.host import CapacityPolicy, HostResources, MemoryPolicy
from hanok.model.template import TemplateRecord
from hanok.model.vm import Clone, CloneKind, Mode, VmRecord, VmSpec, VmState, Wanted
from hanok.services.capacity import CapacityService
from hanok.services.footprints import Footprints
from hanok.services.parts import Parts, new_uuid
from hanok.store.base import PutTemplate, PutVm
from hanok.units import GIB, MIB
from tests.daemon.harness import Daemon, new_daemon
from tests.fake_image import fake_images

OVERHEAD = 32 * MIB  # of the fake hypervisor
HOST = HostResources(
    cpus=64, memory=9 * GIB, disk=1024 * GIB, disk_free=1024 * GIB, available=3 * GIB
)
SHARED = CapacityPolicy(memory_policy=MemoryPolicy.SHARED)


class Measured(FakeHypervisor):
    """A fake hypervisor whose machines take what the test says; others are gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.proportional: dict[str, int] = {}
        self.asked: list[str] = []
        self.answered = asyncio.Semaphore(0)

    async def statistics(self, uuid: str) -> Statistics:
        """See Hypervisor.statistics: half as much again is resident."""
        self.asked.append(uuid)
        self.answered.release()
        if uuid not in self.proportional:
            raise HypervisorError("it is gone")
        size = self.proportional[uuid]
        return Statistics(cpu_seconds=0, resident=size * 3 // 2, proportional=size)


class OnHost(CapacityService):
    """On a host that has always the same."""

    def resources(self) -> HostResources:
        return HOST


@pytest.fixture
def hypervisor(short_tmp: Path) -> Measured:
    return Measured(short_tmp / "fake")


@pytest.fixture
async def parts(short_tmp: Path, hypervisor: Measured) -> AsyncIterator[Parts]:
    settings = Settings(home=short_tmp, hypervisor="fake", policy=SHARED)
    prepare_home(settings)
    services = await make_daemon(settings)
    yield replace(services.parts, hypervisor=hypervisor)
    await services.close()


def vm_spec(name: str, memory: str = "256M") -> VmSpec:
    return VmSpec.model_validate(
        {"name": name, "image": "micro", "memory": memory, "disk": "64M", "networks": []}
    )


TEMPLATE = TemplateRecord(
    id="11111111-2222-3333-4444-555555555555",
    name="warm",
    source="none",
    spec=vm_spec("source"),
    mode=Mode.PARA,
    hypervisor="fake",
    image_id="none",
    instance_id="none",
    memory_used=64 * MIB,
    created=1,
)
ESTIMATE = OVERHEAD // 2 + 16 * MIB
WHOLE = 256 * MIB + OVERHEAD


def record(
    name: str,
    state: VmState,
    kind: CloneKind | None = CloneKind.INSTANT,
    *,
    fresh: bool = True,
    wanted: Wanted = Wanted.RUNNING,
    started: float | None = None,
) -> VmRecord:
    return VmRecord(
        uuid=new_uuid(),
        spec=vm_spec(name),
        wanted=wanted,
        created=1,
        uid=1,
        mode=Mode.PARA,
        hypervisor="fake",
        state=state,
        started=started,
        clone=Clone(template=TEMPLATE.id, kind=kind, fresh=fresh) if kind else None,
    )


def ready_clones(count: int, hypervisor: Measured, proportional: int) -> list[VmRecord]:
    clones = [record(f"c{n}", VmState.READY, fresh=False, started=n) for n in range(count)]
    hypervisor.proportional = {clone.uuid: proportional for clone in clones}
    return clones


async def put(parts: Parts, *records: VmRecord) -> None:
    await parts.store.commit(PutTemplate(TEMPLATE), *(PutVm(vm) for vm in records))


# What clones cost


async def test_without_clones_an_estimate_counts(parts: Parts) -> None:
    await put(parts)
    found = await OnHost(parts).fit_clones("warm")
    assert (found.cost_now, found.measured, found.cost_most) == (ESTIMATE, False, WHOLE)
    assert found.policy == "shared"
    assert found.by_resource["real-memory"] == 2 * GIB // ESTIMATE
    assert found.by_resource["memory"] == (32 * GIB - TEMPLATE.spec.memory) // WHOLE
    with pytest.raises(NotFound, match="no template named cold"):
        await OnHost(parts).fit_clones("cold")


async def test_clones_that_run_say_what_one_more_costs(parts: Parts, hypervisor: Measured) -> None:
    clones = ready_clones(100, hypervisor, 40 * MIB)
    await put(parts, *clones)
    service = OnHost(parts)
    found = await service.fit_clones(TEMPLATE.id)
    assert (found.cost_now, found.measured) == (40 * MIB, True)
    assert found.by_resource["real-memory"] == 2 * GIB // (40 * MIB)
    assert len(hypervisor.asked) == len(set(hypervisor.asked)) == 8
    assert {clones[0].uuid, clones[50].uuid} <= set(hypervisor.asked)
    await service.fit_clones("warm")
    assert len(hypervisor.asked) == 8, "measured again at once"


async def test_guaranteed_counts_a_clone_whole(parts: Parts, hypervisor: Measured) -> None:
    await put(parts, *ready_clones(1, hypervisor, 40 * MIB))
    settings = replace(parts.settings, policy=CapacityPolicy())
    found = await OnHost(replace(parts, settings=settings)).fit_clones("warm")
    assert (found.policy, found.cost_now, found.cost_most) == ("guaranteed", 40 * MIB, WHOLE)
    assert found.by_resource["memory"] == (8 * GIB - WHOLE - TEMPLATE.spec.memory) // WHOLE
    assert "real-memory" not in found.by_resource


async def test_admission_never_waits_for_a_measurement(parts: Parts, hypervisor: Measured) -> None:
    clones = ready_clones(3, hypervisor, 100 * MIB)
    await put(parts, *clones)
    service = OnHost(parts)
    lot = [vm_spec(f"new{n}") for n in range(21)]
    await service.admit_many(lot, clones, TEMPLATE.id)  # 21 * ESTIMATE is below 2 GiB
    assert hypervisor.asked == []
    async with asyncio.timeout(10):
        for _ in clones:
            await hypervisor.answered.acquire()
    with pytest.raises(NotAdmitted) as caught:
        await service.admit_many(lot, clones, TEMPLATE.id)
    assert caught.value.field == "real-memory"
    assert caught.value.expected == "at most 20"
    await service.admit_many(lot[:20], clones, TEMPLATE.id)
    assert len(hypervisor.asked) == 3, "measured again at once"


@pytest.mark.parametrize(
    ("pending", "cost_now"),
    [
        (record("clone", VmState.CREATING), ESTIMATE),
        (record("clone", VmState.STARTING), ESTIMATE),
        (record("clone-that-boots", VmState.STARTING, fresh=False), None),
        (record("linked", VmState.CREATING, CloneKind.LINKED), None),
        (record("vm", VmState.CREATING, None), None),
        (record("started-vm", VmState.RUNNING, None), 0),
        (record("started-clone", VmState.READY), 0),
        (record("stopped", VmState.STOPPED, wanted=Wanted.STOPPED), 0),
    ],
    ids=lambda value: value.spec.name if isinstance(value, VmRecord) else "",
)
async def test_what_is_admitted_and_has_not_started_counts(
    parts: Parts, pending: VmRecord, cost_now: int | None
) -> None:
    await put(parts)
    demand, frozen = await OnHost(parts).demands([pending])
    assert (frozen.overhead, frozen.cost_now) == (TEMPLATE.spec.memory, 0)
    assert demand.cost_now == cost_now  # none: all that it can come to take


async def test_a_vm_does_not_count_beside_itself(parts: Parts) -> None:
    await put(parts)
    own = record("own", VmState.STARTING, None)
    large = VmSpec.model_validate({**dict(own.spec), "memory": "2000M"})
    await OnHost(parts).admit(large, [own])
    other = record("other", VmState.STARTING, None)
    with pytest.raises(NotAdmitted) as caught:
        await OnHost(parts).admit(large, [own, other])
    assert caught.value.field == "real-memory"


# Measuring


async def test_totals_are_measured_once_and_again_when_vms_come(hypervisor: Measured) -> None:
    now = 0.0
    footprints = Footprints(hypervisor, clock=lambda: now)
    clones = ready_clones(4, hypervisor, 40 * MIB)
    totals = await footprints.totals(clones[:3])
    assert (totals.used, totals.shared) == (120 * MIB, 60 * MIB)
    assert await footprints.totals(clones[:3]) == totals
    assert len(hypervisor.asked) == 3
    assert (await footprints.totals(clones)).used == 160 * MIB
    hypervisor.proportional.clear()
    now = 60.0
    assert (await footprints.totals(clones)).used == 0


async def test_what_was_known_of_clones_outlives_them(hypervisor: Measured) -> None:
    now = 0.0
    footprints = Footprints(hypervisor, clock=lambda: now)
    clones = ready_clones(2, hypervisor, 40 * MIB)
    assert await footprints.measure_clones(TEMPLATE.id, clones) == (40 * MIB, 40 * MIB)
    now = 60.0
    hypervisor.proportional.clear()
    assert await footprints.measure_clones(TEMPLATE.id, clones) == (40 * MIB, 40 * MIB)
    assert await footprints.measure_clones(TEMPLATE.id, []) == (40 * MIB, 40 * MIB)
    assert footprints.of_clones("another") == ()


# A whole daemon


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    with fake_images() as folder:
        yield folder


def run_spec(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "micro", "memory": "128M", "disk": "1G", **fields}


def test_a_host_that_shares_says_so(images: Path) -> None:
    variables = {"HANOK_MEMORY_POLICY": "shared", "HANOK_MEMORY_FACTOR": "3.5"}
    with new_daemon("fake", images, **variables, HANOK_SHARED_RESERVE="64M") as daemon:
        daemon.run("web")
        host = daemon.client.host()
        assert (host["memory_policy"], host["memory_factor"]) == ("shared", 3.5)
        assert host["shared_reserve"] == 64 * MIB
        assert host["sold"] == host["used"] == 128 * MIB + OVERHEAD
        assert host["shared"] == 0
        rows = {room["resource"]: room for room in host["rooms"]}
        assert list(rows) == ["memory", "real-memory", "cpus", "disk"]
        assert rows["memory"]["capacity"] == int(3.5 * (host["memory"] - GIB))
        assert rows["real-memory"]["reserved"] == 64 * MIB
        _refuses_what_is_sold_too_often(daemon)


def _refuses_what_is_sold_too_often(daemon: Daemon) -> None:
    with pytest.raises(NotAdmitted, match=r"to sell at 3\.5 times what there is") as caught:
        daemon.client.run(run_spec("huge", memory="4096G"))
    assert caught.value.field == "memory"
    with pytest.raises(NotFound):
        daemon.client.fit({"template": "none"})
    with pytest.raises(InvalidInput) as refused:
        daemon.client.fit({"template": "none", "cpus": 2})
    assert refused.value.expected == "a template or a shape, not both"


def test_a_host_that_is_full_for_real_refuses(images: Path) -> None:
    variables = {"HANOK_MEMORY_POLICY": "shared", "HANOK_SHARED_RESERVE": "4096G"}
    with new_daemon("fake", images, **variables) as daemon:
        with pytest.raises(NotAdmitted) as caught:
            daemon.client.run(run_spec("web"))
        assert caught.value.field == "real-memory"
        assert "4 TiB that stay free" in caught.value.message
        assert daemon.client.fit({})["limit"] == "real-memory"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HANOK_MEMORY_POLICY", "generous"),
        ("HANOK_MEMORY_FACTOR", "0.5"),
        ("HANOK_MEMORY_FACTOR", "65"),
        ("HANOK_MEMORY_FACTOR", "nan"),
        ("HANOK_SHARED_RESERVE", "much"),
        ("HANOK_CPU_RATIO", "1025"),
    ],
)
def test_policies_that_make_no_sense(name: str, value: str) -> None:
    with pytest.raises(InvalidInput):
        load_settings({"HANOK_HOME": "/tmp/hk", name: value})


def test_policies_of_the_environment() -> None:
    policy = load_settings(
        {
            "HANOK_HOME": "/tmp/hk",
            "HANOK_MEMORY_POLICY": "shared",
            "HANOK_MEMORY_FACTOR": "12",
            "HANOK_SHARED_RESERVE": "2G",
            "HANOK_CPU_RATIO": "1024",
        }
    ).policy
    assert policy.memory_policy is MemoryPolicy.SHARED
    assert (policy.memory_factor, policy.shared_reserve) == (12, 2 * GIB)
    assert policy.cpu_ratio == 1024
