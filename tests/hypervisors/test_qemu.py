"""What QEMU alone has: confinement, hostile folders, panics, full disks, lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from hanok.errors import GuestError, HanokError, HypervisorError
from hanok.hypervisors.base import Disk, Machine, RunState
from hanok.hypervisors.qemu.log import (
    bounded_log,
    keep_log,
    last_words,
    start_log,
    trim_log,
)
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.proc import Account, SystemRunner, find_owned
from hanok.units import MIB
from tests.hypervisors.rigs import LIMIT, Driver, Follower, Rig, account_of, agent_of, read_until

pytestmark = pytest.mark.vm
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs accounts of its own")


def pid_of(rig: Rig) -> int:
    """Return the pid of the one machine that runs."""
    (process,) = find_owned(rig.home)
    return process.pid


def status_of(pid: int) -> dict[str, list[str]]:
    """Return /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}


def anonymous_memory(pid: int) -> int:
    """Return the bytes that cannot be dropped: pages of files, the kernel's say, can be."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (x.partition(":") for x in lines)}
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"]


async def reaches(driver: Driver, machine: Machine, state: RunState) -> None:
    """Wait until the machine is in ``state``."""
    await AsyncRetrying(
        stop=stop_after_delay(LIMIT),
        wait=wait_fixed(0.1),
        retry=retry_if_result(lambda found: found is not state),
    )(driver.state, machine.uuid)


# --- confinement ------------------------------------------------------------------------------


async def test_a_machine_is_confined(qemu_both: Rig) -> None:
    driver = qemu_both.new_driver()
    machine = await qemu_both.new_machine()
    await driver.start(machine)
    pid = pid_of(qemu_both)
    status = status_of(pid)
    account = await account_of(driver, machine)
    assert account is None or status["Uid"] == [str(account.uid)] * 4
    assert account is None or status["Gid"] == [str(account.gid)] * 4
    assert "0" not in status["Uid"]
    assert status["Groups"] == [] or machine.account is None
    for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(status[capabilities][0], 16) == 0
    assert status["Seccomp"] == ["2"]
    assert status["NoNewPrivs"] == ["1"]
    for name in ("qmp.sock", "console.sock", "agent.sock", "qemu.pid"):
        assert stat.S_IMODE((machine.folder / name).lstat().st_mode) == 0o600, name
    assert os.getsid(pid) == pid


@AS_ROOT
async def test_qemu_never_runs_as_root(qemu: Rig) -> None:
    machine = dataclasses.replace(await qemu.new_machine(), account=None)
    with pytest.raises(HypervisorError) as caught:
        await qemu.new_driver().start(machine)
    assert "root" in caught.value.message
    assert qemu.leftovers() == []


async def test_only_the_taps_are_passed_on(qemu: Rig) -> None:
    driver = qemu.new_driver()
    machine = await qemu.new_machine()
    secret = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        await driver.start(machine)
        opened = [str(path.readlink()) for path in Path(f"/proc/{pid_of(qemu)}/fd").iterdir()]
    finally:
        os.close(secret)
    assert "/etc/passwd" not in opened


# --- names, numbers and shapes ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["a,b=c", "ein Haus, zwei Räume", '"quoted" {json}', "-x"])
async def test_names_and_folders_with_any_text_run(qemu: Rig, name: str) -> None:
    driver = qemu.new_driver()
    machine = await qemu.new_machine(name)
    await driver.start(machine)
    assert await driver.state(machine.uuid) is RunState.RUNNING
    assert f"guest={name.replace(',', ',,')}".encode() in Path(
        f"/proc/{pid_of(qemu)}/cmdline"
    ).read_bytes().split(b"\0")


async def test_what_was_asked_is_what_the_guest_sees(qemu: Rig) -> None:
    driver = qemu.new_driver()
    machine = dataclasses.replace(await qemu.new_machine(cpus=2), memory=300 * MIB)
    await driver.start(machine)
    async with agent_of(driver, machine) as agent:
        cpus = await agent.exec(["sh", "-c", "grep -c ^processor /proc/cpuinfo"])
        memory = await agent.exec(["sh", "-c", "grep MemTotal /proc/meminfo"])
    assert cpus.stdout.strip() == b"2"
    assert 220 * 1024 < int(memory.stdout.split()[1]) < 300 * 1024


async def test_a_seed_is_a_read_only_disk(qemu_both: Rig) -> None:
    driver = qemu_both.new_driver()
    machine = await qemu_both.new_machine()
    path = machine.folder / "seed.iso"
    path.write_bytes(b"seed" * 512 * 1024)
    path.chmod(0o644)
    seed = Disk("seed", path, DiskFormat.RAW, read_only=True)
    machine = dataclasses.replace(machine, disks=(*machine.disks, seed))
    await driver.start(machine)
    device = "sr0" if qemu_both.mode is Mode.FULL else "vdb"
    async with agent_of(driver, machine) as agent:
        read = await agent.exec(["sh", "-c", f"head -c 8 /dev/{device}"])
        write = await agent.exec(["sh", "-c", f"echo x | dd of=/dev/{device} conv=fsync"])
    assert read.stdout == b"seedseed"
    assert write.exit_status != 0
    assert path.read_bytes().startswith(b"seedseed")


@AS_ROOT
async def test_the_header_of_an_image_opens_no_other_file(qemu: Rig) -> None:
    driver = qemu.new_driver()
    machine = await qemu.new_machine()
    canary = qemu.home / "canary"
    canary.write_bytes(b"canary" * 1024 * 1024)
    canary.chmod(0o644)
    trap = machine.folder / "trap.qcow2"
    await SystemRunner().run(
        [*("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"), "-b", str(canary), str(trap)]
    )
    assert machine.account is not None
    os.chown(trap, machine.account.uid, machine.account.gid)
    disks = (*machine.disks, Disk("data", trap, DiskFormat.QCOW2))
    machine = dataclasses.replace(machine, disks=disks)
    await driver.start(machine)
    opened = [str(path.readlink()) for path in Path(f"/proc/{pid_of(qemu)}/fd").iterdir()]
    assert str(trap) in opened
    assert str(canary) not in opened
    async with agent_of(driver, machine) as agent:
        read = await agent.exec(["sh", "-c", "head -c 6 /dev/vdb | od -c"])
    assert b"c   a   n" not in read.stdout


async def test_what_is_counted_covers_what_is_used(qemu_both: Rig) -> None:
    driver = qemu_both.new_driver()
    machine = await qemu_both.new_machine()
    counted = machine.memory + driver.overhead(machine.cpus, machine.memory, machine.tcg_buffer)
    await driver.start(machine)
    async with agent_of(driver, machine) as agent:
        work = "for i in 1 2 3; do find / -xdev -type f | xargs cat | sha256sum; done"
        assert (await agent.exec(["sh", "-c", work], timeout=LIMIT)).exit_status == 0
        used = anonymous_memory(pid_of(qemu_both))
    assert machine.memory / 2 < used < counted


# --- guests that fail -------------------------------------------------------------------------


async def test_a_panic_is_told_apart(qemu: Rig) -> None:
    driver = qemu.new_driver()
    events = Follower(driver)
    machine = await qemu.new_machine()
    await driver.start(machine)
    async with agent_of(driver, machine) as agent:
        driven = "test -d /sys/bus/pci/drivers/pvpanic-pci || modprobe pvpanic-pci"
        if (await agent.exec(["sh", "-c", driven])).exit_status != 0:
            pytest.skip("this guest has no driver for the panic device")
        with contextlib.suppress(HanokError):
            await agent.exec(["sh", "-c", "echo c > /proc/sysrq-trigger"], timeout=3)
    assert "panicked" in (await events.wait_for(machine, "crashed")).detail
    assert await driver.state(machine.uuid) is RunState.CRASHED
    assert "panicked" in await driver.explain(machine.uuid)
    with pytest.raises(HypervisorError):
        await driver.resume(machine.uuid)
    assert "paused" not in [event.name for event in events.seen]
    await driver.close()
    later = qemu.new_driver()
    assert await later.adopt(machine) is RunState.CRASHED
    await later.kill(machine.uuid)
    assert await later.state(machine.uuid) is RunState.ABSENT


async def test_a_guest_may_restart_itself(qemu: Rig) -> None:
    driver = qemu.new_driver()
    events = Follower(driver)
    machine = await qemu.new_machine()
    await driver.start(machine)
    pid = pid_of(qemu)
    async with agent_of(driver, machine) as agent:
        with contextlib.suppress(HanokError):
            await agent.exec(["reboot", "-f"], timeout=LIMIT)  # a shorter limit may end reboot
        await events.wait_for(machine, "reset")
    async with agent_of(driver, machine):
        assert await driver.state(machine.uuid) is RunState.RUNNING
    assert pid_of(qemu) == pid


@pytest.fixture
def small_disk(short_tmp: Path) -> Iterator[Path]:
    """A file system with little room, which can be given more."""
    folder = short_tmp / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "hanok", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@AS_ROOT
async def test_a_full_host_pauses_the_guest_until_there_is_room(
    qemu: Rig, small_disk: Path
) -> None:
    driver = qemu.new_driver()
    events = Follower(driver)
    machine = await qemu.new_machine()
    data = small_disk / "data.raw"
    data.touch()
    os.truncate(data, 64 * MIB)
    assert machine.account is not None
    os.chown(data, machine.account.uid, machine.account.gid)
    disks = (*machine.disks, Disk("data", data, DiskFormat.RAW))
    machine = dataclasses.replace(machine, disks=disks)
    await driver.start(machine)
    async with agent_of(driver, machine) as agent:
        write = "dd if=/dev/urandom of=/dev/vdb bs=1M count=8 conv=fsync 2>&1; sha256sum /dev/vdb"
        writing = asyncio.create_task(agent.exec(["sh", "-c", write], timeout=LIMIT))
        assert "no space" in (await events.wait_for(machine, "io-error")).detail
        await reaches(driver, machine, RunState.PAUSED)
        assert "full" in await driver.explain(machine.uuid)
        subprocess.run(["mount", "-o", "remount,size=80m", small_disk], check=True)
        await driver.resume(machine.uuid)
        written = await writing
        assert written.exit_status == 0
    digest = subprocess.run(["sha256sum", data], check=True, capture_output=True).stdout.split()[0]
    assert digest in written.stdout


async def test_a_process_that_dies_by_itself_is_told_as_crashed(qemu: Rig) -> None:
    driver = qemu.new_driver()
    events = Follower(driver)
    machine = await qemu.new_machine()
    await driver.start(machine)
    os.kill(pid_of(qemu), signal.SIGKILL)
    assert "QEMU ended by itself" in (await events.wait_for(machine, "crashed")).detail
    assert await driver.state(machine.uuid) is RunState.ABSENT
    assert qemu.leftovers() == []


async def test_a_process_told_to_end_says_so(qemu: Rig) -> None:
    driver = qemu.new_driver()
    events = Follower(driver)
    machine = await qemu.new_machine()
    await driver.start(machine)
    os.kill(pid_of(qemu), signal.SIGTERM)
    assert (await events.wait_for(machine, "stopped")).detail == "host-signal"
    assert qemu.leftovers() == []


@pytest.mark.parametrize("content", [b"", b"no image", b"QFI\xfb" + bytes(100)])
async def test_a_disk_that_is_no_image_fails_in_qemus_words(qemu: Rig, content: bytes) -> None:
    driver = qemu.new_driver()
    machine = await qemu.new_machine()
    machine.disks[0].path.write_bytes(content)
    with pytest.raises(HypervisorError) as caught:
        await driver.start(machine)
    assert "disk" in caught.value.message or "Image" in caught.value.message
    assert "qemu.log" in (caught.value.hint or "")
    assert qemu.leftovers() == []


async def test_a_disk_in_use_is_not_opened_twice(qemu: Rig) -> None:
    driver = qemu.new_driver()
    one, two = await qemu.new_machine("one"), await qemu.new_machine("two")
    await driver.start(one)
    stolen = dataclasses.replace(two, disks=one.disks, account=one.account)
    with pytest.raises(HypervisorError) as caught:
        await driver.start(stolen)
    assert "lock" in caught.value.message
    assert await driver.state(one.uuid) is RunState.RUNNING


async def test_a_cancelled_start_leaves_nothing(qemu: Rig) -> None:
    driver = qemu.new_driver()
    await driver.probe()
    for steps in (1, 3, 10, 30):
        machine = await qemu.new_machine(f"m{steps}")
        starting = asyncio.create_task(driver.start(machine))
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
            await driver.kill(machine.uuid)
        assert qemu.leftovers() == []


async def test_starts_at_once_start_one_process(qemu: Rig) -> None:
    driver = qemu.new_driver()
    machine = await qemu.new_machine()
    await asyncio.gather(*(driver.start(machine) for _ in range(4)))
    pid_of(qemu)


# --- connections ------------------------------------------------------------------------------


async def test_a_process_that_hangs_can_be_killed(qemu: Rig) -> None:
    first = qemu.new_driver()
    machine = await qemu.new_machine()
    await first.start(machine)
    pid = pid_of(qemu)
    await first.close()
    os.kill(pid, signal.SIGSTOP)
    second = qemu.new_driver()
    with pytest.raises(HypervisorError) as caught:
        await second.adopt(machine)
    assert "did not answer" in caught.value.message
    await second.kill(machine.uuid)
    assert qemu.leftovers() == []


async def test_a_lost_connection_is_made_again(qemu: Rig) -> None:
    driver = qemu.new_driver()
    events = Follower(driver)
    machine = await qemu.new_machine()
    await driver.start(machine)
    break_connection(machine.folder / "qmp.sock")
    await AsyncRetrying(
        stop=stop_after_delay(LIMIT),
        wait=wait_fixed(0.05),
        retry=retry_if_result(lambda found: found is not RunState.RUNNING),
    )(driver.state, machine.uuid)
    await driver.pause(machine.uuid)
    await events.wait_for(machine, "paused")


def break_connection(path: Path) -> None:
    """Shut down this process's connection to the socket at ``path``."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.family == socket.AF_UNIX and connection.getpeername() == str(path):
                    connection.shutdown(socket.SHUT_RDWR)
                    return
    raise AssertionError("there is no connection to break")


@AS_ROOT
async def test_a_socket_that_leads_to_another_machine_is_not_believed(qemu: Rig) -> None:
    first = qemu.new_driver()
    one, two = await qemu.new_machine("one"), await qemu.new_machine("two")
    await first.start(one)
    await first.start(two)
    await first.close()
    for name in ("qmp.sock", "console.sock", "agent.sock"):
        (one.folder / name).unlink()
        (one.folder / name).symlink_to(two.folder / name)
    second = qemu.new_driver()
    with pytest.raises(HypervisorError):
        await second.adopt(one)
    for open_stream in (second.open_console, second.open_agent):
        with pytest.raises((HypervisorError, GuestError)):
            await open_stream(one.uuid)
    assert await second.adopt(two) is RunState.RUNNING
    await second.kill(one.uuid)
    assert await second.state(two.uuid) is RunState.RUNNING


@AS_ROOT
async def test_a_process_of_another_account_is_not_adopted(qemu: Rig) -> None:
    first = qemu.new_driver()
    machine = await qemu.new_machine()
    await first.start(machine)
    await first.close()
    other = dataclasses.replace(machine, account=Account(1_700_000_999, 1_700_000_999))
    second = qemu.new_driver()
    folder = dataclasses.replace(other, folder=qemu.home)  # keep the real one's sockets
    assert await second.adopt(folder) is RunState.ABSENT
    assert await second.adopt(machine) is RunState.RUNNING


async def test_a_missing_or_wrong_pid_file_hides_no_machine(qemu: Rig) -> None:
    machine = await qemu.new_machine()
    for content in (None, b"1\n", b"999999999\n", b"x" * 4096, b""):
        driver = qemu.new_driver()
        await driver.start(machine)
        pid = pid_of(qemu)
        await driver.close()
        (machine.folder / "qemu.pid").unlink(missing_ok=True)
        if content is not None:
            (machine.folder / "qemu.pid").write_bytes(content)
        later = qemu.new_driver()
        assert await later.adopt(machine) is RunState.RUNNING
        assert pid_of(qemu) == pid
        await later.kill(machine.uuid)


async def test_an_unread_console_does_not_stop_the_rest(qemu: Rig) -> None:
    driver = qemu.new_driver()
    machine = await qemu.new_machine()
    await driver.start(machine)
    async with agent_of(driver, machine) as agent:
        stream = await driver.open_console(machine.uuid)
        flood = "dd if=/dev/zero bs=1k count=2048 | tr '\\0' x > /dev/console &"
        await agent.exec(["sh", "-c", f"{{ {flood} }} > /dev/null 2>&1"])
        assert (await agent.exec(["echo", "alive"])).stdout == b"alive\n"
        assert await driver.state(machine.uuid) is RunState.RUNNING
        await read_until(stream.reader, b"x" * 64)
        stream.writer.close()


# --- its log ----------------------------------------------------------------------------------


def test_the_log_follows_no_link(short_tmp: Path) -> None:
    canary, log = short_tmp / "canary", short_tmp / "qemu.log"
    canary.write_bytes(b"secret" * 1024 * 1024)
    log.symlink_to(canary)
    trim_log(log)
    assert last_words(log) == "it said nothing"
    start_log(log)
    assert not log.is_symlink()
    assert canary.read_bytes() == b"secret" * 1024 * 1024


def test_the_log_is_cut_while_it_is_written(short_tmp: Path) -> None:
    log = short_tmp / "qemu.log"
    start_log(log)
    with open(log, "ab", buffering=0) as writer:
        writer.write(b"old\n" * 512 * 1024)
        trim_log(log)
        assert log.stat().st_size < 128 * 1024
        writer.write(b"qemu-system-x86_64: -device x,y: the last word\n")
        writer.write(b'qemu-system-x86_64: -blockdev {"node-name": "disk0", "a": {}}: no: image\n')
    assert last_words(log).endswith("; the last word; disk0: no: image")
    start_log(log)
    assert log.stat().st_size == 0
    assert (short_tmp / "qemu.log.1").stat().st_size > 0


def test_a_bounded_log_takes_no_more_and_follows_no_link(short_tmp: Path) -> None:
    canary, path = short_tmp / "canary", short_tmp / "qemu.log"
    log = bounded_log()
    try:
        subprocess.run(["seq", "1", "100000"], stdout=log, stderr=subprocess.DEVNULL, check=False)
        with pytest.raises(PermissionError):
            os.ftruncate(log, MIB)
        start_log(path)
        keep_log(log, path)
        assert path.read_bytes().startswith(b"1\n2\n3\n")
        assert path.stat().st_size <= 64 * 1024
        path.unlink()
        canary.write_bytes(b"secret")
        path.symlink_to(canary)
        keep_log(log, path)
    finally:
        os.close(log)
    assert canary.read_bytes() == b"secret"
