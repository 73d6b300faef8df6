"""What a daemon does first: take over what an earlier one left, finish or undo the rest."""

from __future__ import annotations

import asyncio
import logging
import shutil

from hanok.errors import HanokError
from hanok.hypervisors.base import RunState
from hanok.model.vm import VmRecord, VmState, Wanted
from hanok.proc import find_owned, kill_and_wait
from hanok.services.events import make_event
from hanok.services.guests import Guests
from hanok.services.lifecycle import Lifecycle
from hanok.services.operations import Operations
from hanok.services.parts import Parts, changed, is_up
from hanok.services.templates import TemplateService
from hanok.services.vms import VmService

_log = logging.getLogger(__name__)
_AT_ONCE = 16


class Recovery:
    """Runs once, before the API answers."""

    def __init__(
        self,
        parts: Parts,
        guests: Guests,
        lifecycle: Lifecycle,
        vms: VmService,
        templates: TemplateService,
        operations: Operations,
    ) -> None:
        self._parts = parts
        self._guests = guests
        self._lifecycle = lifecycle
        self._vms = vms
        self._templates = templates
        self._operations = operations
        self._watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Sweep what belongs to nothing, adopt what runs, go on with what was left unfinished."""
        records = await self._parts.store.vms()
        await self._templates.recover()
        await self._sweep(records)
        await self._adopt_networks(records)
        unfinished = await self._parts.store.operations(unfinished=True)
        busy = {operation.target for operation in unfinished}
        busy |= {uuid for operation in unfinished for uuid in operation.arguments.get("vms", ())}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def adopt(record: VmRecord) -> None:
            async with gate:
                if busy & {record.spec.name, record.stack, record.uuid}:
                    await self._reach(record)
                else:
                    await self._adopt(record)

        await asyncio.gather(*(adopt(record) for record in records))
        self._watcher = asyncio.create_task(self._watch(), name="hypervisor events")
        await self._operations.resume_all()

    async def _sweep(self, records: list[VmRecord]) -> None:
        """End processes and remove files that belong to no VM that there is."""
        known = {record.uuid for record in records}
        for process in find_owned(self._parts.settings.home, "vm"):
            if process.owner.ident not in known:
                _log.warning("ending the process %s of a VM that is gone", process.pid)
                await kill_and_wait(process.pid)
        for folder in self._parts.settings.vms.iterdir():
            if folder.name not in known:
                await asyncio.to_thread(shutil.rmtree, folder)
        used = {nic.network for record in records if is_up(record) for nic in record.nics}
        await self._parts.networks.sweep(used)
        await asyncio.to_thread(self._parts.images.sweep)

    async def _adopt_networks(self, records: list[VmRecord]) -> None:
        """Take over the networks in use, and start those whose keeper has died."""
        for name in {nic.network for vm in records if is_up(vm) for nic in vm.nics}:
            try:
                network = await self._parts.network(name)
                await self._parts.networks.ensure(network, await self._parts.ports_on(name))
            except HanokError as error:
                _log.exception("the network %s could not be taken over", name)
                told = make_event("network", name, "failed", error.message)
                await self._parts.events.commit(event=told)

    async def _reach(self, record: VmRecord) -> None:
        """Connect to a VM whose operation goes on: it decides what becomes of it."""
        if record.image_id is None:
            return
        try:
            state = await self._parts.hypervisor.adopt(self._parts.machine(record))
            if state is RunState.RUNNING:
                await self._guests.connect(record)
        except HanokError:
            _log.exception("%s could not be reached", record.spec.name)

    async def _adopt(self, record: VmRecord) -> None:
        try:
            await self._adopt_one(record)
        except HanokError as error:
            _log.exception("%s could not be adopted", record.spec.name)
            reason = f"it could not be taken over: {error.message}"
            failed = changed(record, state=VmState.FAILED, reason=reason)
            await self._parts.save(failed, event="failed", message=reason)

    async def _adopt_one(self, record: VmRecord) -> None:
        if record.wanted is Wanted.ABSENT:
            await self._vms.delete(record.uuid, force=True)
            return
        if not is_up(record) or record.image_id is None:
            return
        state = await self._parts.hypervisor.adopt(self._parts.machine(record))
        if state in (RunState.RUNNING, RunState.PAUSED):
            await self._take_over(record)
            if state is RunState.PAUSED and record.wanted is Wanted.RUNNING:
                await self._parts.hypervisor.resume(record.uuid)  # it was being frozen
            return
        crashed = state is RunState.CRASHED
        reason = self._lifecycle.crash_reason(record, state, "") if crashed else None
        await self._lifecycle.settle_gone(record, reason)

    async def _take_over(self, record: VmRecord) -> None:
        await self._guests.connect(record)
        await self._parts.save(record, event="adopted")

    async def _watch(self) -> None:
        async for event in self._parts.hypervisor.events():
            if event.name in ("stopped", "crashed"):
                try:
                    await self._vms.seen(event)
                except HanokError:
                    _log.exception("what happened to %s could not be settled", event.uuid)

    async def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
