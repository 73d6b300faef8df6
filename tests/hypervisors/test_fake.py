"""What the fake alone has: injected faults, crashes on demand, a guest that knows commands."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hanok.errors import AgentUnavailable, GuestError, HypervisorError
from hanok.guest.agent import AgentConnection
from hanok.guest.evidence import collect_evidence
from hanok.guest.identity import Identity, give_identity, has_helper
from hanok.hypervisors.base import Disk, Machine, RunState
from hanok.hypervisors.fake import FakeFaults, FakeHypervisor
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.units import MIB
from tests.hypervisors.frozen import nothing, room_for
from tests.hypervisors.rigs import Follower, agent_of


@pytest.fixture
async def fake(short_tmp: Path) -> AsyncIterator[FakeHypervisor]:
    made = FakeHypervisor(short_tmp)
    yield made
    await made.close()


def machine_in(folder: Path, mode: Mode = Mode.PARA) -> Machine:
    """Return a machine with a disk that is there."""
    disk = folder / "disk"
    disk.touch()
    return Machine(
        uuid=f"u-{mode}",
        name="one",
        cpus=1,
        memory=64 * MIB,
        mode=mode,
        folder=folder,
        account=None,
        disks=(Disk("root", disk, DiskFormat.RAW),),
    )


async def test_a_guest_takes_an_identity_or_says_why_not(
    fake: FakeHypervisor, short_tmp: Path
) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    wanted = Identity(host_name="web-1", uuid="11111111-2222-3333-4444-555555555555")
    async with agent_of(fake, machine) as agent, fake.identity_port(machine.uuid) as port:
        assert await has_helper(agent)
        await give_identity(port.reader, port.writer, wanted, timeout=10)
        assert (await agent.exec(["hostname"])).stdout == b"web-1\n"
        assert await agent.read_file("/etc/machine-id") == b"11111111222233334444555555555555\n"
        fake.faults.identity = "no luck"
        with pytest.raises(GuestError, match="no luck"):
            await give_identity(port.reader, port.writer, wanted, timeout=10)


async def test_a_freeze_that_fails_leaves_the_guest_running(
    fake: FakeHypervisor, short_tmp: Path
) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    fake.faults.fail("freeze", "no luck", times=1)
    with room_for(machine, short_tmp) as (memory, state):
        with pytest.raises(HypervisorError, match="no luck"):
            await fake.freeze(machine.uuid, machine, (), memory, state, nothing)
        assert await fake.state(machine.uuid) is RunState.RUNNING
        await fake.freeze(machine.uuid, machine, (), memory, state, nothing)


async def test_a_fault_strikes_as_often_as_it_was_told(
    fake: FakeHypervisor, short_tmp: Path
) -> None:
    machine = machine_in(short_tmp)
    fake.faults.fail("start", "no luck", times=2)
    for _ in range(2):
        with pytest.raises(HypervisorError, match="no luck"):
            await fake.start(machine)
        assert await fake.adopt(machine) is RunState.ABSENT
    await fake.start(machine)
    assert await fake.state(machine.uuid) is RunState.RUNNING


async def test_a_guest_may_ignore_its_power_button(fake: FakeHypervisor, short_tmp: Path) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    fake.faults.ignore_power_button = True
    await fake.ask_stop(machine.uuid)
    assert not await fake.wait_stopped(machine.uuid, 0.01)
    fake.faults.ignore_power_button = False
    await fake.ask_stop(machine.uuid)
    assert await fake.wait_stopped(machine.uuid, 5)


async def test_a_paused_guest_sees_its_power_button_later(
    fake: FakeHypervisor, short_tmp: Path
) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    await fake.pause(machine.uuid)
    await fake.ask_stop(machine.uuid)
    assert await fake.state(machine.uuid) is RunState.PAUSED
    await fake.resume(machine.uuid)
    assert await fake.state(machine.uuid) is RunState.ABSENT


async def test_a_crash_is_kept_and_cannot_be_resumed(fake: FakeHypervisor, short_tmp: Path) -> None:
    events = Follower(fake)
    machine = machine_in(short_tmp)
    await fake.start(machine)
    fake.crash(machine.uuid, "it panicked")
    assert (await events.wait_for(machine, "crashed")).detail == "it panicked"
    later = FakeHypervisor(short_tmp)
    assert await later.adopt(machine) is RunState.CRASHED
    assert await later.explain(machine.uuid) == "it panicked"
    with pytest.raises(HypervisorError):
        await later.resume(machine.uuid)
    await later.kill(machine.uuid)
    await later.close()


async def test_a_process_that_dies_is_gone(fake: FakeHypervisor, short_tmp: Path) -> None:
    events = Follower(fake)
    machine = machine_in(short_tmp)
    await fake.start(machine)
    fake.vanish(machine.uuid)
    await events.wait_for(machine, "crashed")
    assert await fake.state(machine.uuid) is RunState.ABSENT


async def test_a_file_brings_faults_into_another_process(
    fake: FakeHypervisor, short_tmp: Path
) -> None:
    machine = machine_in(short_tmp)
    path = short_tmp / "faults.json"
    path.write_text(json.dumps({"methods": {"start": {"error": "from the file", "times": 1}}}))
    with pytest.raises(HypervisorError, match="from the file"):
        await fake.start(machine)
    await fake.start(machine)
    path.write_text(json.dumps({"silent_agent": True}))
    os.utime(path, (1, 1))
    stream = await fake.open_agent(machine.uuid)
    agent = AgentConnection(stream.reader, stream.writer)
    with pytest.raises(AgentUnavailable):
        await agent.ping(0.2)
    await agent.close()
    path.write_text("{ half a file")
    os.utime(path, (2, 2))
    assert await fake.state(machine.uuid) is RunState.RUNNING


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.PARA])
async def test_its_guest_shows_the_mode_that_was_asked(
    fake: FakeHypervisor, short_tmp: Path, mode: Mode
) -> None:
    machine = machine_in(short_tmp, mode)
    await fake.start(machine)
    async with agent_of(fake, machine) as agent:
        evidence = await collect_evidence(agent, mode)
    assert evidence.contradiction is None
    assert bool(evidence.virtio) is (mode is Mode.PARA)


async def test_its_guest_runs_a_few_commands(fake: FakeHypervisor, short_tmp: Path) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    async with agent_of(fake, machine) as agent:
        assert (await agent.exec(["cat"], input=b"given")).stdout == b"given"
        assert (await agent.exec(["sh", "-c", "exit 7"])).exit_status == 7
        assert (await agent.exec(["sh", "-c", "echo 'a  b'"])).stdout == b"a  b\n"
        assert (await agent.exec(["sh", "-c", "frobnicate"])).exit_status == 127
        assert (await agent.exec(["sleep", "0.05"])).exit_status == 0
        with pytest.raises(GuestError):
            await agent.exec(["frobnicate"])
        assert "guest-exec" in await agent.supported()


async def test_its_guest_keeps_files(fake: FakeHypervisor, short_tmp: Path) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    content = os.urandom(200_000)
    async with agent_of(fake, machine) as agent:
        await agent.write_file("/root/data", content, 0o600)
        assert await agent.read_file("/root/data") == content
        assert (await agent.exec(["cat", "/root/data"])).stdout == content
        with pytest.raises(GuestError):
            await agent.read_file("/root/other")


async def test_its_guest_powers_off_by_the_agent(fake: FakeHypervisor, short_tmp: Path) -> None:
    events = Follower(fake)
    machine = machine_in(short_tmp)
    await fake.start(machine)
    async with agent_of(fake, machine) as agent:
        await agent.shutdown()
        assert await fake.wait_stopped(machine.uuid, 5)
    assert (await events.wait_for(machine, "stopped")).detail == "guest-shutdown"


async def test_a_broken_request_gets_an_error(fake: FakeHypervisor, short_tmp: Path) -> None:
    machine = machine_in(short_tmp)
    await fake.start(machine)
    stream = await fake.open_agent(machine.uuid)
    for request in (b"{\n", b"[]\n", b'{"execute": "guest-exec", "arguments": 3}\n', b"{}\n"):
        stream.writer.write(request)
        assert b'"error"' in await stream.reader.readline()
    stream.writer.close()


def test_faults_are_told_by_name() -> None:
    faults = FakeFaults()
    faults.delay("kill", 0.5, times=1)
    assert faults.methods["kill"].delay == 0.5
