"""What every hypervisor must do, asked of all of them in the same words."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pickle
import sys
from pathlib import Path

import pytest

from hanok.errors import AgentUnavailable, HypervisorError, Unsupported
from hanok.hypervisors.base import Disk, Machine, RunState
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.units import MIB
from tests.hypervisors.rigs import LIMIT, Follower, Rig, agent_of, read_until

ROOT = Path(__file__).parents[2]
_PRESS_AGAIN = 5.0


async def test_probe_says_what_it_is_and_says_it_again(rig: Rig) -> None:
    driver = rig.new_driver()
    facts = await driver.probe()
    assert facts.name == driver.name
    assert facts.type == (1 if rig.xen else 2)
    assert facts.isolation in (("xen",) if rig.xen else ("kvm", "none"))
    assert set(facts.modes) == {"full", "para"} | ({"hybrid"} if rig.xen else set())
    assert facts.version
    assert facts.reason
    assert await driver.probe() == facts


def test_modes_are_chosen_or_refused_with_what_is_offered(rig: Rig) -> None:
    driver = rig.new_driver()
    assert driver.choose_mode(Mode.AUTO) is (Mode.HYBRID if rig.xen else Mode.PARA)
    assert driver.choose_mode(Mode.FULL) is Mode.FULL
    assert driver.choose_mode(Mode.PARA) is Mode.PARA
    if rig.xen:
        assert driver.choose_mode(Mode.HYBRID) is Mode.HYBRID
        return
    with pytest.raises(Unsupported) as caught:
        driver.choose_mode(Mode.HYBRID)
    assert caught.value.field == "mode"
    assert "full" in (caught.value.expected or "")
    assert "para" in (caught.value.expected or "")


def test_overhead_grows_with_a_larger_buffer_and_never_shrinks_with_size(rig: Rig) -> None:
    driver = rig.new_driver()
    small = driver.overhead(1, 128 * MIB, 64 * MIB)
    assert small > 0
    buffer = 0 if rig.xen else 64 * MIB  # Xen translates nothing
    assert driver.overhead(1, 128 * MIB, 128 * MIB) == small + buffer
    assert driver.overhead(4, 128 * MIB, 64 * MIB) >= small
    assert driver.overhead(1, 4096 * MIB, 64 * MIB) >= small


async def test_a_machine_starts_once_and_is_killed(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    assert await driver.state(machine.uuid) is RunState.ABSENT
    await driver.start(machine)
    assert await driver.state(machine.uuid) is RunState.RUNNING
    await driver.start(machine)
    assert await driver.state(machine.uuid) is RunState.RUNNING
    assert await driver.explain(machine.uuid) == ""
    await driver.kill(machine.uuid)
    assert await driver.state(machine.uuid) is RunState.ABSENT
    assert rig.leftovers() == []
    await driver.kill(machine.uuid)


async def test_a_killed_machine_starts_again(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    for _ in range(2):
        await driver.start(machine)
        await driver.kill(machine.uuid)
    assert rig.leftovers() == []


async def test_two_machines_do_not_disturb_each_other(rig: Rig) -> None:
    driver = rig.new_driver()
    one, two = await rig.new_machine("one"), await rig.new_machine("two")
    await asyncio.gather(driver.start(one), driver.start(two))
    await driver.pause(one.uuid)
    assert await driver.state(two.uuid) is RunState.RUNNING
    await driver.kill(one.uuid)
    assert await driver.state(two.uuid) is RunState.RUNNING


async def test_pause_and_resume_are_seen_and_may_be_repeated(rig: Rig) -> None:
    driver = rig.new_driver()
    events = Follower(driver)
    machine = await rig.new_machine()
    await driver.start(machine)
    await driver.pause(machine.uuid)
    await driver.pause(machine.uuid)
    assert await driver.state(machine.uuid) is RunState.PAUSED
    await events.wait_for(machine, "paused")
    await driver.resume(machine.uuid)
    await driver.resume(machine.uuid)
    assert await driver.state(machine.uuid) is RunState.RUNNING
    await events.wait_for(machine, "resumed")


async def test_a_killed_machine_is_told_as_stopped(rig: Rig) -> None:
    driver = rig.new_driver()
    events = Follower(driver)
    machine = await rig.new_machine()
    await driver.start(machine)
    await driver.kill(machine.uuid)
    assert (await events.wait_for(machine, "stopped")).detail == "killed"


async def test_the_guest_powers_itself_off_when_asked(rig: Rig) -> None:
    driver = rig.new_driver()
    events = Follower(driver)
    machine = await rig.new_machine()
    await driver.start(machine)
    async with agent_of(driver, machine):
        # The agent may answer before what listens to the power button does.
        async with asyncio.timeout(LIMIT):
            await driver.ask_stop(machine.uuid)
            while not await driver.wait_stopped(machine.uuid, _PRESS_AGAIN):
                await driver.ask_stop(machine.uuid)
    assert await driver.state(machine.uuid) is RunState.ABSENT
    assert (await events.wait_for(machine, "stopped")).detail == "guest-shutdown"
    assert rig.leftovers() == []


async def test_waiting_for_the_end_has_a_limit(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    assert await driver.wait_stopped(machine.uuid, 0.01)
    await driver.start(machine)
    await driver.pause(machine.uuid)
    assert not await driver.wait_stopped(machine.uuid, 0.05)
    waiting = asyncio.create_task(driver.wait_stopped(machine.uuid, LIMIT))
    await driver.kill(machine.uuid)
    assert await waiting


async def test_the_console_carries_bytes_both_ways_and_opens_again(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    await driver.start(machine)
    async with agent_of(driver, machine):
        for word in (b"hanok-first", b"hanok-second"):
            stream = await driver.open_console(machine.uuid)
            stream.writer.write(b"\recho " + word + b"\r")
            await read_until(stream.reader, word)
            stream.writer.close()


async def test_the_agent_answers_and_runs_commands(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    await driver.start(machine)
    async with agent_of(driver, machine) as agent:
        done = await agent.exec(["echo", "from", "the", "guest"])
        assert (done.exit_status, done.stdout) == (0, b"from the guest\n")
        assert (await agent.exec(["false"])).exit_status == 1


async def test_a_machine_without_a_channel_has_no_agent(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = dataclasses.replace(await rig.new_machine(), agent=False)
    await driver.start(machine)
    with pytest.raises(AgentUnavailable):
        await driver.open_agent(machine.uuid)


async def test_the_streams_end_with_the_machine(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    await driver.start(machine)
    console, agent = await driver.open_console(machine.uuid), await driver.open_agent(machine.uuid)
    await driver.kill(machine.uuid)
    async with asyncio.timeout(LIMIT):
        for stream in (console, agent):
            with contextlib.suppress(ConnectionResetError):
                while await stream.reader.read(4096):
                    pass
            stream.writer.close()


async def test_statistics_count_what_is_used(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    await driver.start(machine)
    first = await driver.statistics(machine.uuid)
    assert first.resident > MIB
    assert first.proportional is None or 0 < first.proportional <= first.resident
    async with agent_of(driver, machine):
        assert (await driver.statistics(machine.uuid)).cpu_seconds > first.cpu_seconds


async def test_what_does_not_run_cannot_be_asked(rig: Rig) -> None:
    driver = rig.new_driver()
    machine = await rig.new_machine()
    for ask in (
        driver.pause,
        driver.resume,
        driver.ask_stop,
        driver.statistics,
        driver.open_console,
        driver.open_agent,
    ):
        with pytest.raises(HypervisorError):
            await ask(machine.uuid)
    assert await driver.explain(machine.uuid) == ""


async def test_a_start_that_fails_leaves_nothing(rig: Rig) -> None:
    driver = rig.new_driver()
    events = Follower(driver)
    machine = await rig.new_machine()
    missing = machine.folder / "missing.qcow2"
    broken = dataclasses.replace(machine, disks=(Disk("root", missing, DiskFormat.QCOW2),))
    with pytest.raises(HypervisorError) as caught:
        await driver.start(broken)
    assert "missing.qcow2" in caught.value.message
    assert await driver.state(machine.uuid) is RunState.ABSENT
    assert await driver.adopt(machine) is RunState.ABSENT
    assert rig.leftovers() == []
    await driver.start(machine)
    assert await driver.state(machine.uuid) is RunState.RUNNING
    assert [event.name for event in events.seen if event.name in ("stopped", "crashed")] == []


async def test_there_is_nothing_to_adopt_before_the_start(rig: Rig) -> None:
    assert await rig.new_driver().adopt(await rig.new_machine()) is RunState.ABSENT


async def test_machines_go_on_when_their_driver_is_closed(rig: Rig) -> None:
    first = rig.new_driver()
    events = Follower(first)
    machine = await rig.new_machine()
    await first.start(machine)
    await first.pause(machine.uuid)
    await first.close()
    await events.ended()
    second = rig.new_driver()
    assert await second.state(machine.uuid) is RunState.ABSENT
    assert await second.adopt(machine) is RunState.PAUSED
    assert await second.adopt(machine) is RunState.PAUSED
    await second.resume(machine.uuid)
    assert await second.state(machine.uuid) is RunState.RUNNING
    await second.kill(machine.uuid)
    assert rig.leftovers() == []


async def test_starting_what_an_earlier_driver_left_running_is_a_no_op(rig: Rig) -> None:
    first = rig.new_driver()
    machine = await rig.new_machine()
    await first.start(machine)
    await first.pause(machine.uuid)
    await first.close()
    second = rig.new_driver()
    await second.start(machine)
    assert await second.state(machine.uuid) is RunState.PAUSED


async def test_machines_survive_the_death_of_their_daemon(rig: Rig) -> None:
    machine = await rig.new_machine()
    await start_and_die(rig, machine)
    driver = rig.new_driver()
    events = Follower(driver)
    assert await driver.adopt(machine) is RunState.RUNNING
    async with agent_of(driver, machine) as agent:
        assert (await agent.exec(["true"])).exit_status == 0
        await driver.ask_stop(machine.uuid)
        assert await driver.wait_stopped(machine.uuid, LIMIT)
    await events.wait_for(machine, "stopped")
    assert rig.leftovers() == []


async def start_and_die(rig: Rig, machine: Machine) -> None:
    """Start the machine from a process of its own and kill that process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.hypervisors.starter",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(pickle.dumps((rig.home, rig.image is None, rig.xen, machine)))
        process.stdin.close()
        async with asyncio.timeout(LIMIT):
            assert await process.stdout.readline() == b"started\n"
    finally:
        process.kill()
        await process.wait()
