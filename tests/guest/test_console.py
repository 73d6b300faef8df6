"""The console hub: floods, slow readers, many clients, a log that cannot grow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.guest.console import LOG_SIZE, ConsoleClient, ConsoleHub, RotatingLog, tail_log
from hanok.units import KIB, MIB


class Terminal:
    """The guest's side of a console."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def prints(self, data: bytes) -> None:
        """Print ``data``."""
        self.writer.write(data)
        await self.writer.drain()


@contextlib.asynccontextmanager
async def console(
    log: Path, *, ring_size: int = 64 * KIB, rate: int = 1024 * MIB
) -> AsyncIterator[tuple[ConsoleHub, Terminal]]:
    """Yield a started hub and the guest's side."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    hub = ConsoleHub(reader, writer, log, ring_size=ring_size, rate=rate)
    terminal = Terminal(*await asyncio.open_connection(sock=theirs))
    await hub.start()
    try:
        yield hub, terminal
    finally:
        terminal.writer.close()
        await hub.close()
        assert hub.ended


async def read_exactly(client: ConsoleClient, size: int) -> bytes:
    """Return the next ``size`` bytes."""
    found = b""
    async with asyncio.timeout(10):
        while len(found) < size:
            found += await client.read(size - len(found))
    return found


def disk_used(folder: Path) -> dict[str, int]:
    """Return the sizes of the files in a folder."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


async def test_every_client_sees_everything_and_types(tmp_path: Path) -> None:
    async with console(tmp_path / "log") as (hub, terminal), hub.attach() as one:
        async with hub.attach() as two:
            await terminal.prints(b"login: ")
            assert await read_exactly(one, 7) == b"login: "
            assert await read_exactly(two, 7) == b"login: "
            await one.write(b"ro")
            await two.write(b"ot\r")
            assert await terminal.reader.readexactly(5) == b"root\r"
        await terminal.prints(b"\xff\x00$")
        assert await read_exactly(one, 3) == b"\xff\x00$"
    assert hub.tail(1) == b"login: \xff\x00$"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


async def test_a_client_sees_only_what_comes_after_it_attached(tmp_path: Path) -> None:
    async with console(tmp_path / "log") as (hub, terminal), hub.attach() as early:
        await terminal.prints(b"before")
        await read_exactly(early, 6)
        async with hub.attach() as late:
            await terminal.prints(b"after")
            assert await read_exactly(late, 5) == b"after"


async def test_a_slow_client_loses_the_oldest_bytes_and_is_told_how_many(tmp_path: Path) -> None:
    size = 64 * KIB
    async with console(tmp_path / "log", ring_size=size) as (hub, terminal):
        slow, quick = hub.attach(), hub.attach()
        data = os.urandom(10 * size)
        seen = asyncio.create_task(read_exactly(quick, 1))
        await terminal.prints(data)
        await seen
        async with asyncio.timeout(10):
            while hub.ring.end < len(data):
                await quick.read()
        assert await read_exactly(slow, size) == data[-size:]
        assert slow.lost == 9 * size


async def test_a_flood_costs_bounded_memory_and_disk(tmp_path: Path) -> None:
    total = 24 * MIB
    async with console(tmp_path / "log") as (hub, terminal):
        clients = [hub.attach() for _ in range(50)]  # none of them reads
        pieces = [b"%08d flood\n" % number for number in range(4096)]
        block = b"".join(pieces)
        sent = 0
        while sent < total:
            await terminal.prints(block)
            sent += len(block)
        terminal.writer.close()
        await hub.wait_ended()
        assert hub.ring.end == sent
        assert hub.ring.end - hub.ring.start <= 64 * KIB
        assert set(disk_used(tmp_path)) == {"log", "log.1"}
        assert max(disk_used(tmp_path).values()) <= LOG_SIZE
        assert hub.tail(3) == b"".join(pieces[-3:])
        assert await clients[0].read() != b""


async def test_a_flood_is_slowed_down_to_its_rate(tmp_path: Path) -> None:
    rate = 256 * KIB
    async with console(tmp_path / "log", rate=rate) as (hub, terminal):
        flood = asyncio.create_task(terminal.prints(b"x" * 64 * MIB))
        started = asyncio.get_running_loop().time()
        async with hub.attach() as client:
            while hub.ring.end < 6 * rate:
                await client.read()
        took = asyncio.get_running_loop().time() - started
        assert hub.ring.end <= (4 + took) * rate + 256 * KIB
        flood.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flood


async def test_the_end_of_the_console_ends_its_clients(tmp_path: Path) -> None:
    async with console(tmp_path / "log") as (hub, terminal):
        client = hub.attach()
        waiting = asyncio.create_task(client.read())
        await terminal.prints(b"bye")
        assert await waiting == b"bye"
        waiting = asyncio.create_task(client.read())
        terminal.writer.close()
        assert await waiting == b""
        assert [chunk async for chunk in client] == []
        with pytest.raises(ConnectionError):
            await client.write(b"hello?")
        assert await hub.attach().read() == b""


async def test_closing_a_client_ends_its_read_and_no_other(tmp_path: Path) -> None:
    async with console(tmp_path / "log") as (hub, terminal):
        one, two = hub.attach(), hub.attach()
        waiting = asyncio.create_task(one.read())
        await asyncio.sleep(0)
        one.close()
        one.close()
        assert await waiting == b""
        await terminal.prints(b"x")
        assert await two.read() == b"x"


async def test_follow_gives_the_past_and_then_what_comes(tmp_path: Path) -> None:
    async with console(tmp_path / "log") as (hub, terminal), hub.attach() as watcher:
        await terminal.prints(b"one\ntwo\nthree\n")
        await read_exactly(watcher, 14)
        stream = hub.follow(2)
        assert await anext(stream) == b"two\nthree\n"
        await terminal.prints(b"four\n")
        assert await anext(stream) == b"four\n"
        terminal.writer.close()
        assert [chunk async for chunk in stream] == []


async def test_a_guest_that_does_not_read_blocks_the_typist_only(tmp_path: Path) -> None:
    async with console(tmp_path / "log") as (hub, terminal), hub.attach() as client:
        typing = asyncio.create_task(client.write(b"x" * 64 * MIB))
        await terminal.prints(b"still here")
        assert await read_exactly(client, 10) == b"still here"
        assert not typing.done()
        typing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await typing


async def test_a_log_that_cannot_be_written_costs_log_only(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    async with console(tmp_path / "log") as (hub, terminal), hub.attach() as client:
        await terminal.prints(b"still here")
        assert await read_exactly(client, 10) == b"still here"
        assert hub.tail(5) == b""


async def test_a_full_disk_costs_log_only(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    async with console(tmp_path / "log") as (hub, terminal), hub.attach() as client:
        await terminal.prints(b"still here")
        assert await read_exactly(client, 10) == b"still here"


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "pipe", "older"])
def test_the_log_never_reaches_another_file(tmp_path: Path, kind: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "log"
    canary.write_bytes(b"canary\n")
    if kind == "symlink":
        path.symlink_to(canary)
    elif kind == "hardlink":
        path.hardlink_to(canary)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / "log.1").symlink_to(canary)
    log = RotatingLog(path, size=10)
    log.write(b"0123456789ABCDEF")
    log.close()
    assert canary.read_bytes() == b"canary\n"
    assert b"canary" not in tail_log(path, 10)


def test_a_log_goes_on_after_a_restart_of_the_daemon(tmp_path: Path) -> None:
    for part in (b"one\n", b"two\n"):
        log = RotatingLog(tmp_path / "log")
        log.write(part)
        log.close()
    assert tail_log(tmp_path / "log", 10) == b"one\ntwo\n"
    assert tail_log(tmp_path / "log", 1) == b"two\n"
    assert tail_log(tmp_path / "log", 0) == b""
    assert tail_log(tmp_path / "none", 10) == b""


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=40), max_size=20),
    lines=st.integers(1, 6),
    size=st.integers(16, 64),
)
def test_the_tail_is_that_of_what_was_written(
    parts: list[bytes], lines: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = RotatingLog(path, size=size)
    for part in parts:
        log.write(part)
    log.close()
    written = b"".join(parts)
    found = tail_log(path, lines)
    assert written.endswith(found)
    assert len(found.splitlines()) <= lines
    kept = sum(file.stat().st_size for file in path.parent.iterdir())
    assert kept <= 2 * size
    assert kept >= min(len(written), size)
    if kept == len(written):
        assert found == b"".join(written.splitlines(keepends=True)[-lines:])
