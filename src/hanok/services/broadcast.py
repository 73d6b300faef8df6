"""One writer, many readers; a slow reader loses the oldest of its bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
_QUEUED = 1000


class Broadcast(Generic[T]):
    """Hands each item to every subscriber."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[T | None]] = set()

    def send(self, item: T) -> None:
        """Hand ``item`` to all who subscribe now."""
        for queue in self._queues:
            _push(queue, item)

    def end(self) -> None:
        """End every subscription: nothing more will come."""
        for queue in self._queues:
            _push(queue, None)

    @contextmanager
    def subscribe(self) -> Iterator[AsyncIterator[T]]:
        """Subscribe while the context is open; items sent from now on come out of the iterator."""
        queue: asyncio.Queue[T | None] = asyncio.Queue(_QUEUED)
        self._queues.add(queue)
        try:
            yield _drain(queue)
        finally:
            self._queues.discard(queue)


def _push(queue: asyncio.Queue[T | None], item: T | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)


async def _drain(queue: asyncio.Queue[T | None]) -> AsyncIterator[T]:
    while (item := await queue.get()) is not None:
        yield item
