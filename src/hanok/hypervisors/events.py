"""What happened to machines, on its way from a hypervisor to its one consumer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

from hanok.hypervisors.base import MachineEvent


class EventQueue:
    """A bounded queue of events: the newest of each kind and machine is kept.

    A guest can cause events as fast as it likes (by resetting itself, say). Only the newest event
    of a name waits for a machine, so a flood from one guest neither grows the queue nor pushes
    out what happened to another. The order of the newest events is the order they happened in.
    """

    def __init__(self) -> None:
        self._pending: OrderedDict[tuple[str, str], MachineEvent] = OrderedDict()
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, event: MachineEvent) -> None:
        """Add ``event``; nothing happens when the queue is closed."""
        if self._closed:
            return
        key = (event.uuid, event.name)
        self._pending.pop(key, None)
        self._pending[key] = event
        self._changed.set()

    def close(self) -> None:
        """End the iteration once all that waits has been taken."""
        self._closed = True
        self._changed.set()

    async def iterate(self) -> AsyncIterator[MachineEvent]:
        """Yield events until the queue is closed."""
        while True:
            while self._pending:
                yield self._pending.popitem(last=False)[1]
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()
