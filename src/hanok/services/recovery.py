"""What a daemon does first: take over what an earlier one left, finish or undo the rest."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Collection

from hanok.errors import HanokError
from hanok.filesystems import LOST_AND_FOUND
from hanok.hypervisors.base import MachineEvent, RunState
from hanok.hypervisors.optional import CanExplain, CanSweep
from hanok.model.vm import VmRecord, VmState, Wanted
from hanok.proc import find_owned, kill_and_wait
from hanok.services.diskwatch import DiskWatch
from hanok.services.events import make_event
from hanok.services.exports import ExportService
from hanok.services.guests import Guests
from hanok.services.images import ImageService
from hanok.services.keeping import End, crashed, ended
from hanok.services.lifecycle import Lifecycle
from hanok.services.machines import RUNS
from hanok.services.operations import Operations
from hanok.services.parts import Parts, changed, is_up
from hanok.services.templates import TemplateService
from hanok.services.vms import VmService
from hanok.shortage import tells_of_shortage

_log = logging.getLogger(__name__)
_AT_ONCE = 16
_OF_A_VM = ("vm", "tpm")
_TOLD = ("stopped", "crashed", "watchdog", "io-error")


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
        images: ImageService,
        exports: ExportService,
        disks: DiskWatch,
    ) -> None:
        self._parts = parts
        self._guests = guests
        self._lifecycle = lifecycle
        self._vms = vms
        self._templates = templates
        self._operations = operations
        self._images = images
        self._exports = exports
        self._disks = disks
        self._settling: set[asyncio.Task[None]] = set()
        self._watchers: list[asyncio.Task[None]] = []

    async def run(self, returning: Collection[str] = ()) -> None:
        """Sweep what belongs to nothing, adopt what runs, go on with what was left unfinished.

        VMs of the uuids ``returning`` went down with their host and are started again by whoever
        knows that: that they are gone is no failure of theirs.
        """
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
                    await self._adopt(record, returns=record.uuid in returning)

        await asyncio.gather(*(adopt(record) for record in records))
        self._watchers = [
            asyncio.create_task(self._watch(), name="hypervisor events"),
            asyncio.create_task(self._watch_panics(), name="panics"),
        ]
        self._disks.start()
        await self._operations.resume_all()

    async def _sweep(self, records: list[VmRecord]) -> None:
        """End processes and remove files that belong to no VM that there is."""
        known = {record.uuid for record in records}
        if isinstance(self._parts.hypervisor, CanSweep):
            await self._parts.hypervisor.sweep(known)
        for process in find_owned(self._parts.settings.home):
            if process.owner.kind in _OF_A_VM and process.owner.ident not in known:
                _log.warning("ending the process %s of a VM that is gone", process.pid)
                await kill_and_wait(process.pid)
        for folder in self._parts.settings.vms.iterdir():
            if folder.name not in known and folder.name != LOST_AND_FOUND:
                await asyncio.to_thread(shutil.rmtree, folder)
        used = {nic.network for record in records if is_up(record) for nic in record.nics}
        await self._parts.networks.sweep(used)
        await asyncio.to_thread(self._parts.images.sweep)
        await self._images.sweep()
        self._exports.sweep()

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
                await self._guests.connect(record, adopted=True)
        except HanokError:
            _log.exception("%s could not be reached", record.spec.name)

    async def _adopt(self, record: VmRecord, *, returns: bool) -> None:
        try:
            await self._adopt_one(record, returns=returns)
        except HanokError as error:
            _log.exception("%s could not be adopted", record.spec.name)
            reason = f"it could not be taken over: {error.message}"
            failed = changed(record, state=VmState.FAILED, reason=reason)
            await self._parts.save(failed, event="failed", message=reason)

    async def _adopt_one(self, record: VmRecord, *, returns: bool) -> None:
        if record.wanted is Wanted.ABSENT:
            await self._vms.delete(record.uuid, force=True)
            return
        if not is_up(record) or record.image_id is None:
            return
        if record.state is VmState.WAITING and not returns:
            return  # it has ended before, and its restart will come
        state = await self._parts.hypervisor.adopt(self._parts.machine(record))
        if state in RUNS:
            await self._take_over(record)
            if record.starved:
                return  # it goes on once there is room: see DiskWatch
            if state is RunState.PAUSED and record.wanted is Wanted.RUNNING:
                await self._parts.hypervisor.resume(record.uuid)  # it was being frozen
            return
        if returns:
            await self._lifecycle.settle_gone_down(record)
            return
        await self._lifecycle.settle_gone(record, await self._end_of(record, state))

    async def _end_of(self, record: VmRecord, state: RunState) -> End:
        """Return how a VM has ended while no daemon ran, as far as that can be told."""
        hypervisor = self._parts.hypervisor
        why = await hypervisor.explain(record.uuid) if isinstance(hypervisor, CanExplain) else ""
        if state is RunState.CRASHED:
            return crashed(self._lifecycle.crash_reason(record, state, why))
        if tells_of_shortage(why):
            return crashed(why)
        return End(True, why) if why else ended("")

    async def _take_over(self, record: VmRecord) -> None:
        await self._guests.connect(record, adopted=True)
        await self._parts.save(record, event="adopted")

    async def _watch(self) -> None:
        async for event in self._parts.hypervisor.events():
            if event.name == "io-error":
                self._disks.starves(event.uuid)
            if event.name in _TOLD:
                # Each by itself: one VM's lock, held while it boots, must not keep others waiting.
                task = asyncio.create_task(self._settle(event), name=f"settling {event.uuid}")
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)

    async def _settle(self, event: MachineEvent) -> None:
        try:
            await self._vms.seen(event)
        except HanokError:
            _log.exception("what happened to %s could not be settled", event.uuid)

    async def _watch_panics(self) -> None:
        async for event in self._guests.panics():
            try:
                await self._vms.panicked(event)
            except HanokError:
                _log.exception("the panic of %s could not be settled", event.uuid)

    async def close(self) -> None:
        """Stop watching."""
        await self._disks.close()
        tasks = [*self._settling, *self._watchers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
