"""Work that must come to its end once it was begun, even when whoever waits is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_Result = TypeVar("_Result")


async def to_its_end(work: Awaitable[_Result]) -> _Result:
    """Return what ``work`` does, and let it come to its end even when we are cancelled."""
    working = asyncio.ensure_future(work)
    cancelled = False
    while not working.done():
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return working.result()
