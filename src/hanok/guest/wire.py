"""The wire of the QEMU guest agent: JSON objects, one a line, read within bounds.

Source: QEMU, docs/interop/qemu-ga-ref. What comes from a guest is foreign: a line may be endless,
nested a million deep, or no JSON at all. Nothing here waits without the caller's time limit, and
what has come of a line that does not end costs no memory to speak of.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from hanok.errors import AgentUnavailable
from hanok.units import MIB

# Every answer but that to a command of a user's: the longest real ones are lists of what there is.
LINE_LIMIT = 2 * MIB
# The agent cuts each captured stream at 16 MiB, which is 21.4 MiB in base64. What has come of such
# a line waits in a file: a guest could else fill the daemon's memory with lines that do not end.
OUTPUT_LIMIT = 24 * MIB
SENTINEL = 0xFF
_CHUNK = 64 * 1024
_SYNC_LINE = 1024
# Longest real answer by structure: guest-info and guest-get-fsinfo, some thousand elements.
_STRUCTURE_LIMIT = 100_000
# What may be thrown away in search of a sentinel before the guest counts as hostile.
_DISCARD_LIMIT = 64 * MIB


class Flood(Exception):
    """The guest sent a line, or rubbish, beyond every bound; the connection is of no use."""


class WireReader:
    """Reads the agent's lines. At most LINE_LIMIT and one chunk are ever buffered in memory."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes that wait to be looked at."""
        return len(self._buffer)

    @property
    def ended(self) -> bool:
        """Whether the other side has hung up, and all that it said has been read."""
        return self._reader.at_eof()

    async def _fill(self, idle: float | None) -> None:
        """Add what the guest sends next; raises TimeoutError after ``idle`` seconds of silence."""
        async with asyncio.timeout(idle):
            chunk = await self._reader.read(_CHUNK)
        if not chunk:
            raise AgentUnavailable("the channel to the guest agent was closed")
        self._buffer += chunk

    async def read_line(self, idle: float | None = None, longest: int = LINE_LIMIT) -> bytes:
        """Return the next line without its end.

        Raises Flood beyond ``longest`` bytes, TimeoutError after ``idle`` seconds without a byte,
        and AgentUnavailable at the end of the stream.
        """
        seen = aside = 0
        with contextlib.ExitStack() as stack:
            file: IO[bytes] | None = None
            while (end := self._buffer.find(b"\n", seen)) < 0:
                seen = len(self._buffer)
                if aside + seen > longest:
                    self._buffer.clear()
                    raise Flood(f"the guest agent sent a line of more than {longest} bytes")
                if seen > LINE_LIMIT:
                    file = file or stack.enter_context(tempfile.TemporaryFile())
                    aside += file.write(self._buffer)
                    self._buffer.clear()
                    seen = 0
                await self._fill(idle)
            with memoryview(self._buffer) as view:
                line = bytes(view[:end])
            del self._buffer[: end + 1]
            if file is None:
                return line
            file.write(line)
            file.seek(0)
            return file.read()

    async def read_after_sentinel(self) -> bytes:
        """Drop everything up to the next 0xFF and return the line that follows it.

        Raises Flood when the guest floods and no sentinel comes.
        """
        dropped = 0
        while True:
            start = self._buffer.find(SENTINEL)
            if start < 0:
                dropped += len(self._buffer)
                self._buffer.clear()
            else:
                dropped += start + 1
                del self._buffer[: start + 1]
                if (line := await self._short_line()) is not None:
                    return line
            if dropped > _DISCARD_LIMIT:
                raise Flood("the guest agent sends rubbish without an end")
            if not self._buffer:
                await self._fill(None)

    async def _short_line(self) -> bytes | None:
        """Return the line at the start of the buffer, None when another sentinel comes first."""
        while True:
            end = self._buffer.find(b"\n", 0, _SYNC_LINE)
            again = self._buffer.find(SENTINEL, 0, _SYNC_LINE)
            if again >= 0 and (end < 0 or again < end):
                return None
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) >= _SYNC_LINE:
                return None
            await self._fill(None)


def encode_request(command: str, arguments: Mapping[str, Any] | None, ident: int) -> bytes:
    """Return the line that asks the agent for ``command``."""
    request: dict[str, Any] = {"execute": command, "id": ident}
    if arguments:
        request["arguments"] = arguments
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def parse_reply(line: bytes) -> dict[str, Any] | None:
    """Return the reply that ``line`` is, or None when it is none.

    A line of nothing but brackets would become a hundred times its size in memory: one with more
    structure than any real answer is no reply. Nor is a long one that is not ASCII, as all are that
    a real agent sends (QEMU, qobject/json-writer.c): each of its characters could take four bytes.
    """
    if len(line) > LINE_LIMIT and not line.isascii():
        return None
    if sum(line.count(mark) for mark in (b"[", b"{", b",")) > _STRUCTURE_LIMIT:
        return None
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or ("return" not in reply and "error" not in reply):
        return None
    return reply
