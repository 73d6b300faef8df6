"""Panics that consoles tell of, and what only looks like one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.guest import panic
from hanok.guest.console import ConsoleHub
from hanok.guest.panic import PanicWatch, find_panic
from tests.machine import patient

# As Debian 12's kernel said it in a VM of mode full, and as GNU Mach 1.8 did.
LINUX = (
    b"[    0.068000]  </TASK>\r\n"
    b"[    0.068000] ---[ end Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with "
    b"apic=debug and send a report. ]---\r\n"
)
MACH = (
    b"RTC time is 2026-11-29 11:21:09\r\n\r"
    b"panic ../kern/bootstrap.c:181: bootstrap_create: "
    b"No bootstrap code loaded with the kernel!\n\r"
)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (LINUX, "Kernel panic - not syncing: IO-APIC + timer doesn't work!"),
        (LINUX.replace(b" ]---", b""), "Kernel panic - not syncing: IO-APIC"),
        (b"\x1b[1m" + LINUX.strip() + b"\x1b[0m", "Kernel panic - not syncing: IO-APIC"),
        (MACH, "panic ../kern/bootstrap.c:181: bootstrap_create: No bootstrap code"),
        (MACH + b"\n\n   \r\n", "panic ../kern/bootstrap.c:181"),
        (b"panic (cpu 1) ../a.c:3: f: why\r\n", "panic (cpu 1) ../a.c:3: f: why"),
    ],
)
def test_last_words_of_kernels(said: bytes, words: str) -> None:
    found = find_panic(said)
    assert found is not None
    assert found.startswith(words)
    assert "]---" not in found


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n",
        LINUX + b"root@web:~# ",
        LINUX + b"[   12.3] Rebooting in 5 seconds..\r\n",
        LINUX + b"SeaBIOS (version 1.16.2)\r\n",
        MACH + b"GNU Mach 1.8\r\n",
        b"panic: is a word in a novel\r\n",
        b"don't panic ../a.c:1: f: x\r\n",
        b"[ 1.0] Kernel panic - not syncing: is in the middle\r\n[ 1.1] CPU: 0 PID: 1\r\n",
    ],
)
def test_what_is_no_panic(said: bytes) -> None:
    assert find_panic(said) is None


@given(st.binary(max_size=5000))
def test_any_bytes_are_looked_at(said: bytes) -> None:
    found = find_panic(said)
    assert found is None or (found.isprintable() and len(found) <= 301)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Queue[str]]]:
    """Give what a guest says to its console, and what is told of it."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    said, told = asyncio.StreamReader(), asyncio.Queue[str]()
    hub = ConsoleHub(said, writer, folder / "console.log")
    watch = PanicWatch(hub, told.put_nowait)
    await hub.start()
    try:
        yield said, told
    finally:
        await watch.close()
        await hub.close()
        theirs.close()


async def test_it_is_told_once_and_only_after_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(panic, "SILENCE", 0.05)
    async with watched(tmp_path) as (said, told):
        for at in range(0, len(MACH), 7):
            said.feed_data(MACH[at : at + 7])
        async with asyncio.timeout(patient(10)):
            assert (await told.get()).startswith("panic ../kern/bootstrap.c:181")
        said.feed_data(LINUX)
        await asyncio.sleep(0.2)
        assert told.empty()


async def test_a_prompt_after_it_means_that_someone_reads_a_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(panic, "SILENCE", 0.5)
    async with watched(tmp_path) as (said, told):
        said.feed_data(LINUX)
        await asyncio.sleep(0.1)
        said.feed_data(b"~ # ")
        await asyncio.sleep(0.8)
        assert told.empty()
        said.feed_data(b"\r\n" + LINUX)
        async with asyncio.timeout(patient(10)):
            assert (await told.get()).startswith("Kernel panic")
