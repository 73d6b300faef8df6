"""Looks after VMs: starts again what its policy wants started, and checks who is healthy.

Nothing that counts is only here: when a restart is due is in the VM's record, and the restart
itself is an operation. So the next daemon goes on where one was killed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from hanok.errors import HanokError
from hanok.guest.readiness import check_once
from hanok.model.keeping import Health, HealthSeen, HealthState, OnUnhealthy
from hanok.model.vm import Ready, VmRecord, VmState, Wanted
from hanok.services.events import make_event
from hanok.services.guests import Guests
from hanok.services.keeping import Clock
from hanok.services.operations import Operations
from hanok.services.parts import Parts, changed
from hanok.services.vms import VmService
from hanok.store.base import PutVm

_log = logging.getLogger(__name__)
# A clock that is set back must not keep a VM waiting for hours.
_LONGEST_PAUSE = 60.0
_AFTER_ERROR = 10.0


@dataclass
class _Watch:
    """What is going on for one VM: ``woken`` is set when it has changed."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    started: float | None = None
    due: float = 0.0
    failures: int = 0


class Supervisor:
    """One watch a VM that waits for a restart, or that is to be checked."""

    def __init__(
        self, parts: Parts, guests: Guests, vms: VmService, operations: Operations, clock: Clock
    ) -> None:
        self._parts = parts
        self._guests = guests
        self._vms = vms
        self._operations = operations
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._open = False

    async def start(self) -> None:
        """Begin: comes after recovery, which says what has become of each VM."""
        self._open = True
        for record in await self._parts.store.vms():
            self.look(record.uuid)

    def look(self, uuid: str) -> None:
        """Look at a VM that has changed; returns at once."""
        if not self._open:
            return
        watch = self._watches.get(uuid)
        if watch is None:
            watch = self._watches[uuid] = _Watch()
            watch.task = asyncio.create_task(self._watch(uuid, watch), name=f"watch {uuid}")
        watch.woken.set()

    async def close(self) -> None:
        """End all watches; operations that were begun go on."""
        self._open = False
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, uuid: str, watch: _Watch) -> None:
        while True:
            watch.woken.clear()
            try:
                record = await self._parts.store.find_vm(uuid)
                pause = None if record is None else await self._tend(record, watch)
            except HanokError:
                _log.exception("the VM %s could not be looked after", uuid)
                pause = _AFTER_ERROR
            if pause is not None:
                await self._clock.pause(min(pause, _LONGEST_PAUSE), watch.woken)
            elif not watch.woken.is_set():
                self._watches.pop(uuid, None)
                return

    async def _tend(self, record: VmRecord, watch: _Watch) -> float | None:
        """Do what is to be done now; return the seconds until then, None: nothing ever."""
        if record.internal or record.wanted is not Wanted.RUNNING:
            return None
        if record.state is VmState.WAITING:
            due = record.restarts.next or 0.0
            left = due - self._clock.now()
            if left > 0:
                return left
            await self._do("revive", record, {"uuid": record.uuid, "due": due})
            return 0.0
        if record.state is VmState.READY and record.spec.health is not None:
            return await self._examine(record, record.spec.health, watch)
        return None

    async def _do(self, kind: str, record: VmRecord, arguments: dict[str, Any]) -> None:
        operation = await self._operations.begin(kind, record.spec.name, arguments=arguments)
        self._parts.failpoints.hit(f"{kind}.accepted")
        await self._operations.wait(operation.id)

    # Health

    async def _examine(self, record: VmRecord, health: Health, watch: _Watch) -> float:
        """Check a VM if that is due; return the seconds until the next check."""
        if watch.started != record.started:
            watch.started, watch.failures = record.started, 0
            watch.due = self._clock.now() + health.interval
        left = watch.due - self._clock.now()
        if 0 < left <= health.interval:
            return left
        problem = await self._check(record, health)
        now = self._clock.now()
        watch.due = now + health.interval
        if problem is None:
            watch.failures = 0
            await self._note(record, HealthSeen(state=HealthState.HEALTHY, since=now))
        elif now >= _ready_at(record) + health.grace:
            watch.failures += 1
            if watch.failures >= health.retries:
                await self._unhealthy(record, health, problem, now)
        return health.interval

    async def _check(self, record: VmRecord, health: Health) -> str | None:
        """Return what is wrong with a VM, None when its check succeeds."""
        ready = Ready(port=health.port, url=health.url, command=health.command)
        try:
            async with asyncio.timeout(health.timeout):
                return await check_once(ready, self._guests.probe(record))
        except TimeoutError:
            return f"{health.text}: no answer within {health.timeout:g} s"

    async def _unhealthy(self, record: VmRecord, health: Health, problem: str, now: float) -> None:
        seen = HealthSeen(state=HealthState.UNHEALTHY, since=now, message=problem)
        if not await self._note(record, seen):
            return
        if health.on_unhealthy is OnUnhealthy.RESTART:
            why = f"it is unhealthy: {problem}"
            arguments = {"uuid": record.uuid, "started": record.started, "why": why}
            await self._do("heal", record, arguments)

    async def _note(self, record: VmRecord, seen: HealthSeen) -> bool:
        """Keep what is new; return whether the VM is still the one that was checked."""
        async with self._parts.locks.by_vm[record.uuid]:
            now = await self._parts.store.find_vm(record.uuid)
            if now is None or now.state is not VmState.READY or now.started != record.started:
                return False
            before = now.health
            if before is not None and before.state is seen.state:
                return True
            first_and_well = before is None and seen.state is HealthState.HEALTHY
            told = None
            if not first_and_well:
                told = make_event("vm", now.spec.name, str(seen.state), seen.message)
            await self._parts.events.commit(PutVm(changed(now, health=seen)), event=told)
            return True


def _ready_at(record: VmRecord) -> float:
    return (record.started or 0.0) + (record.ready_seconds or 0.0)
