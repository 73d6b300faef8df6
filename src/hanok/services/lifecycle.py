"""The steps of a VM's life. Each is safe to repeat; the caller holds the VM's lock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AsyncExitStack

from hanok.errors import AgentRefused, CommandFailed, GuestError, HanokError, HostError, NotReady
from hanok.filesystems import NEARLY_NOTHING, disk_full, full_error, is_full
from hanok.guest.evidence import collect_evidence, confront
from hanok.guest.readiness import wait_addresses, wait_ready
from hanok.hypervisors.base import Machine, RunState
from hanok.hypervisors.optional import CanExplain, CanReprobe, CanTestify
from hanok.model.image import Base, DiskFormat, Image
from hanok.model.vm import CloneKind, Evidence, VmRecord, VmState, Wanted
from hanok.services.events import make_event
from hanok.services.extra import grow_root, make_added
from hanok.services.guests import Guests
from hanok.services.instant import InstantStart, is_fresh_instant
from hanok.services.keeping import (
    Clock,
    End,
    SystemClock,
    applies,
    counted,
    crashed,
    pause_before,
    plan_restart,
)
from hanok.services.machines import (
    RUNS,
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
from hanok.services.shape import folded
from hanok.storage.volumes import check_disk_size, create_overlay, flatten
from hanok.store.base import DeleteVm

_PROBE_IMAGE = "micro"
_ADDRESS_LIMIT = 60.0
_REASON = 2000
# What is not known any more of a VM that does not run.
_NOT_UP = {
    **{"started": None, "evidence": None, "boot": None, "health": None},
    **{"starved": False, "panicked": False},
}


class Lifecycle:
    """Brings a VM up, makes sure that it is what was asked for, and takes it down again."""

    def __init__(
        self, parts: Parts, guests: Guests, memories: Memories, clock: Clock | None = None
    ) -> None:
        self._parts = parts
        self._guests = guests
        self._clock = clock or SystemClock()
        self._instant = InstantStart(parts, guests, memories, self._clock)
        self._plugs = Plugs(parts)
        # Who is told that a VM is ready, or waits for a restart: the supervisor.
        self.on_change: Callable[[str], None] = lambda uuid: None

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
            if record.panicked:
                await self._parts.hypervisor.kill(record.uuid)
            adopted = await self._parts.hypervisor.adopt(machine) in RUNS
            if not adopted:
                report("starting", None)
                await self._start_process(record, machine)
            hit("start.process")
            await self._plugs.publish(record)
            hit("start.publish")
            await self._guests.connect(record, adopted=adopted)
            hit("start.guest")
            record = changed(
                record,
                state=VmState.RUNNING,
                reason=None,
                panicked=False,
                started=self._clock.now(),
                ready_seconds=None,
                evidence=None,
                health=None,
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
        choose_kernel(image, record.mode, watchdog=spec.watchdog.wanted)
        facts = await self._parts.hypervisor.probe()
        # Of another architecture QEMU takes its newest board: these are never frozen.
        own_type = facts.machine_type if facts.is_own(image.architecture) else None
        machine_type = record.machine_type or own_type
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
        try:
            await self._make_disk(record, image, files)
            await grow_root(self._parts, record)
            await make_added(self._parts, record)
            hit("start.disk")
            if not files.seed.exists():
                await write_seed(self._parts, record, image)
        except (CommandFailed, OSError) as error:
            what = f"the files of {record.spec.name}"
            if not is_full(files.folder) and full_error(error) is None:
                if isinstance(error, CommandFailed):
                    raise
                raise HostError(f"{what} cannot be written: {error.strerror or error}") from error
            raise disk_full(files.folder, what, NEARLY_NOTHING) from error
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
            base=base,
            base_format=base_format,
            path=files.disk,
            size=record.spec.disk,
            account=account,
        )
        for number, disk in enumerate(image.data_disks):
            await create_overlay(
                base=self._parts.images.path(image) / disk.file,
                base_format=DiskFormat.QCOW2,
                path=files.data_disk(number),
                size=disk.size,
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
        told = describe_ready(record, agent=self._guests.expects_agent(record))
        report(f"waiting until it is ready ({told})", None)
        try:
            if not self._is_ready_at_once(record):
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
            if why := await self._why_paused(record):
                error = NotReady(f"{why}; {error.message}", hint=error.hint)
            await self._fail(record, error)
            raise NotReady(error.message, hint=error.hint) from error
        self._parts.failpoints.hit("start.ready")
        now = self._clock.now()
        seconds = round(now - (record.started or now), 3)
        clone = record.clone.model_copy(update={"fresh": False}) if record.clone else None
        record = changed(
            record, state=VmState.READY, ready_seconds=seconds, evidence=evidence, clone=clone
        )
        await self._parts.save(record, event="ready", message=f"after {seconds:.1f} s")
        self.on_change(record.uuid)
        return record

    async def _why_paused(self, record: VmRecord) -> str:
        """Return why the vCPUs of a VM stand still that nobody paused: a disk of the host's."""
        hypervisor = self._parts.hypervisor
        with contextlib.suppress(HanokError):
            if isinstance(hypervisor, CanExplain):
                return await hypervisor.explain(record.uuid)
        return ""

    def _is_ready_at_once(self, record: VmRecord) -> bool:
        """Whether nothing is left to wait for: its agent has answered, or it has none to ask."""
        if not record.spec.ready.by_agent:
            return False
        return is_fresh_instant(record) or not self._guests.expects_agent(record)

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
            agent, hypervisor = await self._guests.agent(record), self._parts.hypervisor
            if not isinstance(hypervisor, CanTestify):
                return await collect_evidence(agent, record.mode)
            said, domain = await asyncio.gather(
                collect_evidence(agent, record.mode, on_xen=True), hypervisor.testify(record.uuid)
            )
            return confront(said, domain)
        except AgentRefused:
            return None  # its agent runs no commands: there is no evidence, and show says so

    async def _fail(self, record: VmRecord, error: HanokError) -> None:
        """Keep why the VM is not ready; one that still runs goes on, to be looked into.

        Unless its policy is to start it again: then it is ended.
        """
        words = self._guests.last_words(record)
        reason = error.message + (f"; its console's last lines: {words}" if words else "")
        end = crashed(reason[:_REASON])
        runs = await self._parts.hypervisor.state(record.uuid) in RUNS
        if runs and not applies(record, end):
            panicked = self._guests.panic(record) is not None
            failed = changed(record, state=VmState.FAILED, reason=end.reason, panicked=panicked)
            await self._parts.save(failed, event="failed", message=end.why)
        else:
            await self.settle_gone(record, end)

    def crash_reason(self, record: VmRecord, state: RunState, detail: str) -> str:
        """Return why a VM crashed: its guest, or the process that it ran in."""
        if state is not RunState.CRASHED:
            return f"its hypervisor's process ended by itself ({detail or 'it does not say why'})"
        words = self._guests.last_words(record)
        return f"{detail or 'the guest crashed'}; its console's last lines: {words or '(none)'}"

    async def settle_panic(self, record: VmRecord, words: str) -> None:
        """Write down that a guest's kernel panicked, as its console says.

        The VM stays as it is, to be looked into, unless its policy is to start it again: what a
        console shows is no reason to end one. One whose agent answers has not panicked.
        """
        if record.state not in (VmState.RUNNING, VmState.READY):
            return
        if await self._guests.answers(record):
            return
        lines = self._guests.last_words(record)
        told = f"the guest's kernel panicked: {words}; its console's last lines: {lines}"
        end = crashed(told[:_REASON])
        if applies(record, end):
            await self.settle_gone(record, end)
            return
        failed = changed(record, state=VmState.FAILED, reason=end.reason, panicked=True)
        await self._parts.save(failed, event="failed", message=end.why)

    async def settle_gone(self, record: VmRecord, end: End) -> VmRecord:
        """Clean up after a VM that has ended by itself, and do as its policy says."""
        await self._parts.hypervisor.kill(record.uuid)
        await self.release(record)
        return await self.settle_ended(record, end)

    async def settle_gone_down(self, record: VmRecord) -> VmRecord:
        """Clean up after a VM that went down with its host: its policy has no part in that."""
        await self._parts.hypervisor.kill(record.uuid)
        await self.release(record)
        return await self.settle_stopped(record)

    async def settle_ended(self, record: VmRecord, end: End) -> VmRecord:
        """Write down that a VM has ended, not by its user's wish: for good, or until a restart."""
        restarts = plan_restart(record, end, self._clock.now())
        if restarts is None:
            return await self.settle_stopped(record, _final_reason(record, end))
        policy, number = record.spec.restart, restarts.streak + 1
        told = f"{end.why}; {counted(policy, number)} in {pause_before(policy, number):g} s"
        record = changed(
            folded(record),
            wanted=Wanted.RUNNING,
            state=VmState.WAITING,
            reason=end.why,
            restarts=restarts,
            **_NOT_UP,
        )
        await self._parts.save(record, event="waiting", message=told)
        self._parts.failpoints.hit("restart.waiting")
        self.on_change(record.uuid)
        return record

    async def stop(self, record: VmRecord, *, force: bool, timeout: float, report: Report) -> None:
        """Bring the VM to nothing that runs: ask the guest, and end it after ``timeout`` s."""
        hit, hypervisor = self._parts.failpoints.hit, self._parts.hypervisor
        hit("stop.begin")
        if await hypervisor.state(record.uuid) in RUNS:
            await self._parts.save(changed(record, state=VmState.STOPPING), event="stopping")
            if not force and not record.panicked:
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
        if not self._guests.expects_agent(record):
            return
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
            folded(record),
            wanted=Wanted.STOPPED,
            state=VmState.FAILED if reason else VmState.STOPPED,
            reason=reason,
            restarts=record.restarts.model_copy(update={"next": None}),
            **_NOT_UP,
        )
        event = "failed" if reason else "stopped"
        await self._parts.save(record, event=event, message=reason or "")
        self._parts.failpoints.hit("stop.end")
        return record


def _final_reason(record: VmRecord, end: End) -> str | None:
    """Return why a VM has failed that is not started again; None when it just is stopped."""
    if not applies(record, end):
        return end.reason
    rows = f"given up after {record.restarts.streak} restarts in a row"
    return f"{end.why}; {rows}"


def describe_ready(record: VmRecord, *, agent: bool = True) -> str:
    """Return in words what must hold before the VM is ready."""
    ready = record.spec.ready
    if ready.port is not None:
        return f"port {ready.port}"
    if ready.url is not None:
        return ready.url
    if ready.command is not None:
        return "a command in the guest"
    if ready.console is not None:
        return "a text on its console"
    return "its guest agent answers" if agent else "it runs: it has no guest agent to ask"
