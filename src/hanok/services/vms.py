"""What users ask of VMs: each request is validated, admitted, made durable, then answered."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from hanok.errors import Conflict, HanokError, InvalidInput
from hanok.guest.seed import SeedData, build_seed
from hanok.hypervisors.base import RunState
from hanok.images.recipes import resolve
from hanok.model.operation import Operation
from hanok.model.vm import NicRecord, VmRecord, VmSpec, VmState, Wanted
from hanok.network.base import free_address, make_mac
from hanok.services.capacity import CapacityService
from hanok.services.events import make_event
from hanok.services.lifecycle import Lifecycle
from hanok.services.networks import NetworkService
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts, changed, is_up, new_uuid
from hanok.store.base import PutVm

_UIDS = 50_000
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - compared with, never bound to
# What a later stop or delete replaces: nobody needs to wait for a guest that is to go.
_BRINGS_UP = ("run", "start", "restart", "resume")


class VmService:
    """The life of VMs, as operations."""

    def __init__(
        self,
        parts: Parts,
        lifecycle: Lifecycle,
        operations: Operations,
        capacity: CapacityService,
        networks: NetworkService,
    ) -> None:
        self._parts = parts
        self._lifecycle = lifecycle
        self._operations = operations
        self._capacity = capacity
        self._networks = networks
        for kind, handler in {
            "run": self._run,
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "pause": self._pause,
            "resume": self._resume,
            "delete": self._delete,
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
        mode = self._parts.hypervisor.choose_mode(spec.mode)
        everyone = await self._parts.store.vms()
        if any(vm.spec.name == spec.name for vm in everyone):
            raise Conflict(
                f"a VM named {spec.name} exists already",
                field="name",
                hint=f"choose another name, or 'hanok delete {spec.name}' first",
            )
        for name in spec.networks:
            await self._networks.find_or_default(name)
        _check_publish(spec, everyone)
        await self._capacity.admit(spec, everyone)
        uuid = new_uuid()
        return VmRecord(
            uuid=uuid,
            spec=spec,
            wanted=Wanted.RUNNING,
            created=time.time(),
            uid=self._free_uid(everyone),
            mode=mode,
            hypervisor=self._parts.hypervisor.name,
            nics=await self._addresses(uuid, spec, everyone),
            stack=stack,
        )

    def _free_uid(self, everyone: list[VmRecord]) -> int:
        taken = {vm.uid for vm in everyone}
        base = self._parts.settings.uid_base
        return next(uid for uid in range(base, base + _UIDS) if uid not in taken)

    async def _addresses(
        self, uuid: str, spec: VmSpec, everyone: list[VmRecord]
    ) -> tuple[NicRecord, ...]:
        nics: list[NicRecord] = []
        for index, name in enumerate(spec.networks):
            network = await self._parts.network(name)
            taken = [nic.address for vm in everyone for nic in vm.nics if nic.network == name]
            address = free_address(network.subnet, taken)
            nics.append(NicRecord(network=name, mac=make_mac(uuid, index), address=address))
        return tuple(nics)

    async def start(self, name: str) -> Operation:
        """Bring a stopped VM up. Raises Conflict when it is up, NotAdmitted without room."""
        async with self._parts.locks.admission:
            record = await self._parts.vm(name)
            if is_up(record) and record.state is not VmState.FAILED:
                raise Conflict(f"{record.spec.name} is {record.state} already")
            if not is_up(record):
                await self._capacity.admit(record.spec, await self._parts.store.vms())
            wanted = changed(record, wanted=Wanted.RUNNING, state=VmState.STARTING, reason=None)
            return await self._admitted(wanted, "start", "starting")

    async def restart(self, name: str) -> Operation:
        """Stop a VM and bring it up again."""
        record = await self._parts.vm(name)
        if not is_up(record):
            return await self.start(name)
        return await self._operations.begin("restart", record.spec.name)

    async def stop(self, name: str, *, force: bool, timeout: float | None) -> Operation:
        """Ask a VM's guest to power off, and end it after ``timeout`` seconds."""
        record = await self._parts.vm(name)
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
        return await self._operations.begin("resume", record.spec.name)

    async def _expect(self, name: str, states: tuple[VmState, ...], verb: str) -> VmRecord:
        record = await self._parts.vm(name)
        if record.state not in states:
            allowed = " or ".join(states)
            raise Conflict(f"cannot {verb} {name}: it is {record.state}, not {allowed}")
        return record

    async def delete(self, name: str, *, force: bool) -> Operation:
        """Stop a VM if it runs (with ``force``) and remove it with its disk."""
        record = await self._parts.vm(name)
        if is_up(record) and record.state is not VmState.FAILED and not force:
            raise Conflict(
                f"{record.spec.name} is {record.state}",
                hint=f"'hanok stop {record.spec.name}' first, or delete it with --force",
            )
        return await self._operations.begin("delete", record.spec.name)

    # What the operations do

    async def _run(self, work: Work) -> dict[str, Any]:
        record = await self._parts.vm(work.operation.target)
        return await self.bring_up_new(record, work)

    async def bring_up_new(self, record: VmRecord, work: Work) -> dict[str, Any]:
        """Bring up a VM that was just created; when it cannot run at all, it is removed again."""
        async with self._parts.locks.by_vm[record.uuid]:
            try:
                record = await self._lifecycle.start(record, work.report)
            except HanokError:
                await self._lifecycle.remove(record)
                raise
            except asyncio.CancelledError:
                if work.by_user:
                    await self._lifecycle.remove(record)
                raise
            await self._wait_ready(record, work)
        return {"name": record.spec.name, "uuid": record.uuid}

    async def _wait_ready(self, record: VmRecord, work: Work) -> None:
        try:
            await self._lifecycle.become_ready(record, work.report)
        except asyncio.CancelledError:
            if work.by_user:
                await self._lifecycle.stop(record, force=True, timeout=0, report=work.report)
                if work.operation.kind == "run":
                    await self._lifecycle.remove(record)
                else:
                    await self._lifecycle.settle_stopped(record)
            raise

    async def _start(self, work: Work) -> dict[str, Any]:
        record = await self._parts.vm(work.operation.target)
        await self.bring_up_again(record, work)
        return {"name": record.spec.name, "uuid": record.uuid}

    async def bring_up_again(self, record: VmRecord, work: Work) -> None:
        """Bring up a VM that existed before; when it cannot run, it is kept, with the reason."""
        async with self._parts.locks.by_vm[record.uuid]:
            await self._bring_up(record, work)

    async def _bring_up(self, record: VmRecord, work: Work) -> None:
        try:
            record = await self._lifecycle.start(record, work.report)
        except HanokError as error:
            await self._lifecycle.settle_stopped(record, error.message)
            raise
        await self._wait_ready(record, work)

    async def _stop(self, work: Work) -> None:
        name = work.operation.target
        await self._operations.supersede(name, _BRINGS_UP)
        record = await self._parts.vm(name)
        arguments = work.operation.arguments
        async with self._parts.locks.by_vm[record.uuid]:
            await self._lifecycle.stop(
                record,
                force=bool(arguments["force"]),
                timeout=float(arguments["timeout"]),
                report=work.report,
            )
            await self._lifecycle.settle_stopped(record)

    async def _restart(self, work: Work) -> None:
        record = await self._parts.vm(work.operation.target)
        async with self._parts.locks.by_vm[record.uuid]:
            limit = self._parts.settings.stop_timeout
            await self._lifecycle.stop(record, force=False, timeout=limit, report=work.report)
            await self._bring_up(changed(record, wanted=Wanted.RUNNING), work)

    async def _pause(self, work: Work) -> None:
        record = await self._parts.vm(work.operation.target)
        async with self._parts.locks.by_vm[record.uuid]:
            await self._parts.hypervisor.pause(record.uuid)
            record = changed(record, wanted=Wanted.PAUSED, state=VmState.PAUSED)
            await self._parts.save(record, event="paused")

    async def _resume(self, work: Work) -> None:
        await self.resume_now(await self._parts.vm(work.operation.target))

    async def resume_now(self, record: VmRecord) -> None:
        """Let the vCPUs of a paused VM go on."""
        async with self._parts.locks.by_vm[record.uuid]:
            await self._parts.hypervisor.resume(record.uuid)
            state = VmState.READY if record.ready_seconds is not None else VmState.RUNNING
            record = changed(record, wanted=Wanted.RUNNING, state=state)
            await self._parts.save(record, event="resumed")

    async def _delete(self, work: Work) -> None:
        self._parts.failpoints.hit("delete.begin")
        name = work.operation.target
        await self._operations.supersede(name, (*_BRINGS_UP, "stop"))
        record = await self._parts.store.find_vm(name)
        if record is None:  # a daemon that died after its last step has left only the operation
            return
        async with self._parts.locks.by_vm[record.uuid]:
            await self.take_down(record, work)
        self._parts.locks.by_vm.pop(record.uuid, None)

    async def take_down(self, record: VmRecord, work: Work) -> None:
        """End a VM and remove it; the caller holds its lock."""
        gone = changed(record, wanted=Wanted.ABSENT)
        await self._parts.save(gone)
        await self._lifecycle.stop(gone, force=True, timeout=0, report=work.report)
        await self._lifecycle.remove(gone)

    async def seen(self, uuid: str) -> None:
        """Look at a VM of which the hypervisor told something, and write down what is seen."""
        record = await self._parts.store.find_vm(uuid)
        if record is None:
            return
        async with self._parts.locks.by_vm[uuid]:
            record = await self._parts.store.find_vm(uuid)
            if record is None or not is_up(record) or record.state is VmState.FAILED:
                return
            state = await self._parts.hypervisor.state(uuid)
            if state in (RunState.RUNNING, RunState.PAUSED):
                return
            reason = None
            if state is RunState.CRASHED:
                words = self._lifecycle.last_words(record)
                reason = f"the guest crashed; its console's last lines: {words or '(none)'}"
            await self._parts.hypervisor.kill(uuid)
            await self._lifecycle.release(record)
            await self._lifecycle.settle_stopped(record, reason)


def check_definition(spec: VmSpec) -> None:
    """Raise InvalidInput for what contradicts itself, whatever else there is on this host."""
    recipe = resolve(spec.image, spec.packages)
    # The seed is built for its checks alone: a mistake is told now, not after an image was built.
    build_seed(
        SeedData(
            instance_id="check",
            host_name=spec.name,
            user_data=spec.user_data,
            cloud_init=recipe.kind == "debian",
        )
    )
    _check_duplicates(spec)


def _check_duplicates(spec: VmSpec) -> None:
    if len(set(spec.networks)) != len(spec.networks):
        raise InvalidInput(
            "a network is named twice", field="networks", expected="each network once"
        )
    published = [(port.address, port.host_port) for port in spec.publish]
    if len(set(published)) != len(published):
        raise InvalidInput(
            "a host port is published twice", field="publish", expected="each host port once"
        )
    if spec.publish and not spec.networks:
        raise InvalidInput(
            "ports are published, but the VM is on no network",
            field="publish",
            expected="a VM with a network",
        )


def _check_publish(spec: VmSpec, everyone: list[VmRecord]) -> None:
    for port in spec.publish:
        for vm in everyone:
            for other in vm.spec.publish:
                same = port.address == other.address or _EVERYWHERE in (
                    port.address,
                    other.address,
                )
                if port.host_port == other.host_port and same:
                    raise Conflict(
                        f"port {port.host_port} is published by {vm.spec.name} already",
                        field="publish",
                        hint="choose another host port",
                    )
