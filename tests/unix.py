"""Sockets of QEMUs that tests start by themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from tests.machine import patient

# Agents print lines of any length.
_LONGEST = 2**22


async def connect_to_new(
    path: Path, ended: Callable[[], object]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket that QEMU is about to make: it serves a moment after its name appears.

    ``ended`` says with what QEMU has ended, None while it runs: then AssertionError is raised.
    """
    async with asyncio.timeout(patient(20)):
        while (end := ended()) is None:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return await asyncio.open_unix_connection(path, limit=_LONGEST)
            await asyncio.sleep(0.01)
    raise AssertionError(f"QEMU ended: {end}")
