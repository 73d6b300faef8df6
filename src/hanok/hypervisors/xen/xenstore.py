"""Xenstore, the tree of values in which domains and their back ends meet, over its daemon's socket.

The programs for it do the same, but one has to be started for each value: in a paravirtual Dom0
that takes longer than all else about it. Source: Xen, docs/misc/xenstore.txt and
xen/include/public/io/xs_wire.h.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from hanok.errors import HostError, HypervisorError, TimedOut

SOCKET = Path("/run/xenstored/socket")
# Type, request, transaction, bytes of the payload; in the byte order of the host.
_HEAD = struct.Struct("=4I")
_LONGEST = 4096
_LIMIT = 60.0
_NONE = "ENOENT"


class _Kind(IntEnum):
    DIRECTORY = 1
    READ = 2
    WATCH = 4
    WRITE = 11
    WATCH_EVENT = 15
    ERROR = 16


@dataclass(frozen=True)
class _Message:
    kind: int
    payload: bytes


class _Connection:
    """One connection: a request is answered before the next one is sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, kind: _Kind, payload: bytes) -> _Message:
        """Return the answer. Raises OSError, and EOFError when the daemon hung up."""
        self._writer.write(_HEAD.pack(kind, 0, 0, len(payload)) + payload)
        await self._writer.drain()
        while (answer := await self.receive()).kind == _Kind.WATCH_EVENT:
            pass  # of a watch that was just set: it may come before the answer
        return answer

    async def receive(self) -> _Message:
        """Return the next message. Raises OSError, and EOFError at the end."""
        kind, _, _, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
        if length > _LONGEST:
            raise OSError(f"a message of {length} bytes")
        return _Message(kind, await self._reader.readexactly(length))

    def close(self) -> None:
        """Close it."""
        self._writer.close()


class XenStore:
    """What can be read, written and watched in xenstore.

    Each method raises HypervisorError for what its daemon refuses, HostError when there is no
    daemon, and TimedOut when it does not answer.
    """

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._connection: _Connection | None = None
        self._lock = asyncio.Lock()

    async def read(self, path: str) -> str | None:
        """Return a value, None when there is no such node."""
        answer = await self._ask(_Kind.READ, path)
        return answer.decode("utf-8", "replace") if answer is not None else None

    async def write(self, path: str, value: str) -> None:
        """Write a value; the nodes above it are made."""
        await self._ask(_Kind.WRITE, path, value.encode())

    async def children(self, path: str) -> list[str]:
        """Return the names of the nodes just below ``path``; none when there is no such node."""
        answer = await self._ask(_Kind.DIRECTORY, path)
        return [name.decode() for name in (answer or b"").split(b"\0") if name]

    async def watch(self, path: str, seen: Callable[[], None]) -> None:
        """Call ``seen`` once at the start and whenever something becomes of ``path``.

        Returns when the daemon has hung up, at once when there is none or it refuses.
        """
        try:
            connection = await self._connect()
        except OSError:
            return
        try:
            answer = await connection.ask(_Kind.WATCH, f"{path}\0hanok\0".encode())
            seen()
            while answer.kind != _Kind.ERROR:
                await connection.receive()
                seen()
        except (OSError, EOFError):
            return
        finally:
            connection.close()

    def close(self) -> None:
        """Let go of the daemon, also of a mute one; a later request connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _ask(self, kind: _Kind, path: str, value: bytes = b"") -> bytes | None:
        payload = path.encode() + b"\0" + value
        try:
            async with asyncio.timeout(_LIMIT), self._lock:
                answer = await self._exchange(kind, payload)
        except TimeoutError:
            raise TimedOut(f"xenstored did not answer within {_LIMIT:g} s") from None
        except (OSError, EOFError) as error:
            raise self._absent(error) from error
        if answer.kind != _Kind.ERROR:
            return answer.payload
        why = answer.payload.rstrip(b"\0").decode("ascii", "replace")
        if why == _NONE and kind is not _Kind.WRITE:
            return None
        raise HypervisorError(f"xenstore refuses to {kind.name.lower()} {path}: {why}")

    async def _exchange(self, kind: _Kind, payload: bytes) -> _Message:
        """Ask over the connection that is kept; anew when the daemon was restarted since."""
        kept = self._connection is not None
        try:
            return await self._ask_once(kind, payload)
        except (OSError, EOFError):
            if not kept:
                raise
        return await self._ask_once(kind, payload)

    async def _ask_once(self, kind: _Kind, payload: bytes) -> _Message:
        if self._connection is None:
            self._connection = await self._connect()
        try:
            return await self._connection.ask(kind, payload)
        except BaseException:  # the answer to what was given up would be taken for the next one's
            self.close()
            raise

    async def _connect(self) -> _Connection:
        return _Connection(*await asyncio.open_unix_connection(self._path))

    def _absent(self, error: Exception) -> HostError:
        return HostError(
            f"xenstored does not answer at {self._path}: {error or type(error).__name__}",
            hint="'systemctl status xen' in Dom0 tells whether it runs",
        )
