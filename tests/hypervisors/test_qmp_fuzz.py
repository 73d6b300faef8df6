"""An emulator that was taken over says anything on its QMP socket: errors, and little memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import HypervisorError
from hanok.hypervisors.qemu.qmp import QmpConnection
from hanok.units import GIB, MIB
from tests.fuzz import bounded

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""},
        "capabilities": ["oob"],
    }
}
_LIMIT = 0.05
_HANG = 10.0
_PIECE = 65536
SCALARS: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["return", "error", "event", "id", "data", "timestamp", "class", "desc", "x"]
)
PLAIN = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=5)
MESSAGES = PLAIN | PLAIN.map(lambda found: {**found, "id": "ID"})
LINES = st.binary(max_size=80) | MESSAGES.map(lambda found: json.dumps(found).encode())


@contextlib.asynccontextmanager
async def emulator(greeting: bytes, answers: list[bytes]) -> AsyncIterator[Path]:
    """Give the socket of something that greets, agrees to talk, and then says ``answers``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(greeting)
            await reader.read(_PIECE)  # requests come one at a time, and without an end of line
            writer.write(b'{"return": {}}\n')
            while asked := await reader.read(_PIECE):
                ident = json.loads(asked).get("id", "")
                for answer in answers:
                    writer.write(answer.replace(b'"ID"', json.dumps(ident).encode()) + b"\n")
                    await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="hk-qmp-", dir="/tmp") as folder:
        path = Path(folder) / "qmp.sock"
        server = await asyncio.start_unix_server(serve, path, limit=4 * MIB)
        try:
            yield path
        finally:
            server.close()


async def talk(greeting: bytes, answers: list[bytes]) -> list[str]:
    """Ask the emulator something; return the events that came. Any other error is a fault."""
    events: list[str] = []
    async with emulator(greeting, answers) as path:
        connection = QmpConnection(path, os.getpid(), lambda name, data: events.append(name))
        try:
            for _ in range(2):
                with contextlib.suppress(HypervisorError):
                    await connection.execute("query-status", timeout=_LIMIT)
        finally:
            await connection.close()
    return events


@bounded(30, 5000)
@given(st.just(json.dumps(GREETING).encode() + b"\n") | LINES, st.lists(LINES, max_size=4))
def test_whatever_an_emulator_says_is_an_answer_or_an_error(
    greeting: bytes, answers: list[bytes]
) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(_HANG):
            await talk(greeting + b"\n", answers)

    asyncio.run(within_time())


async def test_a_gigabyte_without_an_end_costs_little() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(json.dumps(GREETING).encode()[:-1])
            block = b" " * MIB
            for _ in range(GIB // MIB):
                writer.write(block)
                await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="hk-qmp-", dir="/tmp") as folder:
        path = Path(folder) / "qmp.sock"
        server = await asyncio.start_unix_server(serve, path)
        connection = QmpConnection(path, os.getpid(), lambda name, data: None)
        tracemalloc.start()
        with pytest.raises(HypervisorError):
            await connection.execute("query-status", timeout=20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await connection.close()
        server.close()
    assert peak < 16 * MIB


async def test_events_without_end_are_handed_on_and_not_kept() -> None:
    told = json.dumps({"event": "RTC_CHANGE", "data": {}, "timestamp": {}}).encode()
    greeting = json.dumps(GREETING).encode() + b"\n"
    events = await talk(greeting, [told] * 50 + [b'{"return": {}, "id": "ID"}'])
    assert events.count("RTC_CHANGE") >= 50
