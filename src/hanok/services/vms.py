"""What users ask of VMs: each request is validated, admitted, made durable, then answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hanok.errors import Conflict, HanokError, NotFound, NotReady
from hanok.guest.seed import SeedData, build_seed
from hanok.hypervisors.base import MachineEvent, RunState
from hanok.images.recipes import is_own, resolve
from hanok.model.keeping import RestartsSeen
from hanok.model.operation import Operation
from hanok.model.vm import VmRecord, VmSpec, VmState, Wanted
from hanok.services.busy import BRINGS_UP, check_not_exported
from hanok.services.capacity import CapacityService
from hanok.services.diskroom import check_room_to_go_on, why_starved
from hanok.services.drafts import Drafts, check_duplicates
from hanok.services.events import make_event
from hanok.services.keeping import End, counted, crashed, ended
from hanok.services.lifecycle import Lifecycle
from hanok.services.machines import RUNS
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts, changed, is_up
from hanok.services.returning import Returning
from hanok.services.shape import folded
from hanok.services.suiting import check_architecture, check_keeping, suited
from hanok.services.warm import WarmStarts
from hanok.store.base import PutVm

# A guest that is not well may not listen either.
_HEAL_LIMIT = 10.0


class VmService:
    """The life of VMs, as operations."""

    def __init__(
        self,
        parts: Parts,
        lifecycle: Lifecycle,
        operations: Operations,
        capacity: CapacityService,
        drafts: Drafts,
        warm: WarmStarts,
        returning: Returning,
    ) -> None:
        self._parts = parts
        self._lifecycle = lifecycle
        self._operations = operations
        self._capacity = capacity
        self._drafts = drafts
        self._warm = warm
        self._returning = returning
        operations.register("run", self._run, cancellable=True)
        operations.register("start", self._start, cancellable=True)
        for kind, handler in {
            "stop": self._stop,
            "restart": self._restart,
            "pause": self._pause,
            "resume": self._resume,
            "delete": self._delete,
            "revive": self._revive,
            "heal": self._heal,
        }.items():
            operations.register(kind, handler)

    # What callers use

    async def run(self, spec: VmSpec) -> Operation:
        """Create a VM and bring it up. Raises InvalidInput, Conflict or NotAdmitted."""
        async with self._parts.locks.admission:
            record = await self.prepare(spec)
            return await self._admitted(record, "run", "created")

    async def _admitted(self, record: VmRecord, kind: str, event: str) -> Operation:
        name = record.spec.name
        operation = await self._operations.begin(
            kind, name, PutVm(record), event=make_event("vm", name, event)
        )
        self._parts.failpoints.hit("run.accepted")
        return operation

    async def prepare(self, spec: VmSpec, stack: str | None = None) -> VmRecord:
        """Return the record of a new VM, admitted and with addresses of its own, not yet kept.

        The caller holds the admission lock until the record is durable. Raises InvalidInput,
        Conflict or NotAdmitted; makes nothing but the network named default.
        """
        check_definition(spec)
        spec = await self.suit(spec)
        start = await self._warm.choose(spec)
        (record,) = await self._drafts.draft([spec], template=start.template, stack=stack)
        return changed(record, boot=start.boot)

    async def suit(self, spec: VmSpec) -> VmSpec:
        """Return a definition as its image wants it. Raises InvalidInput for what it cannot do."""
        find = self._parts.images.find
        image = await asyncio.to_thread(find, spec.image, spec.packages)
        facts = await self._parts.hypervisor.probe()
        arch = self._parts.images.architecture(spec.image, spec.packages)
        check_architecture(spec, arch, facts)
        if arch is not None and not facts.is_own(arch):
            spec = spec.model_copy(update={"architecture": arch})
        return suited(spec, image)

    async def start(self, name: str) -> Operation:
        """Bring a stopped VM up. Raises Conflict when it is up, NotAdmitted without room."""
        async with self._parts.locks.admission:
            record = await self._present(name)
            await check_not_exported(self._parts, record)
            if is_up(record) and record.state not in (VmState.FAILED, VmState.WAITING):
                raise Conflict(f"{record.spec.name} is {record.state} already")
            if not is_up(record):
                await self._capacity.admit(record.spec, await self._parts.store.vms())
            wanted = changed(
                record,
                wanted=Wanted.RUNNING,
                state=VmState.STARTING,
                reason=None,
                restarts=RestartsSeen(),
            )
            return await self._admitted(wanted, "start", "starting")

    async def restart(self, name: str) -> Operation:
        """Stop a VM and bring it up again."""
        record = await self._present(name)
        if not is_up(record):
            return await self.start(name)
        return await self._operations.begin("restart", record.spec.name)

    async def stop(self, name: str, *, force: bool, timeout: float | None) -> Operation:
        """Ask a VM's guest to power off, and end it after ``timeout`` seconds."""
        record = await self._present(name)
        await self._returning.forget([record.uuid])
        return await self._begin_stop(record.uuid, force=force, timeout=timeout)

    async def shut_down(self, name: str) -> Operation:
        """Ask a VM's guest to power off, since the daemon ends; it may be on the list to return."""
        return await self._begin_stop(name, force=False, timeout=None)

    async def _begin_stop(self, name: str, *, force: bool, timeout: float | None) -> Operation:
        record = await self._present(name)
        limit = self._parts.settings.stop_timeout if timeout is None else timeout
        if record.state is VmState.STOPPED:
            raise Conflict(f"{record.spec.name} is stopped already")
        arguments = {"force": force, "timeout": limit}
        return await self._operations.begin("stop", record.spec.name, arguments=arguments)

    async def pause(self, name: str) -> Operation:
        """Stop the vCPUs of a running VM; its memory stays."""
        record = await self._expect(name, (VmState.RUNNING, VmState.READY), "pause")
        return await self._operations.begin("pause", record.spec.name)

    async def resume(self, name: str) -> Operation:
        """Let a paused VM go on."""
        record = await self._expect(name, (VmState.PAUSED,), "resume")
        check_room_to_go_on(self._parts.settings, record)
        return await self._operations.begin("resume", record.spec.name)

    async def _present(self, name: str) -> VmRecord:
        """Return a VM. Raises NotFound, and Conflict while it is being deleted."""
        record = await self._parts.vm(name)
        if record.wanted is Wanted.ABSENT:
            raise Conflict(f"{record.spec.name} is being deleted")
        return record

    @asynccontextmanager
    async def _holding(self, name_or_uuid: str) -> AsyncIterator[VmRecord]:
        """Hold a VM's lock, and give what it is once that is held. Raises NotFound.

        What was read before may be long past: another operation had the lock meanwhile.
        """
        found = await self._parts.vm(name_or_uuid)
        async with self._parts.locks.by_vm[found.uuid]:
            yield await self._parts.vm(found.uuid)

    async def _expect(self, name: str, states: tuple[VmState, ...], verb: str) -> VmRecord:
        record = await self._present(name)
        if record.state not in states:
            allowed = " or ".join(states)
            raise Conflict(f"cannot {verb} {name}: it is {record.state}, not {allowed}")
        return record

    async def delete(self, name: str, *, force: bool) -> Operation:
        """Stop a VM if it runs (with ``force``) and remove it with its disk."""
        record = await self._parts.vm(name)
        await check_not_exported(self._parts, record)
        if is_up(record) and record.state is not VmState.FAILED and not force:
            raise Conflict(
                f"{record.spec.name} is {record.state}",
                hint=f"'hanok stop {record.spec.name}' first, or delete it with --force",
            )
        await self._returning.forget([record.uuid])
        return await self._operations.begin("delete", record.spec.name)

    # What the operations do

    async def _run(self, work: Work) -> dict[str, Any]:
        record = await self._parts.vm(work.operation.target)
        await self.bring_up_new(record.uuid, work)
        return {"name": record.spec.name, "uuid": record.uuid}

    async def bring_up_new(self, uuid: str, work: Work) -> None:
        """Bring up a VM that was just created; when it cannot run at all, it is removed again."""
        async with self._holding(uuid) as record:
            if record.state is VmState.READY:
                return  # an earlier daemon died after its last step
            try:
                record = await self._lifecycle.start(record, work.report)
            except HanokError:
                await self._lifecycle.remove(record)
                raise
            except asyncio.CancelledError:
                if work.by_user:
                    await self._lifecycle.remove(record)
                raise
            try:
                record = await self._lifecycle.become_ready(record, work.report)
            except asyncio.CancelledError:
                if work.by_user:
                    await self._end(record, work)
                    await self._lifecycle.remove(record)
                raise
        await self._warm.consider(record)

    async def _start(self, work: Work) -> dict[str, Any]:
        record = await self._parts.vm(work.operation.target)
        await self.bring_up_again(record.uuid, work)
        return {"name": record.spec.name, "uuid": record.uuid}

    async def bring_up_again(self, uuid: str, work: Work) -> None:
        """Bring up a VM that existed before; when it cannot run, it is kept, with the reason."""
        async with self._holding(uuid) as record:
            await self._bring_up(record, work)

    async def _bring_up(self, record: VmRecord, work: Work) -> None:
        try:
            record = await self._lifecycle.start(record, work.report)
            await self._lifecycle.become_ready(record, work.report)
        except asyncio.CancelledError:
            if work.by_user:
                await self._end(record, work)
                await self._lifecycle.settle_stopped(record)
            raise
        except NotReady:
            raise
        except HanokError as error:
            await self._lifecycle.settle_ended(record, crashed(error.message))
            raise

    async def _end(self, record: VmRecord, work: Work) -> None:
        await self._lifecycle.stop(record, force=True, timeout=0, report=work.report)

    async def _stop(self, work: Work) -> None:
        name = work.operation.target
        await self._operations.supersede(name, BRINGS_UP)
        arguments = work.operation.arguments
        async with self._holding(name) as record:
            await self._lifecycle.stop(
                record,
                force=bool(arguments["force"]),
                timeout=float(arguments["timeout"]),
                report=work.report,
            )
            await self._lifecycle.settle_stopped(record)

    async def _restart(self, work: Work) -> None:
        async with self._holding(work.operation.target) as record:
            limit = self._parts.settings.stop_timeout
            await self._lifecycle.stop(record, force=False, timeout=limit, report=work.report)
            again = changed(folded(record), wanted=Wanted.RUNNING, restarts=RestartsSeen())
            await self._bring_up(again, work)

    async def _revive(self, work: Work) -> dict[str, Any]:
        """Start a VM whose restart is due, unless its user has decided otherwise meanwhile."""
        uuid, due = str(work.operation.arguments["uuid"]), work.operation.arguments["due"]
        async with self._holding(uuid) as record:
            if record.wanted is Wanted.RUNNING:
                if record.state is VmState.WAITING and record.restarts.next == due:
                    record = await self._count_restart(record)
                if record.state in (VmState.STARTING, VmState.RUNNING):
                    await self._bring_up(record, work)
        return {"name": record.spec.name, "uuid": uuid}

    async def _count_restart(self, record: VmRecord) -> VmRecord:
        seen, policy = record.restarts, record.spec.restart
        number = seen.streak + 1
        restarts = seen.model_copy(
            update={"streak": number, "total": seen.total + 1, "next": None, "last": time.time()}
        )
        record = changed(record, state=VmState.STARTING, restarts=restarts)
        message = f"{counted(policy, number)}: {seen.reason}"
        await self._parts.save(record, event="restarting", message=message)
        self._parts.failpoints.hit("restart.counted")
        return record

    async def _heal(self, work: Work) -> None:
        """End a VM that is not well, as its definition asks; its restart policy does the rest."""
        arguments = work.operation.arguments
        async with self._holding(str(arguments["uuid"])) as record:
            same = record.started == arguments["started"]
            if record.wanted is not Wanted.RUNNING or not same or record.state is VmState.WAITING:
                return
            limit = min(self._parts.settings.stop_timeout, _HEAL_LIMIT)
            await self._lifecycle.stop(record, force=False, timeout=limit, report=work.report)
            await self._lifecycle.settle_ended(record, crashed(str(arguments["why"])))

    async def _pause(self, work: Work) -> None:
        async with self._holding(work.operation.target) as record:
            await self._parts.hypervisor.pause(record.uuid)
            record = changed(record, wanted=Wanted.PAUSED, state=VmState.PAUSED)
            await self._parts.save(record, event="paused")

    async def _resume(self, work: Work) -> None:
        await self.resume_now(work.operation.target)

    async def resume_now(self, name_or_uuid: str) -> None:
        """Let the vCPUs of a paused VM go on."""
        async with self._holding(name_or_uuid) as record:
            await self._parts.hypervisor.resume(record.uuid)
            state = VmState.READY if record.ready_seconds is not None else VmState.RUNNING
            record = changed(record, wanted=Wanted.RUNNING, state=state, reason=None, starved=False)
            await self._parts.save(record, event="resumed")
            await self._lifecycle.set_clock(record)
            self._lifecycle.on_change(record.uuid)

    async def _delete(self, work: Work) -> None:
        self._parts.failpoints.hit("delete.begin")
        name = work.operation.target
        await self._operations.supersede(name, (*BRINGS_UP, "stop"))
        record = await self._parts.store.find_vm(name)
        if record is None:  # a daemon that died after its last step has left only the operation
            return
        await self.take_down(record.uuid, work)

    async def take_down(self, uuid: str, work: Work) -> None:
        """End a VM and remove it."""
        async with self._holding(uuid) as record:
            gone = changed(record, wanted=Wanted.ABSENT)
            await self._parts.save(gone)
            await self._end(gone, work)
            await self._lifecycle.remove(gone)

    async def seen(self, event: MachineEvent) -> None:
        """Look at a VM whose end the hypervisor told, and write down what is seen."""
        try:
            await self._settle_seen(event)
        except NotFound:
            return  # it was deleted meanwhile

    async def panicked(self, event: MachineEvent) -> None:
        """Write down what a console told of its kernel."""
        try:
            async with self._holding(event.uuid) as record:
                await self._lifecycle.settle_panic(record, event.detail)
        except NotFound:
            return

    async def _settle_seen(self, event: MachineEvent) -> None:
        async with self._holding(event.uuid) as record:
            state = await self._parts.hypervisor.state(event.uuid)
            if event.name == "io-error":
                await self._settle_io_error(record, state, event.detail)
                return
            if not is_up(record) or record.state is VmState.WAITING:
                return
            if state not in RUNS:
                await self._lifecycle.settle_gone(record, self._end_of(record, state, event))
            elif event.name == "watchdog" and record.state in (VmState.READY, VmState.RUNNING):
                await self._seen_reset(record, event.detail)

    def _end_of(self, record: VmRecord, state: RunState, event: MachineEvent) -> End:
        if event.name == "crashed":
            return crashed(self._lifecycle.crash_reason(record, state, event.detail))
        end = ended(event.detail)
        if record.state is VmState.FAILED and record.reason is not None:
            return crashed(record.reason)  # it was never ready
        return end

    async def _seen_reset(self, record: VmRecord, detail: str) -> None:
        """A guest was reset by its watchdog: it boots, and is waited for as after any start."""
        booting = changed(record, state=VmState.RUNNING, ready_seconds=None, evidence=None)
        told = make_event("vm", record.spec.name, "watchdog", f"{detail}; it was reset")
        await self._operations.begin(
            "revive",
            record.spec.name,
            PutVm(booting),
            arguments={"uuid": record.uuid, "due": None},
            event=told,
        )

    async def _settle_io_error(self, record: VmRecord, state: RunState, detail: str) -> None:
        """Write down that a disk failed, and whether the VM is paused because of that."""
        if state is not RunState.PAUSED or not is_up(record):
            told = make_event("vm", record.spec.name, "io-error", detail)
            await self._parts.events.commit(event=told)
        elif record.wanted is Wanted.RUNNING:
            reason = why_starved(self._parts.settings, record, detail)
            record = changed(record, state=VmState.PAUSED, reason=reason, starved=True)
            await self._parts.save(record, event="io-error", message=reason)


def check_definition(spec: VmSpec) -> None:
    """Raise InvalidInput for what contradicts itself, whatever else there is on this host."""
    # Whether an image made of another has cloud-init is known once it is looked at.
    has_cloud_init = is_own(spec.image) or resolve(spec.image, spec.packages).kind == "debian"
    # The seed is built for its checks alone: a mistake is told now, not after an image was built.
    build_seed(
        SeedData(
            instance_id="check",
            host_name=spec.name,
            user_data=spec.user_data,
            cloud_init=has_cloud_init,
        )
    )
    check_duplicates(spec)
    check_keeping(spec)
