"""VMs that met a full file system, without guests: what is kept of it, and how they go on.

With real guests and QEMU: tests/e2e/test_full_disk.py.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hanok.app import make_daemon, prepare_home
from hanok.config import Settings
from hanok.errors import DiskFull, NotAdmitted
from hanok.hypervisors.base import RunState
from hanok.hypervisors.fake import FakeHypervisor
from hanok.model.host import CapacityPolicy
from hanok.model.template import TemplateRequest
from hanok.model.vm import VmRecord, VmSpec, VmState, Wanted
from hanok.services.bundle import Services
from hanok.units import MIB
from tests.fake_image import fake_images
from tests.full import Small, small_file_system
from tests.machine import patient

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, as root may")

_SPEC = VmSpec.model_validate({"name": "a", "image": "micro", "memory": "128M", "disk": "64M"})


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A data directory whose VMs are on a file system of 200 MiB."""
    with (
        tempfile.TemporaryDirectory(prefix="hk-", dir="/tmp") as name,
        fake_images() as images,
        small_file_system(Path(name) / "vms", 200 * MIB),
    ):
        Path(name).chmod(0o711)
        found = Settings(
            Path(name),
            hypervisor="fake",
            shared_images=images,
            warm_limit=0,
            policy=CapacityPolicy(reserve_disk=MIB),
        )
        prepare_home(found)
        yield found


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[Services, FakeHypervisor]]:
    """Give the services of a daemon that has taken over what there is."""
    services = await make_daemon(settings)
    hypervisor = services.parts.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    try:
        await services.recovery.run()
        yield services, hypervisor
    finally:
        await services.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until ``holds``."""
    async with asyncio.timeout(patient(20)):
        while not await holds():  # noqa: ASYNC110  it is in the store, which tells nobody
            await asyncio.sleep(0.02)


async def has_state(services: Services, state: VmState) -> bool:
    return (await services.parts.vm("a")).state is state


async def starved(services: Services, hypervisor: FakeHypervisor, small: Small) -> VmRecord:
    """Return a VM that is paused since there is no room."""
    if not await services.parts.store.vms():
        operation = await services.vms.run(_SPEC)
        assert (await services.operations.wait(operation.id)).error is None
    small.fill(leave=MIB)
    hypervisor.starve((await services.parts.vm("a")).uuid)
    await until(lambda: has_state(services, VmState.PAUSED))
    return await services.parts.vm("a")


async def test_a_starved_vm_says_why_and_goes_on_by_itself(settings: Settings) -> None:
    small = Small(settings.vms)
    async with serving(settings) as (services, hypervisor):
        record = await starved(services, hypervisor, small)
        assert (record.wanted, record.starved) == (Wanted.RUNNING, True)
        for words in ("no space left", str(settings.vms), "1 MiB left", "grow by", "64 MiB"):
            assert words in (record.reason or "")
        with pytest.raises(DiskFull, match="a to go on: it needs 64 MiB"):
            await services.vms.resume("a")
        small.empty()
        await until(lambda: has_state(services, VmState.READY))
        record = await services.parts.vm("a")
        assert (record.starved, record.reason) == (False, None)
        assert await hypervisor.state(record.uuid) is RunState.RUNNING
        told = [event.name for event in await services.parts.events.recent()]
        assert [name for name in told if name in ("io-error", "resumed")] == ["io-error", "resumed"]


async def test_a_starved_vm_is_resumed_by_hand_and_stopped(settings: Settings) -> None:
    small = Small(settings.vms)
    async with serving(settings) as (services, hypervisor):
        await starved(services, hypervisor, small)
        small.empty()
        operation = await services.vms.resume("a")
        assert (await services.operations.wait(operation.id)).error is None
        assert await has_state(services, VmState.READY)
        await starved(services, hypervisor, small)
        operation = await services.vms.stop("a", force=True, timeout=None)
        assert (await services.operations.wait(operation.id)).error is None
        record = await services.parts.vm("a")
        assert (record.state, record.starved) == (VmState.STOPPED, False)


async def test_the_next_daemon_knows_who_is_starved(settings: Settings) -> None:
    small = Small(settings.vms)
    async with serving(settings) as (services, hypervisor):
        await starved(services, hypervisor, small)
    async with serving(settings) as (services, hypervisor):
        record = await services.parts.vm("a")
        assert (record.state, record.starved) == (VmState.PAUSED, True)
        assert await hypervisor.state(record.uuid) is RunState.PAUSED
        small.empty()
        await until(lambda: has_state(services, VmState.READY))


async def test_an_error_that_the_guest_is_told_pauses_nothing(settings: Settings) -> None:
    async with serving(settings) as (services, hypervisor):
        operation = await services.vms.run(_SPEC)
        await services.operations.wait(operation.id)
        uuid = (await services.parts.vm("a")).uuid
        hypervisor._tell(uuid, "io-error", "read on disk0: Input/output error (told to the guest)")

        async def is_told() -> bool:
            events = await services.parts.events.recent()
            return any(event.name == "io-error" for event in events)

        await until(is_told)
        assert await has_state(services, VmState.READY)


async def test_a_template_without_room_says_how_much_and_leaves_nothing(settings: Settings) -> None:
    with small_file_system(settings.templates, 4 * MIB) as small:
        async with serving(settings) as (services, _):
            operation = await services.vms.run(_SPEC)
            await services.operations.wait(operation.id)
            small.fill()
            wanted = TemplateRequest(name="t", source="a")
            operation = await services.templates.create(wanted)
            error = (await services.operations.wait(operation.id)).error
            assert error is not None
            assert (error.code, str(settings.templates) in error.detail) == ("disk-full", True)
            assert "the memory and the disk of a: it needs 128" in error.detail
            assert await services.parts.store.templates() == []
            assert [one.name for one in settings.templates.iterdir()] == ["lost+found"]
            assert await has_state(services, VmState.READY)
            small.empty()
            operation = await services.templates.create(wanted)
            assert (await services.operations.wait(operation.id)).error is None


async def test_what_a_file_system_of_its_own_has_stays(settings: Settings) -> None:
    folders = [settings.vms, settings.templates, settings.uploads]
    for folder in folders:
        (folder / "lost+found").mkdir(parents=True)
    async with serving(settings):
        assert all((folder / "lost+found").is_dir() for folder in folders)


async def test_a_disk_that_is_not_admitted_names_the_file_system(settings: Settings) -> None:
    async with serving(settings) as (services, _):
        with pytest.raises(NotAdmitted) as caught:
            await services.vms.run(_SPEC.model_copy(update={"disk": 2 * 2**40}))
        assert str(settings.vms) in caught.value.message
        assert caught.value.field == "disk"
