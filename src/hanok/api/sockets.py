"""Web sockets as streams: what the routes to consoles, screens and ports of guests share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from hanok.api.common import problem_response
from hanok.errors import HanokError

CHUNK = 65536


async def refuse(websocket: WebSocket, error: HanokError) -> None:
    """Answer with a problem instead of a stream."""
    await websocket.send_denial_response(problem_response(error))


async def first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Carry all out until one ends, however it does; the others are cancelled then."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def close(websocket: WebSocket) -> None:
    """Close it, unless the other side has."""
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await websocket.close()
