"""What happened: kept in the store, followed live."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from hanok.model.operation import Event
from hanok.services.broadcast import Broadcast
from hanok.store.base import AddEvent, Change, Store


def make_event(kind: str, target: str, name: str, message: str = "") -> Event:
    """Return an event that happens now; the store numbers it."""
    return Event(number=0, time=time.time(), kind=kind, target=target, name=name, message=message)


class EventLog:
    """Commits changes with the events that tell of them, and broadcasts these."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._live: Broadcast[Event] = Broadcast()

    async def commit(self, *changes: Change, event: Event | None = None) -> None:
        """Make ``changes`` and ``event`` durable together, then tell the followers."""
        added = await self._store.commit(*changes, *([AddEvent(event)] if event else []))
        for item in added:
            self._live.send(item)

    async def recent(self, since: int = 0) -> list[Event]:
        """Return the events kept with a number above ``since``."""
        return list(await self._store.events(since))

    async def follow(self, since: int = 0) -> AsyncIterator[Event]:
        """Yield the events kept, then those that come."""
        with self._live.subscribe() as live:
            last = since
            for event in await self._store.events(since):
                last = event.number
                yield event
            async for event in live:
                if event.number > last:
                    yield event

    def end(self) -> None:
        """End all who follow."""
        self._live.end()
