"""What clones of QEMU alone have: hostile guests and processes, taps, deaths in between."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import pickle
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from hanok.errors import HypervisorError
from hanok.guest.agent import AgentConnection
from hanok.hypervisors.base import Machine, Nic, RunState
from hanok.hypervisors.qemu import QemuHypervisor
from hanok.hypervisors.qemu.arch import X86_64
from hanok.hypervisors.qemu.argv import LOG_FILE, Platform, build_argv
from hanok.hypervisors.qemu.process import QemuProcess
from hanok.hypervisors.qemu.spawn import start_process
from hanok.proc import SystemRunner, find_owned, kill_and_wait
from hanok.units import MIB
from tests.hypervisors.frozen import MARK, frozen, left_of, nothing, room_for, up
from tests.hypervisors.rigs import LIMIT, Driver, Rig, account_of, agent_of

pytestmark = pytest.mark.vm
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs accounts of its own")
ROOT = Path(__file__).parents[2]
_TUNSETIFF, _TAP, _NO_PI, _VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000


def process_of(driver: Driver, machine: Machine) -> QemuProcess:
    """Return the driver's process of a machine, to say to QEMU what Hanok never does."""
    assert isinstance(driver, QemuHypervisor)
    return driver._running(machine.uuid)


def loader_pid(rig: Rig) -> int:
    """Return the pid of the one loader."""
    (process,) = find_owned(rig.home, "loader")
    return process.pid


# --- a template is never changed --------------------------------------------------------------


async def inflate(process: QemuProcess, size: int) -> None:
    """Have the guest hand back pages until it has ``size`` bytes."""
    await process.execute("balloon", {"value": size})

    async def actual() -> int:
        answer = await process.execute("query-balloon")
        assert isinstance(answer, Mapping)
        return int(answer["actual"])

    await AsyncRetrying(
        stop=stop_after_delay(LIMIT),
        wait=wait_fixed(0.1),
        retry=retry_if_result(lambda found: found > size),
    )(actual)


async def test_a_hostile_guest_does_not_change_the_template(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"before")
        driven = "test -d /sys/bus/virtio/drivers/virtio_balloon || modprobe virtio_balloon"
        balloon = (await agent.exec(["sh", "-c", driven])).exit_status == 0
        async with frozen(qemu, driver, source) as template:
            await driver.kill(source.uuid)
            before = template.digest()
            hostile = await template.new_clone("hostile")
            async with up(driver, hostile) as there:
                if balloon:
                    # Not so much that its own programs are read from the disk again and again.
                    await inflate(process_of(driver, hostile), hostile.memory - 24 * MIB)
                fill = "dd if=/dev/urandom of=/root/junk bs=1M count=8; rm /root/junk; sync"
                await there.exec(["sh", "-c", fill], timeout=LIMIT)
                await there.exec(["sh", "-c", "fstrim / || true"], timeout=LIMIT)
                over = "dd if=/dev/zero of=/dev/vda bs=1M count=4 conv=fsync"
                await there.exec(["sh", "-c", over], timeout=LIMIT)
                assert template.digest() == before
            await driver.kill(hostile.uuid)
            # QEMU complained of each page, and that filled no disk.
            assert 0 < (hostile.folder / LOG_FILE).stat().st_size <= 64 * 1024
            async with up(driver, await template.new_clone("next")) as there:
                assert await there.read_file(MARK) == b"before"
            assert template.digest() == before
            assert balloon, "the image has no balloon driver: nothing was handed back"


# Tries to change what a process has open of a template; says for each file what happened.
_ATTACK = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in os.listdir(f"/proc/{sys.argv[1]}/fd"):
    path = f"/proc/{sys.argv[1]}/fd/{number}"
    try:
        target = os.readlink(path)
    except OSError:
        continue
    if not (target.startswith("/memfd:hanok-test") or target in sys.argv[2:]):
        continue
    done = []
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        try:
            fd = os.open(path, flags)
        except OSError:
            continue
        size = os.fstat(fd).st_size
        for what in (
            lambda: os.pwrite(fd, b"evil", 0),
            lambda: os.write(fd, b"evil"),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, size + 4096),
        ):
            try:
                what()
                done.append("written")
            except OSError:
                pass
        if libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)) == 0:
            done.append("punched")
        os.close(fd)
    print(target.split(" ")[0], *(done or ["refused"]))
for target in sys.argv[2:]:
    try:
        open(target, "r+b").write(b"evil")
        print(target, "written")
    except OSError:
        print(target, "refused")
"""


@AS_ROOT
async def test_a_process_with_the_clones_uid_cannot_change_the_template(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"before")
        async with frozen(qemu, driver, source) as template:
            await driver.kill(source.uuid)
            before = template.digest()
            clone = await template.new_clone("clone")
            async with up(driver, clone):
                base = clone.disks[0].bases[1].path
                told = await SystemRunner().run(
                    [
                        *("/usr/bin/python3", "-c", _ATTACK, str(process_of(driver, clone).pid)),
                        *map(str, (template.state, template.disk, base)),
                    ],
                    account=await account_of(driver, clone),
                )
                lines = told.stdout.decode().splitlines()
                assert [line for line in lines if not line.endswith(" refused")] == []
                assert any(line.startswith("/memfd:hanok-test") for line in lines)
                assert sum(str(template.disk) in line for line in lines) == 2
                assert template.digest() == before
            async with up(driver, await template.new_clone("next")) as there:
                assert await there.read_file(MARK) == b"before"


@AS_ROOT
async def test_a_clone_is_confined_and_holds_no_more_than_it_needs(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    async with up(driver, source), frozen(qemu, driver, source) as template:
        clone = await template.new_clone("clone")
        async with up(driver, clone):
            pid = process_of(driver, clone).pid
            status = Path(f"/proc/{pid}/status").read_text()
            assert clone.account is not None
            assert f"Uid:\t{clone.account.uid}" in status
            assert "Seccomp:\t2" in status
            opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert str(template.state) not in opened


# --- devices ----------------------------------------------------------------------------------


def new_tap() -> int:
    """Return the descriptor of a new tap as networks make them: it is gone when closed."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"hk%d", _TAP | _NO_PI | _VNET_HDR))
    return tap


@pytest.fixture
def taps() -> Iterator[list[int]]:
    """Taps that lead nowhere."""
    made = [new_tap() for _ in range(3)]
    yield made
    for tap in made:
        os.close(tap)


@AS_ROOT
async def test_a_machine_with_a_network_card_and_two_cpus(qemu: Rig, taps: list[int]) -> None:
    driver = qemu.new_driver()
    nic = Nic("52:54:00:12:34:56", "nowhere")
    source = dataclasses.replace(await qemu.new_machine("source", cpus=2), nics=(nic,))
    await driver.start(source, (taps[0],))
    async with agent_of(driver, source) as agent:
        await agent.exec(["sh", "-c", "modprobe virtio_net"])
        async with frozen(qemu, driver, source, taps=(taps[1],)) as template:
            clone = await template.new_clone("clone")
            await driver.start(clone, (taps[2],))
            await driver.resume(clone.uuid)
            async with agent_of(driver, clone) as there:
                seen = "cat /sys/class/net/*/address; grep -c ^processor /proc/cpuinfo"
                told = (await there.exec(["sh", "-c", seen])).stdout.decode().split()
                assert nic.mac in told
                assert told[-1] == "2"
                own = "for d in /sys/class/net/e*; do ip link set ${d##*/} address 52:54:00:1:2:3"
                await there.exec(["sh", "-c", f"{own}; done"])
                told = (await there.exec(["sh", "-c", seen])).stdout.decode().split()
                assert "52:54:00:01:02:03" in told


async def test_an_agent_that_nobody_is_connected_to_is_frozen_too(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"before")
    async with frozen(qemu, driver, source) as template:
        async with up(driver, await template.new_clone("clone")) as there:
            assert await there.read_file(MARK) == b"before"
        async with agent_of(driver, source) as agent:
            assert await agent.read_file(MARK) == b"before"


async def test_time_goes_on_in_a_clone_from_when_it_was_frozen(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    async with up(driver, source) as agent:
        before = await uptime(agent)
    async with (
        frozen(qemu, driver, source) as template,
        up(driver, await template.new_clone("clone")) as there,
    ):
        began, first = time.monotonic(), await uptime(there)
        assert first >= before
        await asyncio.sleep(3)  # it is time itself that is waited for
        assert await uptime(there) - first >= (time.monotonic() - began) / 2


async def uptime(agent: AgentConnection) -> float:
    """Return the seconds that a guest counts since its boot."""
    return float((await agent.read_file("/proc/uptime")).split()[0])


# --- deaths in between ------------------------------------------------------------------------


async def test_the_source_goes_on_when_the_loader_dies(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source, loader = await qemu.new_machine("source"), await qemu.new_machine("loader")

    async def shoot() -> None:
        await kill_and_wait(loader_pid(qemu))

    async with up(driver, source) as agent:
        await agent.write_file(MARK, b"before")
        with (
            room_for(source, qemu.home) as (memory, state),
            pytest.raises(HypervisorError, match="QEMU of loader ended"),
        ):
            await driver.freeze(source.uuid, loader, (), memory, state, shoot)
        assert left_of(qemu, loader) == []
        assert await driver.state(source.uuid) is RunState.RUNNING
        assert (await agent.exec(["true"])).exit_status == 0
        await works_now(qemu, driver, source)


async def works_now(rig: Rig, driver: Driver, source: Machine) -> None:
    """Freeze a machine and start a clone of it."""
    async with frozen(rig, driver, source) as template:
        clone = await template.new_clone("clone")
        async with up(driver, clone) as agent:
            assert await agent.read_file(MARK) == b"before"


async def test_a_loader_with_other_devices_fails_in_qemus_words(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    loader = dataclasses.replace(await qemu.new_machine("loader"), cpus=2)
    async with up(driver, source) as agent:
        with (
            room_for(source, qemu.home) as (memory, state),
            pytest.raises(HypervisorError, match="load of migration failed"),
        ):
            await driver.freeze(source.uuid, loader, (), memory, state, nothing)
        assert left_of(qemu, loader) == []
        assert (await agent.exec(["true"])).exit_status == 0


async def test_a_daemon_that_dies_while_it_freezes_leaves_what_can_be_put_right(qemu: Rig) -> None:
    first = qemu.new_driver()
    source, loader = await qemu.new_machine("source"), await qemu.new_machine("loader")
    async with up(first, source) as agent:
        await agent.write_file(MARK, b"before")
    await first.close()
    await freeze_and_die(qemu, source, loader)
    await kill_and_wait(loader_pid(qemu))
    second = qemu.new_driver()
    assert await second.adopt(source) is RunState.PAUSED
    await second.resume(source.uuid)
    async with agent_of(second, source) as agent:
        assert await agent.read_file(MARK) == b"before"
        await works_now(qemu, second, source)


async def freeze_and_die(rig: Rig, source: Machine, loader: Machine) -> None:
    """Freeze from a process of its own and kill that while the source is paused."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hypervisors.freezer"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(pickle.dumps((rig.home, source, loader)))
        process.stdin.close()
        async with asyncio.timeout(LIMIT):
            assert await process.stdout.readline() == b"held\n"
    finally:
        process.kill()
        await process.wait()


async def test_a_clone_whose_daemon_died_before_it_was_loaded_is_ended(qemu: Rig) -> None:
    driver = qemu.new_driver()
    source = await qemu.new_machine("source")
    async with up(driver, source), frozen(qemu, driver, source) as template:
        facts = await driver.probe()
        clone = await template.new_clone("clone")
        assert clone.frozen is not None
        assert facts.machine_type is not None
        platform = Platform(X86_64, facts.accelerator, facts.machine_type, sandbox=True)
        process = await start_process(
            SystemRunner(),
            clone,
            build_argv(clone, platform, (), "qemu-system-x86_64"),
            home=qemu.home,
            account=await account_of(driver, clone),
            pass_fds=(clone.frozen.memory, clone.frozen.state),
        )
        await process.release()
        later = qemu.new_driver()
        assert await later.adopt(clone) is RunState.ABSENT
        assert [found.owner.ident for found in find_owned(qemu.home)] == [source.uuid]
        async with up(later, clone):
            pass
