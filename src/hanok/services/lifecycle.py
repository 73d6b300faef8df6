"""The steps of a VM's life. Each is safe to repeat; the caller holds the VM's lock."""

from __future__ import annotations

import contextlib
import time
from contextlib import AsyncExitStack

from hanok.errors import AgentRefused, GuestError, HanokError, NotReady
from hanok.guest.evidence import collect_evidence
from hanok.guest.readiness import wait_addresses, wait_ready
from hanok.hypervisors.base import Machine, RunState
from hanok.hypervisors.optional import CanReprobe
from hanok.model.image import Base, DiskFormat, Image
from hanok.model.vm import CloneKind, Evidence, VmRecord, VmState, Wanted
from hanok.services.events import make_event
from hanok.services.guests import Guests
from hanok.services.instant import InstantStart, is_fresh_instant
from hanok.services.machines import (
    VmFiles,
    account_of,
    choose_kernel,
    files_of,
    machine_of,
    make_folders,
    remove_folder,
    template_files,
)
from hanok.services.memories import Memories
from hanok.services.operations import Report
from hanok.services.parts import Parts, changed
from hanok.services.plugs import Plugs, ports_of
from hanok.services.seeds import write_seed
from hanok.storage.volumes import check_disk_size, create_overlay, flatten
from hanok.store.base import DeleteVm

_PROBE_IMAGE = "micro"
_ADDRESS_LIMIT = 60.0
_REASON = 2000
_RUNS = (RunState.RUNNING, RunState.PAUSED)


class Lifecycle:
    """Brings a VM up, makes sure that it is what was asked for, and takes it down again."""

    def __init__(self, parts: Parts, guests: Guests, memories: Memories) -> None:
        self._parts = parts
        self._guests = guests
        self._instant = InstantStart(parts, guests, memories)
        self._plugs = Plugs(parts)

    async def start(self, record: VmRecord, report: Report) -> VmRecord:
        """Bring the VM to the state RUNNING; when that fails, nothing of the try is left."""
        hit = self._parts.failpoints.hit
        hit("start.begin")
        if is_fresh_instant(record):
            return await self._start_instant(record)
        await self._measure(report)
        image, record = await self._choose_image(record, report)
        hit("start.image")
        machine = self._machine(record, image)
        report("preparing its networks and disk", None)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.release, record)
            await self._plugs.ensure(record.nics)
            hit("start.networks")
            await self._make_files(record, image)
            undo.push_async_callback(self._parts.hypervisor.kill, record.uuid)
            if await self._parts.hypervisor.adopt(machine) not in _RUNS:
                report("starting", None)
                await self._start_process(record, machine)
            hit("start.process")
            await self._plugs.publish(record)
            hit("start.publish")
            await self._guests.connect(record)
            hit("start.guest")
            record = changed(
                record,
                state=VmState.RUNNING,
                reason=None,
                started=time.time(),
                ready_seconds=None,
                evidence=None,
                boot=record.boot or "booted",
            )
            await self._parts.save(record, event="running")
            undo.pop_all()
        return record

    async def _start_instant(self, record: VmRecord) -> VmRecord:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.release, record)
            undo.push_async_callback(self._parts.hypervisor.kill, record.uuid)
            record = await self._instant.start(record)
            undo.pop_all()
        return record

    async def _measure(self, report: Report) -> None:
        """Measure which acceleration works, once a host: that takes a real guest to boot."""
        hypervisor = self._parts.hypervisor
        facts = await hypervisor.probe()
        if facts.measured or not isinstance(hypervisor, CanReprobe):
            return
        await self._parts.images.ensure(_PROBE_IMAGE, (), report)
        report("booting a small guest to see which acceleration works", None)
        await hypervisor.probe_again()

    async def _choose_image(self, record: VmRecord, report: Report) -> tuple[Image, VmRecord]:
        images, spec = self._parts.images, record.spec
        image = images.get(record.image_id) if record.image_id else None
        if image is None:
            image = await images.ensure(spec.image, spec.packages, report)
        check_disk_size(image, spec.disk)
        choose_kernel(image, record.mode)
        facts = await self._parts.hypervisor.probe()
        machine_type = record.machine_type or facts.machine_type
        record = changed(
            record, image_id=image.id, machine_type=machine_type, state=VmState.STARTING
        )
        await self._parts.save(record, event="starting")
        return image, record

    def _machine(self, record: VmRecord, image: Image) -> Machine:
        return machine_of(self._parts.settings, record, image, self._parts.images.path(image))

    async def _make_files(self, record: VmRecord, image: Image) -> None:
        settings, hit = self._parts.settings, self._parts.failpoints.hit
        files = files_of(settings, record.uuid)
        make_folders(files, account_of(record.uid))
        hit("start.folder")
        await self._make_disk(record, image, files)
        hit("start.disk")
        if not files.seed.exists():
            await write_seed(self._parts, record, image)
        hit("start.seed")

    async def _make_disk(self, record: VmRecord, image: Image, files: VmFiles) -> None:
        runner, account, clone = self._parts.runner, account_of(record.uid), record.clone
        base, base_format = self._parts.images.path(image) / image.disk, image.disk_format
        if clone is not None:
            frozen = template_files(self._parts.settings, clone.template).disk
            if clone.kind is CloneKind.FULL:
                bases = (Base(base, base_format),)
                await flatten(runner, disk=frozen, bases=bases, path=files.disk, account=account)
                return
            base, base_format = frozen, DiskFormat.QCOW2
        await create_overlay(
            runner,
            base=base,
            base_format=base_format,
            path=files.disk,
            size=record.spec.disk,
            account=account,
        )

    async def _start_process(self, record: VmRecord, machine: Machine) -> None:
        async with self._plugs.taps(ports_of(record)) as taps:
            self._parts.failpoints.hit("start.attach")
            await self._parts.hypervisor.start(machine, taps)

    async def become_ready(self, record: VmRecord, report: Report) -> VmRecord:
        """Wait until the guest is ready and really runs in the mode that was asked for.

        Raises NotReady, with the VM's state FAILED and the reason kept, when it is not.
        """
        image = self._parts.images.get(record.image_id or "")
        report(f"waiting until it is ready ({describe_ready(record)})", None)
        try:
            if not (is_fresh_instant(record) and record.spec.ready.by_agent):
                await wait_ready(
                    record.spec.ready,
                    probe=self._guests.probe(record),
                    cloud_init=bool(image and image.cloud_init),
                )
            await self._plugs.settle(record.nics)
            evidence = record.evidence
            if not is_fresh_instant(record):  # that one's agent has told of its addresses already
                await self._wait_addresses(record, image)
                evidence = await self._evidence(record, image)
            if evidence is not None and evidence.contradiction is not None:
                raise GuestError(
                    f"{record.spec.name} does not run as asked: {evidence.contradiction}",
                    hint="that is a fault of the image or of Hanok; please report it",
                )
        except HanokError as error:
            await self._fail(record, error)
            raise NotReady(error.message, hint=error.hint) from error
        self._parts.failpoints.hit("start.ready")
        seconds = round(time.time() - (record.started or time.time()), 3)
        clone = record.clone.model_copy(update={"fresh": False}) if record.clone else None
        record = changed(
            record, state=VmState.READY, ready_seconds=seconds, evidence=evidence, clone=clone
        )
        await self._parts.save(record, event="ready", message=f"after {seconds:.1f} s")
        return record

    async def _wait_addresses(self, record: VmRecord, image: Image | None) -> None:
        """Wait until the guest has its addresses: it is of no use to others before.

        One that never takes them is ready all the same, since its own check says so.
        """
        if image is None or not image.agent:
            return
        wanted = frozenset(nic.address for nic in record.nics)
        agent = await self._guests.agent(record)
        if not await wait_addresses(agent, wanted, _ADDRESS_LIMIT):
            told = make_event(
                "vm", record.spec.name, "no-address", f"it has not taken {', '.join(wanted)}"
            )
            await self._parts.events.commit(event=told)

    async def _evidence(self, record: VmRecord, image: Image | None) -> Evidence | None:
        if image is None or not image.agent:
            return None
        try:
            return await collect_evidence(await self._guests.agent(record), record.mode)
        except AgentRefused:
            return None  # its agent runs no commands: there is no evidence, and show says so

    async def _fail(self, record: VmRecord, error: HanokError) -> None:
        """Keep why the VM is not ready; one that still runs goes on, to be looked into."""
        words = self._guests.last_words(record)
        reason = error.message + (f"; its console's last lines: {words}" if words else "")
        if await self._parts.hypervisor.state(record.uuid) in _RUNS:
            failed = changed(record, state=VmState.FAILED, reason=reason[:_REASON])
            await self._parts.save(failed, event="failed", message=reason[:_REASON])
        else:
            await self.settle_gone(record, reason[:_REASON])

    def crash_reason(self, record: VmRecord, state: RunState, detail: str) -> str:
        """Return why a VM crashed: its guest, or the process that it ran in."""
        if state is not RunState.CRASHED:
            return f"its hypervisor's process ended by itself ({detail or 'it does not say why'})"
        words = self._guests.last_words(record)
        return f"the guest crashed; its console's last lines: {words or '(none)'}"

    async def settle_gone(self, record: VmRecord, reason: str | None) -> None:
        """Clean up after a VM that has ended by itself, and write down why, if that is known."""
        await self._parts.hypervisor.kill(record.uuid)
        await self.release(record)
        await self.settle_stopped(record, reason)

    async def stop(self, record: VmRecord, *, force: bool, timeout: float, report: Report) -> None:
        """Bring the VM to nothing that runs: ask the guest, and end it after ``timeout`` s."""
        hit, hypervisor = self._parts.failpoints.hit, self._parts.hypervisor
        hit("stop.begin")
        if await hypervisor.state(record.uuid) in _RUNS:
            await self._parts.save(changed(record, state=VmState.STOPPING), event="stopping")
            if not force:
                report("asking the guest to power off", None)
                await self._ask(record)
                hit("stop.asked")
                if not await hypervisor.wait_stopped(record.uuid, timeout):
                    report(f"it did not power off within {timeout:g} s: ending it", None)
        await hypervisor.kill(record.uuid)
        hit("stop.gone")
        await self.release(record)
        hit("stop.detached")

    async def _ask(self, record: VmRecord) -> None:
        """Ask by the power button and by the agent: a guest may listen to one of them only."""
        if await self._parts.hypervisor.state(record.uuid) is RunState.PAUSED:
            await self._parts.hypervisor.resume(record.uuid)
        await self._parts.hypervisor.ask_stop(record.uuid)
        with contextlib.suppress(GuestError):
            await (await self._guests.agent(record)).shutdown()

    async def set_clock(self, record: VmRecord) -> None:
        """Set the clock of a guest that was paused; nothing happens when it cannot be."""
        await self._guests.set_clock(record)

    async def release(self, record: VmRecord) -> None:
        """Give back what a VM that does not run holds: connections, ports, idle networks."""
        await self._guests.disconnect(record.uuid)
        await self._plugs.release(record)

    async def remove(self, record: VmRecord) -> None:
        """Forget a VM that has been stopped, and remove its files."""
        hit = self._parts.failpoints.hit
        hit("delete.stopped")
        remove_folder(files_of(self._parts.settings, record.uuid))
        hit("delete.folder")
        told = make_event("vm", record.spec.name, "deleted")
        await self._parts.events.commit(DeleteVm(record.uuid), event=told)
        hit("delete.end")

    async def settle_stopped(self, record: VmRecord, reason: str | None = None) -> VmRecord:
        """Write down that the VM does not run any more."""
        record = changed(
            record,
            wanted=Wanted.STOPPED,
            state=VmState.FAILED if reason else VmState.STOPPED,
            reason=reason,
            started=None,
            evidence=None,
            boot=None,
        )
        event = "failed" if reason else "stopped"
        await self._parts.save(record, event=event, message=reason or "")
        self._parts.failpoints.hit("stop.end")
        return record


def describe_ready(record: VmRecord) -> str:
    """Return in words what must hold before the VM is ready."""
    ready = record.spec.ready
    if ready.port is not None:
        return f"port {ready.port}"
    if ready.url is not None:
        return ready.url
    if ready.command is not None:
        return "a command in the guest"
    return "its guest agent answers"
