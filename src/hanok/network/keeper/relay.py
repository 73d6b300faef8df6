"""Published ports: connections that come in on the host, relayed to a guest.

The listening sockets were made by the daemon in the host's network namespace; the sockets to
the guest are made here, inside. Buffers, connections and waiting times are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from hanok.errors import GuestError

Key = tuple[str, int]  # address and port on the host


@dataclass(frozen=True)
class RelayLimits:
    """``half_closed``: seconds without data after one side has ended its stream."""

    connections: int = 512
    connect: float = 10
    half_closed: float = 600
    buffer: int = 32 * 1024


_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 120_000,  # milliseconds
}


@dataclass
class _Listener:
    vm: str
    target: tuple[str, int]
    socket: socket.socket
    task: asyncio.Task[None] | None = None
    connections: set[asyncio.Task[None]] = field(default_factory=set)


async def connect(address: str, port: int, timeout: float) -> socket.socket:
    """Return a non-blocking socket connected to a guest; raises GuestError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            await loop.sock_connect(sock, (address, port))
    except TimeoutError:
        sock.close()
        raise GuestError(
            f"{address} did not answer on port {port} within {timeout:g} s",
            hint="is the guest up, and has it an address?",
        ) from None
    except ConnectionRefusedError:
        sock.close()
        raise GuestError(
            f"{address} refused a connection to port {port}",
            hint="does the guest's service listen on this port, and on all addresses?",
        ) from None
    except OSError as error:
        sock.close()
        raise GuestError(
            f"{address} cannot be reached: {error.strerror}",
            hint="is the guest up, and has it an address?",
        ) from error
    except BaseException:
        sock.close()
        raise
    return sock


class Relays:
    """All published ports of a network."""

    def __init__(self, limits: RelayLimits | None = None) -> None:
        self._limits = limits or RelayLimits()
        self._listeners: dict[Key, _Listener] = {}
        self._count = 0

    def published(self, vm: str) -> dict[Key, int]:
        """Return the published ports of ``vm``: address and port on the host to guest port."""
        return {k: entry.target[1] for k, entry in self._listeners.items() if entry.vm == vm}

    async def publish(
        self, vm: str, address: str, wanted: Mapping[Key, int], new: Mapping[Key, socket.socket]
    ) -> None:
        """Make the ports of ``vm``, whose address is ``address``, exactly ``wanted``.

        ``new`` holds a listening socket for each that is not published yet; they belong to the
        relays from now on. A port that stays keeps its connections.
        """
        for key in self.published(vm).keys() - wanted.keys():
            await self._remove(key)
        for key, guest_port in wanted.items():
            entry = self._listeners.get(key)
            if entry is not None:
                entry.target = (address, guest_port)
            else:
                self._add(key, _Listener(vm, (address, guest_port), new[key]))

    async def close(self) -> None:
        """End everything."""
        for key in list(self._listeners):
            await self._remove(key)

    def _add(self, key: Key, entry: _Listener) -> None:
        entry.socket.setblocking(False)
        self._listeners[key] = entry
        entry.task = asyncio.create_task(self._accept(entry))

    async def _remove(self, key: Key) -> None:
        entry = self._listeners.pop(key)
        tasks = [*entry.connections]
        if entry.task is not None:
            tasks.append(entry.task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        entry.socket.close()

    async def _accept(self, entry: _Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(entry.socket)
            except OSError:  # it was reset before we got it, or descriptors are short
                await asyncio.sleep(0.1)
                continue
            if self._count >= self._limits.connections:
                _reset(client)
                continue
            self._count += 1
            task = asyncio.create_task(self._serve(client, entry.target))
            entry.connections.add(task)
            task.add_done_callback(entry.connections.discard)
            task.add_done_callback(self._uncount)

    def _uncount(self, _: asyncio.Task[None]) -> None:
        self._count -= 1

    async def _serve(self, client: socket.socket, target: tuple[str, int]) -> None:
        with contextlib.ExitStack() as stack:
            # Whatever is not a proper end of both streams is a reset.
            stack.callback(_reset, client)
            with contextlib.suppress(GuestError, OSError, TimeoutError):
                guest = await connect(*target, self._limits.connect)
                stack.callback(_reset, guest)
                await _relay(client, guest, self._limits)
                client.close()
                guest.close()


def _reset(sock: socket.socket) -> None:
    """Close with a reset, so that a broken stream does not look like one that ended well."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def _relay(client: socket.socket, guest: socket.socket, limits: RelayLimits) -> None:
    """Copy both ways until both streams have ended.

    Raises OSError when a side breaks, TimeoutError when one direction has ended and the other
    is silent for too long.
    """
    for sock in (client, guest):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in _KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    pumps = (_Pump(client, guest), _Pump(guest, client))
    pending = {asyncio.create_task(pump.run(limits.buffer)) for pump in pumps}
    patience = None
    try:
        while pending:
            before = sum(pump.moved for pump in pumps)
            done, pending = await asyncio.wait(
                pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if not done and sum(pump.moved for pump in pumps) == before:
                raise TimeoutError
            patience = limits.half_closed
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


class _Pump:
    """One direction of a relay; ``moved`` counts its bytes."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source = source
        self._sink = sink
        self.moved = 0

    async def run(self, size: int) -> None:
        """Copy until the source ends its stream, then end the sink's."""
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(size))
        while count := await loop.sock_recv_into(self._source, buffer):
            await loop.sock_sendall(self._sink, buffer[:count])
            self.moved += count
        self._sink.shutdown(socket.SHUT_WR)
