"""Relays of published ports, on the loopback: streams, half-closed ones, limits, dead ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from hanok.errors import GuestError
from hanok.network.keeper.relay import RelayLimits, Relays, connect

GUEST = "127.0.0.1"


def listen() -> socket.socket:
    """Return a listening socket on a port that is free."""
    sock = socket.create_server((GUEST, 0))
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def relayed(
    port: int, limits: RelayLimits | None = None
) -> AsyncIterator[tuple[Relays, int]]:
    """Publish the guest's ``port``; yields the relays and the port on the host."""
    relays = Relays(limits)
    listener = listen()
    host_port = int(listener.getsockname()[1])
    key = (GUEST, host_port)
    await relays.publish("vm", GUEST, {key: port}, {key: listener})
    try:
        yield relays, host_port
    finally:
        await relays.close()


async def test_bytes_pass_both_ways_and_one_side_may_end_first() -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()  # until the client has ended its stream
        writer.write(data[::-1])
        await writer.drain()
        writer.close()

    payload = bytes(range(256)) * 4096
    async with (
        await asyncio.start_server(reverse, GUEST, 0) as server,
        relayed(server.sockets[0].getsockname()[1]) as (_, port),
    ):
        reader, writer = await asyncio.open_connection(GUEST, port)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload[::-1]
        writer.close()


async def test_a_client_that_does_not_read_stops_the_guest_not_the_keeper() -> None:
    sent = 0
    stuck = asyncio.Event()

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while sent < 256 * 1024 * 1024:
                writer.write(bytes(65536))
                try:
                    async with asyncio.timeout(0.5):
                        await writer.drain()
                except TimeoutError:
                    stuck.set()
                    return
                sent += 65536
        writer.close()

    async with (
        await asyncio.start_server(pour, GUEST, 0) as server,
        relayed(server.sockets[0].getsockname()[1]) as (_, port),
    ):
        _, writer = await asyncio.open_connection(GUEST, port, limit=1024)
        async with asyncio.timeout(30):
            await stuck.wait()
        assert sent < 64 * 1024 * 1024
        writer.transport.abort()


async def test_a_port_nobody_listens_on_resets_the_client() -> None:
    with listen() as unused:
        dead = unused.getsockname()[1]
    async with relayed(dead) as (_, port):
        reader, writer = await asyncio.open_connection(GUEST, port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_guest_that_never_answers_does_not_hold_a_client() -> None:
    with socket.create_server((GUEST, 0), backlog=0) as full, contextlib.ExitStack() as stack:
        address = full.getsockname()
        for _ in range(4):  # nobody accepts: the backlog is full and further SYNs are dropped
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(address)
        async with relayed(address[1], RelayLimits(connect=0.3)) as (_, port):
            reader, writer = await asyncio.open_connection(GUEST, port)
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(20):
                    await reader.read()
            writer.close()
        with pytest.raises(GuestError, match="did not answer"):
            await connect(GUEST, address[1], 0.3)


async def test_a_half_closed_relay_without_data_is_ended() -> None:
    with listen() as guest:
        async with relayed(guest.getsockname()[1], RelayLimits(half_closed=0.2)) as (_, port):
            reader, writer = await asyncio.open_connection(GUEST, port)
            end = (await asyncio.get_running_loop().sock_accept(guest))[0]
            writer.write_eof()
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(20):
                    await reader.read()
            writer.close()
            end.close()


async def test_connections_beyond_the_limit_are_reset_and_free_places_are_used_again() -> None:
    with listen() as guest:
        loop = asyncio.get_running_loop()
        async with relayed(guest.getsockname()[1], RelayLimits(connections=2)) as (_, port):
            kept = [await asyncio.open_connection(GUEST, port) for _ in range(2)]
            ends = [(await loop.sock_accept(guest))[0] for _ in range(2)]
            reader, writer = await asyncio.open_connection(GUEST, port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            kept[0][1].close()
            ends[0].close()
            served = False
            async with asyncio.timeout(20):
                while not served:
                    reader, writer = await asyncio.open_connection(GUEST, port)
                    writer.write(b"x")
                    ended = asyncio.ensure_future(reader.read())
                    taken = asyncio.ensure_future(loop.sock_accept(guest))
                    await asyncio.wait((ended, taken), return_when=asyncio.FIRST_COMPLETED)
                    served = taken.done()
                    if served:
                        taken.result()[0].close()
                    taken.cancel()
                    await asyncio.gather(ended, return_exceptions=True)
                    writer.close()
            kept[1][1].close()
            ends[1].close()


async def test_unpublishing_ends_its_connections_and_frees_the_port() -> None:
    with listen() as guest:
        async with relayed(guest.getsockname()[1]) as (relays, port):
            reader, writer = await asyncio.open_connection(GUEST, port)
            end = (await asyncio.get_running_loop().sock_accept(guest))[0]
            await relays.publish("vm", GUEST, {}, {})
            assert relays.published("vm") == {}
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            end.close()
            with socket.socket() as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                again.bind((GUEST, port))
                again.listen()


async def test_a_port_that_stays_keeps_its_connections() -> None:
    with listen() as guest, listen() as other:
        async with relayed(guest.getsockname()[1]) as (relays, port):
            reader, writer = await asyncio.open_connection(GUEST, port)
            loop = asyncio.get_running_loop()
            end = (await loop.sock_accept(guest))[0]
            wanted = {(GUEST, port): int(other.getsockname()[1])}
            await relays.publish("vm", GUEST, wanted, {})
            await loop.sock_sendall(end, b"still here")
            assert await reader.readexactly(10) == b"still here"
            writer.close()
            end.close()
            _, second = await asyncio.open_connection(GUEST, port)
            (await loop.sock_accept(other))[0].close()
            second.close()
