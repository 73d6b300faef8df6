"""A real agent and a real console in a booted guest, in both modes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hanok.errors import AgentUnavailable, GuestError, TimedOut
from hanok.guest.agent import AgentConnection
from hanok.guest.evidence import collect_evidence
from hanok.guest.readiness import wait_ready
from hanok.guest.seed import SeedData, build_seed
from hanok.model.image import Image
from hanok.model.vm import Mode, Ready
from tests.guest.machine import Guest, boot
from tests.guest.test_readiness import Loopback

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]

BOOT_LIMIT = 120


@pytest.fixture(scope="module", params=[Mode.PARA, Mode.FULL])
def mode(request: pytest.FixtureRequest) -> Mode:
    """How the guest is virtualized."""
    found: Mode = request.param
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(mode: Mode, micro_image: tuple[Image, Path]) -> AsyncIterator[Guest]:
    """One guest for all the tests of a mode; they leave it as it was."""
    image, folder = micro_image
    work = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    seed = build_seed(
        SeedData(str(uuid.uuid4()), "seeded", "#!/bin/sh\nid -u > /run/seeded\n", cloud_init=False)
    )
    try:
        async with boot(image, folder, mode, work, seed=seed) as running:
            await wait_ready(Ready(timeout=BOOT_LIMIT), probe=Loopback(running.agent))
            yield running
    finally:
        shutil.rmtree(work)


async def shell(guest: Guest, script: str, *arguments: str) -> str:
    """Return what a script in the guest prints; it must succeed."""
    done = await guest.agent.exec(["/bin/sh", "-c", script, "sh", *arguments])
    assert done.exit_status == 0, done.stderr
    return done.stdout.decode().strip()


async def test_the_agent_can_do_what_hanok_needs(guest: Guest) -> None:
    needed = {"guest-exec", "guest-file-open", "guest-shutdown", "guest-set-time"}
    assert needed <= await guest.agent.supported()


async def test_the_seed_names_the_guest_and_its_script_runs(guest: Guest) -> None:
    # micro lets its agent answer before it has looked for a seed, so that is waited for.
    named = Ready(command='[ "$(hostname)" = seeded ] && grep -x 0 /run/seeded', timeout=90)
    await wait_ready(named, probe=Loopback(guest.agent))


async def test_exec_gives_status_streams_signal_and_takes_input(guest: Guest) -> None:
    done = await guest.agent.exec(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.exit_status, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert (await guest.agent.exec(["sh", "-c", "kill -TERM $$"])).exit_status == 143
    data = bytes(range(256)) * 40
    assert (await guest.agent.exec(["cat"], input=data)).stdout == data
    words = ["printf", "%s|", "a b", "$HOME", "'\"", "größer"]
    assert (await guest.agent.exec(words)).stdout.decode() == "a b|$HOME|'\"|größer|"


async def test_exec_takes_an_environment(guest: Guest) -> None:
    done = await guest.agent.exec(["env"], env={"NAME": "a=b c"})
    assert b"NAME=a=b c" in done.stdout.splitlines()


async def test_a_program_that_is_not_there_is_a_guest_error(guest: Guest) -> None:
    with pytest.raises(GuestError, match="No such file"):
        await guest.agent.exec(["no-such-program"])


async def test_a_megabyte_of_output_arrives_whole(guest: Guest) -> None:
    script = "head -c 1000000 /dev/urandom > /tmp/noise; cat /tmp/noise; md5sum < /tmp/noise >&2"
    done = await guest.agent.exec(["sh", "-c", script], timeout=120)
    assert len(done.stdout) == 1_000_000
    assert not done.truncated
    assert hashlib.md5(done.stdout).hexdigest() == done.stderr.decode().split()[0]


async def test_a_command_that_does_not_end_is_ended_with_its_children(guest: Guest) -> None:
    with pytest.raises(TimedOut):
        await guest.agent.exec(["sh", "-c", "sleep 4321 & sleep 4321; sleep 4321"], timeout=1)
    # A process that is dead and not yet collected by the guest's init does not run any more.
    living = "for pid in $(pidof sleep); do grep '^State' /proc/$pid/status | grep -v Z; done; true"
    assert await shell(guest, living) == ""


async def test_files_come_back_as_they_were_sent(guest: Guest) -> None:
    data = os.urandom(300_001)
    await guest.agent.write_file("/root/it's a file", data, 0o640)
    assert await guest.agent.read_file("/root/it's a file") == data
    assert await shell(guest, "stat -c '%a %u' \"/root/it's a file\"") == "640 0"
    assert await shell(guest, 'rm "/root/it\'s a file"; ls -A /root') == ""


async def test_a_file_that_is_replaced_keeps_owner_mode_and_links(guest: Guest) -> None:
    await shell(guest, "echo old > /tmp/a; chown 7:8 /tmp/a; chmod 604 /tmp/a; ln -s a /tmp/b")
    await guest.agent.write_file("/tmp/b", b"new")
    assert await shell(guest, "cat /tmp/a; stat -c ' %a %u:%g' /tmp/a") == "new 604 7:8"
    assert await shell(guest, "readlink /tmp/b; rm /tmp/a /tmp/b") == "a"
    await guest.agent.write_file("/tmp/c", b"")
    assert await shell(guest, "stat -c '%a %s' /tmp/c; rm /tmp/c") == "644 0"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/tmp", "directory"),
        ("/no-such-folder/x", "no such folder"),
        ("/dev/null", "not a regular file"),
        ("/proc/x", "cannot be written"),
    ],
)
async def test_what_cannot_be_written_is_told_and_leaves_nothing(
    guest: Guest, path: str, reason: str
) -> None:
    with pytest.raises(GuestError, match=reason):
        await guest.agent.write_file(path, b"x")
    assert await shell(guest, "ls -A / /tmp /dev | grep hanok- || true") == ""


async def test_what_cannot_be_read_is_told(guest: Guest) -> None:
    for path in ("/no-such-file", "/tmp"):
        with pytest.raises(GuestError):
            await guest.agent.read_file(path)


async def test_the_guest_runs_as_it_was_asked_to(guest: Guest, mode: Mode) -> None:
    found = await collect_evidence(guest.agent, mode)
    assert found.contradiction is None
    assert found.kernel
    assert found.clocksource
    if mode is Mode.FULL:
        assert (found.disk_driver, found.nic_driver) == ("ahci", "e1000e")
        assert found.virtio == found.xenbus == ()
    else:
        assert (found.disk_driver, found.nic_driver) == ("virtio_blk", "virtio_net")
        assert len(found.virtio) == 4  # the two disks, the NIC, the agent's port


async def test_the_other_mode_is_contradicted(guest: Guest, mode: Mode) -> None:
    other = Mode.PARA if mode is Mode.FULL else Mode.FULL
    assert (await collect_evidence(guest.agent, other)).contradiction


async def test_interrupted_exchanges_leave_the_agent_in_step(guest: Guest) -> None:
    for limit in (0.0005, 0.001, 0.002, 0.005):
        with contextlib.suppress(AgentUnavailable):
            await guest.agent.call("guest-info", timeout=limit)
        assert await shell(guest, 'echo "$1"', str(limit)) == str(limit)


async def test_a_request_that_was_cut_off_does_not_stop_the_next_connection(guest: Guest) -> None:
    await guest.agent.close()
    _reader, writer = await asyncio.open_unix_connection(guest.agent_socket)
    writer.write(b'{"execute": "guest-exec", "arguments": {"path": "')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    agent = AgentConnection(*await asyncio.open_unix_connection(guest.agent_socket))
    guest.reconnect(agent)
    await agent.ping(30)


async def test_the_clock_can_be_set(guest: Guest) -> None:
    wanted = time.time() + 86_400
    await guest.agent.set_time(wanted)
    assert abs(float(await shell(guest, "date +%s")) - wanted) < 60
    await guest.agent.set_time(time.time())


async def test_readiness_by_a_command(guest: Guest) -> None:
    script = "echo x >> /tmp/tries; [ $(wc -l < /tmp/tries) -ge 3 ]"
    await wait_ready(Ready(command=script, timeout=60), probe=Loopback(guest.agent))
    assert await shell(guest, "wc -l < /tmp/tries; rm /tmp/tries") == "3"


async def test_the_console_is_a_terminal(guest: Guest) -> None:
    async with guest.console.attach() as client, asyncio.timeout(30):
        await client.write(b"\recho hanok-$((6 * 7))\r")
        seen = b""
        async for chunk in client:
            seen += chunk
            if b"hanok-42" in seen:
                break
    assert b"hanok-42" in guest.console.tail(20)


async def test_the_guest_powers_off_when_asked(guest: Guest) -> None:
    """The last test of the guest of a mode."""
    await guest.agent.shutdown()
    async with asyncio.timeout(60):
        await guest.process.wait()
        await guest.console.wait_ended()
    assert guest.process.returncode == 0
    with pytest.raises(AgentUnavailable):
        await guest.agent.ping()
