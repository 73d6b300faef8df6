"""Operations: long work that is durable before it is answered, followed, listed and cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from hanok.errors import Cancelled, Conflict, HanokError, NotFound
from hanok.model.operation import Event, Operation, OperationState
from hanok.services.broadcast import Broadcast
from hanok.services.events import EventLog, make_event
from hanok.services.problems import problem_of
from hanok.store.base import Change, PutOperation, Store

_log = logging.getLogger(__name__)

Report = Callable[[str, float | None], None]


@dataclass
class Work:
    """An operation that runs: how its handler reports, and how others wait or cancel."""

    operation: Operation
    changes: Broadcast[Operation] = field(default_factory=Broadcast)
    task: asyncio.Task[None] | None = None
    parent: Work | None = None
    cancelled_by_user: bool = False
    quiet: bool = False

    @property
    def by_user(self) -> bool:
        """Whether a user cancelled it: what it made goes away again."""
        return self.cancelled_by_user or (self.parent is not None and self.parent.by_user)

    def part(self, kind: str, target: str, *, quiet: bool = False) -> Work:
        """Return a part of this work on another target.

        Its reports come out prefixed, those of a ``quiet`` one not at all.
        """
        update = {"kind": kind, "target": target}
        return Work(self.operation.model_copy(update=update), parent=self, quiet=quiet)

    def report(self, message: str, fraction: float | None = None) -> None:
        """Show ``message`` and how much is done (0 to 1, None: unknown) to all who follow."""
        if self.quiet:
            return
        if self.parent is not None:
            self.parent.report(f"{self.operation.target}: {message}", self.parent.done)
            return
        self.operation = self.operation.model_copy(
            update={"message": message, "fraction": fraction, "state": OperationState.RUNNING}
        )
        self.changes.send(self.operation)

    @property
    def done(self) -> float | None:
        """How much was done when it last reported."""
        return self.operation.fraction


Handler = Callable[[Work], Awaitable[dict[str, Any] | None]]


class Operations:
    """Runs handlers as operations. The handlers are found by kind, so a restart finds them too."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events
        self._handlers: dict[str, Handler] = {}
        self._cancellable: set[str] = set()
        self._running: dict[str, Work] = {}
        self._unsaved: dict[str, Operation] = {}
        self._closing = False

    def register(self, kind: str, handler: Handler, *, cancellable: bool = False) -> None:
        """Let ``handler`` do the operations of ``kind``; it must be safe to repeat.

        A user may cancel it when it is ``cancellable``: when its handler undoes what it did.
        """
        self._handlers[kind] = handler
        if cancellable:
            self._cancellable.add(kind)

    async def begin(
        self,
        kind: str,
        target: str,
        *changes: Change,
        arguments: dict[str, Any] | None = None,
        event: Event | None = None,
    ) -> Operation:
        """Make the operation and ``changes`` durable together, start it, and return it."""
        operation = Operation(
            id=uuid.uuid4().hex[:12],
            kind=kind,
            target=target,
            arguments=arguments or {},
            created=time.time(),
        )
        await self._events.commit(*changes, PutOperation(operation), event=event)
        self._launch(operation)
        return operation

    async def resume_all(self) -> list[str]:
        """Start again what an earlier daemon left unfinished; returns the targets."""
        unfinished = await self._store.operations(unfinished=True)
        for operation in unfinished:
            self._launch(operation)
        return [operation.target for operation in unfinished]

    def _launch(self, operation: Operation) -> None:
        work = Work(operation)
        self._running[operation.id] = work
        work.task = asyncio.create_task(self._perform(work), name=f"operation {operation.id}")

    async def _perform(self, work: Work) -> None:
        handler = self._handlers[work.operation.kind]
        try:
            result = await handler(work)
            changes: dict[str, Any] = {"state": OperationState.DONE, "result": result}
        except asyncio.CancelledError:
            if self._closing:
                self._running.pop(work.operation.id, None)
                work.changes.end()
                raise  # it stays unfinished in the store: the next daemon goes on with it
            error = Cancelled(f"{work.operation.kind} of {work.operation.target} was cancelled")
            changes = {"state": OperationState.CANCELLED, "error": problem_of(error)}
        except Exception as error:  # noqa: BLE001 - whatever happened belongs into the operation
            if problem_of(error).code == "internal":
                _log.exception("operation %s failed", work.operation.id)
            changes = {"state": OperationState.FAILED, "error": problem_of(error)}
        await self._finish(work, changes)

    async def _finish(self, work: Work, changes: dict[str, Any]) -> None:
        work.operation = work.operation.model_copy(update={**changes, "finished": time.time()})
        error = work.operation.error
        event = make_event(
            "operation",
            work.operation.target,
            f"{work.operation.kind}-{work.operation.state}",
            error.detail if error else "",
        )
        try:
            await self._events.commit(PutOperation(work.operation), event=event)
        except HanokError:
            # Whoever waits is told all the same; the next daemon does it once more.
            _log.exception("the end of operation %s could not be kept", work.operation.id)
            self._unsaved[work.operation.id] = work.operation
        self._running.pop(work.operation.id, None)
        work.changes.send(work.operation)
        work.changes.end()

    async def find(self, ident: str) -> Operation:
        """Return the operation as it is now. Raises NotFound."""
        if work := self._running.get(ident):
            return work.operation
        found = self._unsaved.get(ident) or await self._store.find_operation(ident)
        if found is None:
            raise NotFound(f"there is no operation {ident}", hint="see 'hanok operations list'")
        return found

    async def list(self) -> list[Operation]:
        """Return the operations kept, the newest first."""
        kept = await self._store.operations()
        now = {ident: work.operation for ident, work in self._running.items()} | self._unsaved
        return [now.get(item.id, item) for item in kept]

    async def follow(self, ident: str) -> AsyncIterator[Operation]:
        """Yield the operation whenever it changes, until it is final. Raises NotFound."""
        work = self._running.get(ident)
        if work is None:
            yield await self.find(ident)
            return
        with work.changes.subscribe() as live:
            yield work.operation
            async for operation in live:
                yield operation

    async def wait(self, ident: str) -> Operation:
        """Return the operation once it is final."""
        work = self._running.get(ident)
        if work is not None and work.task is not None:
            await asyncio.wait([work.task])
        return await self.find(ident)

    async def cancel(self, ident: str) -> Operation:
        """Cancel the operation, wait until it is undone, and return it.

        Raises NotFound, or Conflict when it has ended already or cannot be undone.
        """
        work = self._running.get(ident)
        if work is None or work.task is None:
            found = await self.find(ident)
            raise Conflict(f"operation {ident} has ended already ({found.state})")
        if work.operation.kind not in self._cancellable:
            raise Conflict(
                f"a {work.operation.kind} cannot be cancelled: it could not be undone",
                hint=f"'hanok operations follow {ident}' waits for its end",
            )
        work.cancelled_by_user = True
        work.task.cancel()
        return await self.wait(ident)

    async def supersede(self, target: str, kinds: tuple[str, ...], *, undo: bool = False) -> None:
        """End the running operations of ``kinds`` on ``target``: a later request replaces them.

        With ``undo`` what they made goes away again, as when a user cancels them.
        """
        for work in list(self._running.values()):
            if work.operation.target == target and work.operation.kind in kinds and work.task:
                work.cancelled_by_user |= undo
                work.task.cancel()
                await asyncio.wait([work.task])

    async def close(self) -> None:
        """Stop working; unfinished operations stay in the store for the next daemon."""
        self._closing = True
        tasks = [work.task for work in self._running.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
