"""The steps that make a VM what it was asked to be. Each is safe to repeat.

A step is done where the hypervisor can do it while the VM runs; else what it was to do stays
pending, with the reason. Who holds the VM's lock calls this, and undoes it when a step fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from hanok.durable import give_file
from hanok.errors import GuestError, HanokError
from hanok.guest import change as inside
from hanok.guest.agent import AgentConnection
from hanok.guest.readiness import wait_addresses
from hanok.guest.seed import renamed_seed
from hanok.hypervisors.base import Disk
from hanok.hypervisors.optional import CanHotplug, CanResize, NotLive
from hanok.model.hardware import DataDisk, NicRecord
from hanok.model.vm import Mode, VmRecord
from hanok.services.guests import Guests
from hanok.services.machines import account_of, added_disk, files_of, nic_of
from hanok.services.operations import Report
from hanok.services.parts import Parts, port_of
from hanok.services.plugs import Plugs
from hanok.services.seeds import SEED_SIZE
from hanok.services.shape import pending_of, with_pending
from hanok.storage.volumes import create_empty

_RESTART = "it takes a restart ('hanok restart')"
_ADDRESS_LIMIT = 20.0
Undo = Callable[[], Awaitable[None]]


@dataclass
class Progress:
    """How far a change has come: what the VM is, what to tell, and how to take it back."""

    record: VmRecord
    report: Report
    changed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    undo: list[Undo] = field(default_factory=list)

    def now(self, **fields: object) -> None:
        """Say that fields of the record are otherwise."""
        self.record = self.record.model_copy(update=fields)

    def in_force(self, name: str, **fields: object) -> None:
        """Say that something pending is in force: ``fields`` of the definition are what it is."""
        spec = self.record.spec.model_copy(update=fields)
        pending = pending_of(self.record).model_copy(update={name: None})
        self.record = with_pending(self.record.model_copy(update={"spec": spec}), pending)
        self.changed.append(name)

    def waits(self, name: str, reason: str) -> None:
        """Say why something stays pending."""
        pending = pending_of(self.record)
        why = {**pending.why, name: reason}
        self.record = with_pending(self.record, pending.model_copy(update={"why": why}))


class Steps:
    """The steps; ``before`` is the VM as it was when the change was asked for."""

    def __init__(self, parts: Parts, guests: Guests) -> None:
        self._parts = parts
        self._guests = guests
        self._plugs = Plugs(parts)

    # --- its name and its ports -------------------------------------------------------------

    async def rename(self, progress: Progress, before: VmRecord, *, live: bool) -> None:
        """Let the VM be found under its new name, on its networks and by its guest."""
        record, old = progress.record, before.spec.name
        if record.spec.name == old:
            return
        files = files_of(self._parts.settings, record.uuid)

        async def name_all(named: VmRecord) -> None:
            if live:
                for nic in named.nics:
                    port = port_of(named, nic.network)
                    await self._parts.networks.rename(nic.network, port)
            if files.seed.exists():
                await asyncio.to_thread(self._write_name, named)

        async def back() -> None:  # cards that were added since are gone by then
            await name_all(record.model_copy(update={"spec": before.spec, "nics": before.nics}))

        progress.undo.append(back)
        await name_all(record)
        progress.changed.append("name")
        if live:
            told = await self._inside(record, lambda a: inside.rename(a, record.spec.name, old))
            if not told.done:
                progress.notes.append(f"the guest still calls itself {old}: {told.line}")

    def _write_name(self, record: VmRecord) -> None:
        seed = files_of(self._parts.settings, record.uuid).seed
        renamed = renamed_seed(seed.read_bytes(), record.spec.name)
        give_file(seed, renamed, account_of(record.uid), size=SEED_SIZE)

    async def publish(self, progress: Progress, before: VmRecord) -> None:
        """Publish what is to be published, of a VM that is up."""
        record = progress.record
        if record.spec.publish == before.spec.publish:
            return
        old = record.spec.model_copy(update={"publish": before.spec.publish})

        async def back() -> None:
            await self._plugs.publish(record.model_copy(update={"spec": old}))

        progress.undo.append(back)
        await self._plugs.publish(record)
        progress.changed.append("publish")

    # --- its size ---------------------------------------------------------------------------

    async def cpus(self, progress: Progress, before: VmRecord, wanted: int) -> None:
        """Give it ``wanted`` vCPUs, and let the guest use them. No way back: the last step."""
        hypervisor, had = self._parts.hypervisor, before.spec.cpus
        if wanted == had:
            return
        if not isinstance(hypervisor, CanResize):
            progress.waits("cpus", _not_by(hypervisor.name, "vCPUs"))
            return
        try:
            await hypervisor.set_cpus(before.uuid, wanted)
        except NotLive as reason:
            progress.waits("cpus", reason.message)
            return
        progress.in_force("cpus", cpus=wanted)
        progress.now(cpus_changed=True)
        if wanted > had:
            told = await self._inside(before, lambda agent: inside.use_cpus(agent, wanted))
            if not told.done:
                progress.notes.append(f"the guest does not use the new vCPUs yet: {told.line}")

    async def memory(self, progress: Progress, before: VmRecord, wanted: int) -> None:
        """Let the guest have ``wanted`` bytes, as far as it goes: what it has stays its own."""
        hypervisor, started = self._parts.hypervisor, before.spec.memory
        had = pending_of(before).memory or started
        if wanted == had:
            return
        if not isinstance(hypervisor, CanResize):
            progress.waits("memory", _not_by(hypervisor.name, "memory"))
            return
        progress.undo.append(lambda: _quietly(hypervisor.set_memory(before.uuid, had, started)))
        try:
            await hypervisor.set_memory(before.uuid, wanted, started)
        except NotLive as reason:
            progress.waits("memory", reason.message)
            return
        progress.changed.append("memory")
        if wanted != started:
            progress.waits(
                "memory",
                "its guest has given back the rest already; the host counts it as free after a"
                " restart ('hanok restart')",
            )

    async def disk(self, progress: Progress, before: VmRecord, wanted: int) -> None:
        """Grow its root disk, and the guest's file system as far as that can be. No way back."""
        hypervisor = self._parts.hypervisor
        if wanted == before.spec.disk:
            return
        if not isinstance(hypervisor, CanResize):
            progress.waits("disk", _not_by(hypervisor.name, "disks"))
            return
        try:
            await hypervisor.grow_disk(before.uuid, wanted)
        except NotLive as reason:
            progress.waits("disk", reason.message)
            return
        progress.in_force("disk", disk=wanted)
        if before.mode is Mode.FULL:
            progress.notes.append(
                "the guest sees the larger disk when it boots again: a disk of mode full does not"
                " tell it"
            )
            return
        told = await self._inside(before, lambda agent: inside.grow_root(agent, wanted))
        text = "has grown: " if told.done else "has not grown: "
        progress.notes.append(f"the guest's root file system {text}{told.line}")

    # --- its disks --------------------------------------------------------------------------

    async def disks(
        self, progress: Progress, before: VmRecord, wanted: tuple[DataDisk, ...]
    ) -> None:
        """Plug in and out what is asked for of its data disks."""
        if wanted == before.disks:
            return
        had, has = attached(before.disks), attached(wanted)
        for disk in (disk for disk in had if not _named(has, disk.name)):
            if not await self._change(
                progress, "disks", self._unplug_disk, self._plug_disk, before, disk
            ):
                return
        for disk in (disk for disk in has if not _named(had, disk.name)):
            await self.make_disk(before, disk)
            if not await self._change(
                progress, "disks", self._plug_disk, self._unplug_disk, before, disk
            ):
                return
        progress.now(disks=wanted)
        progress.in_force("disks")

    async def make_disk(self, record: VmRecord, disk: DataDisk) -> None:
        """Make the file of a data disk unless it is there."""
        path = files_of(self._parts.settings, record.uuid).attached_disk(disk.name)
        if not path.exists() and path.parent.exists():
            account = account_of(record.uid)
            await create_empty(self._parts.runner, path=path, size=disk.size, account=account)

    def forget_disks(self, record: VmRecord, disks: Iterable[DataDisk]) -> None:
        """Remove the files of ``disks`` that the VM has no more."""
        files = files_of(self._parts.settings, record.uuid)
        for disk in disks:
            if not _named(record.disks, disk.name):
                files.attached_disk(disk.name).unlink(missing_ok=True)

    async def _plug_disk(self, record: VmRecord, disk: DataDisk) -> None:
        hypervisor = self._hotplug(record)
        _check_port(disk.port)
        await hypervisor.attach_disk(record.uuid, self._disk(record, disk))

    async def _unplug_disk(self, record: VmRecord, disk: DataDisk) -> None:
        await self._hotplug(record).detach_disk(record.uuid, self._disk(record, disk))

    def _disk(self, record: VmRecord, disk: DataDisk) -> Disk:
        return added_disk(files_of(self._parts.settings, record.uuid), disk)

    def _hotplug(self, record: VmRecord) -> CanHotplug:
        """Return who plugs devices into this VM. Raises NotLive when that cannot be."""
        hypervisor = self._parts.hypervisor
        if record.mode is Mode.FULL:
            raise NotLive(f"the disks and cards of mode full are no hot-plug ones; {_RESTART}")
        if not isinstance(hypervisor, CanHotplug):
            raise NotLive(_not_by(hypervisor.name, "devices"))
        return hypervisor

    async def _change(
        self,
        progress: Progress,
        name: str,
        do: Callable[[VmRecord, DataDisk], Awaitable[None]],
        back: Callable[[VmRecord, DataDisk], Awaitable[None]],
        record: VmRecord,
        disk: DataDisk,
    ) -> bool:
        """Do one step of several; when it cannot be now, those before it are taken back."""
        mark = len(progress.undo)
        progress.undo.append(lambda: _quietly(back(record, disk)))
        try:
            await do(record, disk)
        except NotLive as reason:
            progress.undo.pop()
            await take_back(progress.undo, mark)
            progress.waits(name, reason.message)
            return False
        return True

    # --- its network cards ------------------------------------------------------------------

    async def nics(
        self, progress: Progress, before: VmRecord, wanted: tuple[NicRecord, ...]
    ) -> None:
        """Plug in and out what is asked for of its network cards."""
        if wanted == before.nics:
            return
        had = {nic.network for nic in before.nics}
        has = {nic.network for nic in wanted}
        whole = progress.record.model_copy(
            update={"nics": (*before.nics, *(nic for nic in wanted if nic.network not in had))}
        )
        mark = len(progress.undo)
        try:
            for nic in (nic for nic in before.nics if nic.network not in has):
                progress.undo.append(lambda nic=nic: _quietly(self._plug(whole, nic)))  # type: ignore[misc]
                await self._unplug(whole, nic)
            for nic in (nic for nic in wanted if nic.network not in had):
                progress.undo.append(lambda nic=nic: _quietly(self._unplug(whole, nic)))  # type: ignore[misc]
                await self._plug(whole, nic)
        except NotLive as reason:
            progress.undo.pop()
            await take_back(progress.undo, mark)
            progress.waits("nics", reason.message)
            return
        progress.now(nics=wanted)
        progress.in_force("nics", networks=tuple(nic.network for nic in wanted))
        for nic in (nic for nic in wanted if nic.network not in had):
            await self._use_card(progress, nic)

    async def _plug(self, record: VmRecord, nic: NicRecord) -> None:
        """Plug a card into its network and into the machine; nothing is left when that fails."""
        hypervisor = self._hotplug(record)
        _check_port(nic.port)
        card = nic_of(nic)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._leave, record, nic)
            await self._plugs.ensure((nic,))
            port = port_of(record, nic.network)
            tap = await self._parts.networks.attach(nic.network, port)
            if not isinstance(tap, int):
                raise NotLive(f"networks of an ordinary user are made at the start; {_RESTART}")
            try:
                await hypervisor.attach_nic(record.uuid, card, tap)
            finally:
                os.close(tap)
            undo.pop_all()

    async def _unplug(self, record: VmRecord, nic: NicRecord) -> None:
        await self._hotplug(record).detach_nic(record.uuid, nic_of(nic))
        await self._leave(record, nic)

    async def _leave(self, record: VmRecord, nic: NicRecord) -> None:
        await self._plugs.release(record.model_copy(update={"nics": (nic,)}))

    async def _use_card(self, progress: Progress, nic: NicRecord) -> None:
        record = progress.record
        told = await self._inside(record, lambda agent: inside.use_card(agent, nic.mac))
        if told.done and await self._has_address(record, nic):
            return
        why = f": {told.line}" if not told.done else ""
        progress.notes.append(f"the guest has not taken {nic.address} on {nic.network} yet{why}")

    async def _has_address(self, record: VmRecord, nic: NicRecord) -> bool:
        with contextlib.suppress(HanokError):
            agent = await self._guests.agent(record)
            return await wait_addresses(agent, frozenset({nic.address}), _ADDRESS_LIMIT)
        return False

    # --- what all share ---------------------------------------------------------------------

    async def _inside(
        self, record: VmRecord, what: Callable[[AgentConnection], Awaitable[inside.Told]]
    ) -> inside.Told:
        """Do something in the guest, as far as it has an agent that answers."""
        if not self._guests.expects_agent(record):
            return inside.Told(False, "it has no guest agent")
        try:
            return await what(await self._guests.agent(record))
        except GuestError as error:
            return inside.Told(False, error.message)


def attached(disks: Iterable[DataDisk]) -> tuple[DataDisk, ...]:
    """Return those of ``disks`` that are to be plugged in."""
    return tuple(disk for disk in disks if disk.attached)


def _named(disks: Iterable[DataDisk], name: str) -> bool:
    return any(disk.name == name for disk in disks)


def _check_port(port: int | None) -> None:
    if port is None:
        raise NotLive(f"its hot-plug ports are all taken; {_RESTART}")


def _not_by(hypervisor: str, what: str) -> str:
    return f"{hypervisor} changes no {what} of a running VM; {_RESTART}"


async def _quietly(work: Awaitable[None]) -> None:
    """Do what undoes something that may not have been done: then it cannot be undone either."""
    with contextlib.suppress(NotLive):
        await work


async def take_back(undo: list[Undo], mark: int = 0) -> list[HanokError]:
    """Undo what was done since ``mark``, the last first; return what that failed with."""
    failed: list[HanokError] = []
    while len(undo) > mark:
        try:
            await undo.pop()()
        except HanokError as error:
            failed.append(error)
    return failed
