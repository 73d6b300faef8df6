"""Freezing and cloning, asked of every hypervisor that can, in the same words."""

from __future__ import annotations

import asyncio
import dataclasses
import os

import pytest

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Disk, Machine, RunState
from hanok.hypervisors.optional import CanFreeze
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.units import MIB
from tests.hypervisors.frozen import MARK, frozen, left_of, nothing, room_for, up
from tests.hypervisors.rigs import LIMIT, Driver, Follower, Rig, agent_of


async def test_what_cannot_be_frozen_says_why(rig: Rig) -> None:
    driver = rig.new_driver()
    if rig.xen:
        assert not isinstance(driver, CanFreeze)
        return
    assert isinstance(driver, CanFreeze)
    machine = await rig.new_machine()
    dumb = dataclasses.replace(machine, agent=False)
    assert (driver.freeze_obstacle(machine) is None) == (rig.mode is Mode.PARA)
    assert "mode full" in (driver.freeze_obstacle(dataclasses.replace(dumb, mode=Mode.FULL)) or "")
    assert driver.freeze_obstacle(dumb)
    await driver.start(machine)
    loader = dataclasses.replace(await rig.new_machine("loader"), agent=False)
    with room_for(machine, rig.home) as (memory, state), pytest.raises(HypervisorError):
        await driver.freeze(machine.uuid, loader, (), memory, state, nothing)
    assert await driver.state(machine.uuid) is RunState.RUNNING
    assert left_of(rig, loader) == []


async def test_the_fingerprint_is_the_same_again(freezer: Rig) -> None:
    first = await freezer.new_driver().fingerprint()
    assert first
    assert await freezer.new_driver().fingerprint() == first


async def test_a_machine_goes_on_while_clones_go_on_from_its_memory(freezer: Rig) -> None:
    driver = freezer.new_driver()
    events = Follower(driver)
    source = await freezer.new_machine("source")
    seen: list[RunState] = []

    async def look() -> None:
        seen.append(await driver.state(source.uuid))

    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"before")
        async with frozen(freezer, driver, source, while_paused=look) as template:
            assert seen == [RunState.PAUSED]
            assert await driver.state(source.uuid) is RunState.RUNNING
            await agent.write_file(MARK, b"after")
            clones = [await template.new_clone(name) for name in ("one", "two")]
            for clone in clones:
                async with up(driver, clone) as there:
                    assert await there.read_file(MARK) == b"before"
                    await there.write_file(MARK, clone.name.encode())
            for clone in clones:
                async with agent_of(driver, clone) as there:
                    assert await there.read_file(MARK) == clone.name.encode()
            assert await agent.read_file(MARK) == b"after"
            for clone in clones:
                await driver.kill(clone.uuid)
                assert await driver.state(clone.uuid) is RunState.ABSENT
    assert [event.name for event in events.seen if event.uuid == source.uuid] == []


async def test_a_clone_is_paused_until_it_is_resumed(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source = await freezer.new_machine("source")
    async with up(driver, source), frozen(freezer, driver, source) as template:
        clone = await template.new_clone("clone")
        await driver.start(clone)
        assert await driver.state(clone.uuid) is RunState.PAUSED
        await driver.start(clone)
        assert await driver.state(clone.uuid) is RunState.PAUSED
        await driver.resume(clone.uuid)
        assert await driver.state(clone.uuid) is RunState.RUNNING
        await driver.pause(clone.uuid)
        assert await driver.state(clone.uuid) is RunState.PAUSED
        await driver.kill(clone.uuid)
        assert await driver.state(source.uuid) is RunState.RUNNING


async def test_a_clone_is_adopted_paused_or_running(freezer: Rig) -> None:
    first = freezer.new_driver()
    source = await freezer.new_machine("source")
    async with up(first, source), frozen(freezer, first, source) as template:
        clones = [await template.new_clone(name) for name in ("paused", "running")]
        for clone in clones:
            await first.start(clone)
        await first.resume(clones[1].uuid)
        await first.close()
        second = freezer.new_driver()
        assert await second.adopt(clones[0]) is RunState.PAUSED
        assert await second.adopt(clones[1]) is RunState.RUNNING
        await second.resume(clones[0].uuid)
        for clone in clones:
            async with agent_of(second, clone) as agent:
                assert (await agent.exec(["true"])).exit_status == 0


async def test_a_clone_powers_itself_off_when_asked(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source = await freezer.new_machine("source")
    async with up(driver, source), frozen(freezer, driver, source) as template:
        clone = await template.new_clone("clone")
        async with up(driver, clone):
            async with asyncio.timeout(LIMIT):  # a press before the guest listens is lost
                while not await driver.wait_stopped(clone.uuid, 5):
                    await driver.ask_stop(clone.uuid)
        assert await driver.state(source.uuid) is RunState.RUNNING


async def test_a_clone_can_be_frozen_too(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source = await freezer.new_machine("source")
    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"first")
        async with frozen(freezer, driver, source) as template:
            clone = await template.new_clone("clone")
            async with up(driver, clone) as there:
                assert await there.read_file(MARK) == b"first"
                await there.write_file(MARK, b"second")
                async with frozen(freezer, driver, clone, name="again") as again:
                    assert (await there.exec(["true"])).exit_status == 0
                    await driver.kill(source.uuid)
                    grandchild = await again.new_clone("grandchild")
                    if freezer.image is not None:  # it stands on both templates' disks
                        (disk,) = grandchild.disks
                        assert [base.path.parent.name for base in disk.bases[:2]] == [
                            "again",
                            "template",
                        ]
                    async with up(driver, grandchild) as last:
                        assert await last.read_file(MARK) == b"second"


async def test_a_paused_machine_stays_paused(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source = await freezer.new_machine("source")
    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"before")
        await driver.pause(source.uuid)
        async with frozen(freezer, driver, source) as template:
            assert await driver.state(source.uuid) is RunState.PAUSED
            async with up(driver, await template.new_clone("clone")) as there:
                assert await there.read_file(MARK) == b"before"
            await driver.resume(source.uuid)
            assert await agent.read_file(MARK) == b"before"


# --- what goes wrong --------------------------------------------------------------------------


async def goes_on(driver: Driver, rig: Rig, source: Machine, loader: Machine) -> None:
    """Assert that a failed freeze left the source as it was, and nothing else."""
    assert await driver.state(source.uuid) is RunState.RUNNING
    assert left_of(rig, loader) == []
    async with agent_of(driver, source) as agent:
        assert (await agent.exec(["true"])).exit_status == 0


async def test_the_source_goes_on_when_the_copy_of_its_disk_fails(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source, loader = await freezer.new_machine("source"), await freezer.new_machine("loader")

    async def fail() -> None:
        raise HypervisorError("no room for the disk")

    async with up(driver, source):
        failing = pytest.raises(HypervisorError, match="no room for the disk")
        with room_for(source, freezer.home) as (memory, state), failing:
            await driver.freeze(source.uuid, loader, (), memory, state, fail)
    await goes_on(driver, freezer, source, loader)


async def test_the_source_goes_on_when_the_freeze_is_cancelled(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source, loader = await freezer.new_machine("source"), await freezer.new_machine("loader")
    held = asyncio.Event()

    async def hang() -> None:
        held.set()
        await asyncio.Event().wait()

    async with up(driver, source):
        with room_for(source, freezer.home) as (memory, state):
            freezing = asyncio.create_task(
                driver.freeze(source.uuid, loader, (), memory, state, hang)
            )
            async with asyncio.timeout(LIMIT):
                await held.wait()
            freezing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await freezing
    await goes_on(driver, freezer, source, loader)


async def test_the_source_goes_on_when_the_loader_cannot_start(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source, loader = await freezer.new_machine("source"), await freezer.new_machine("loader")
    missing = Disk("root", loader.folder / "missing.qcow2", DiskFormat.QCOW2)
    broken = dataclasses.replace(loader, disks=(missing,))
    async with up(driver, source):
        failing = pytest.raises(HypervisorError, match=r"missing\.qcow2")
        with room_for(source, freezer.home) as (memory, state), failing:
            await driver.freeze(source.uuid, broken, (), memory, state, nothing)
    await goes_on(driver, freezer, source, loader)


async def test_a_source_that_is_killed_meanwhile_leaves_nothing(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source, loader = await freezer.new_machine("source"), await freezer.new_machine("loader")

    async def end() -> None:
        await driver.kill(source.uuid)

    async with up(driver, source):
        with room_for(source, freezer.home) as (memory, state), pytest.raises(HypervisorError):
            await driver.freeze(source.uuid, loader, (), memory, state, end)
    assert await driver.state(source.uuid) is RunState.ABSENT
    assert freezer.leftovers() == []


async def test_what_does_not_run_cannot_be_frozen(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source, loader = await freezer.new_machine("source"), await freezer.new_machine("loader")
    with room_for(source, freezer.home) as (memory, state), pytest.raises(HypervisorError):
        await driver.freeze(source.uuid, loader, (), memory, state, nothing)
    assert freezer.leftovers() == []


async def test_a_clone_of_another_shape_or_of_damaged_devices_does_not_start(freezer: Rig) -> None:
    driver = freezer.new_driver()
    source = await freezer.new_machine("source")
    async with up(driver, source), frozen(freezer, driver, source) as template:
        await driver.kill(source.uuid)
        clone = await template.new_clone("clone")
        other = dataclasses.replace(clone, cpus=clone.cpus + 1)
        larger = dataclasses.replace(clone, memory=clone.memory + 64 * MIB)
        for wrong in (other, larger):
            with pytest.raises(HypervisorError):
                await driver.start(wrong)
            assert await driver.state(clone.uuid) is RunState.ABSENT
            assert freezer.leftovers() == []
        size = template.state.stat().st_size
        os.truncate(template.state, size // 2)
        with pytest.raises(HypervisorError):
            await driver.start(await template.new_clone("damaged"))
        assert freezer.leftovers() == []
