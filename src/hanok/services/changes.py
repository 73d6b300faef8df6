"""Changes of VMs: admitted, durable before they are answered, applied while the VM runs.

What was asked for is written with the operation, in one transaction: names and ports at once,
the rest as *pending*. The operation then does each step that can be done now. When one fails, all
are taken back and the VM is what it was; what cannot be done while it runs stays pending, and is
done when it starts the next time. A daemon that dies leaves the operation: the next one does all
steps again, each of which looks first at what there is.
"""

from __future__ import annotations

import logging
from typing import Any

from hanok.errors import Conflict, HanokError, InvalidInput, NotFound
from hanok.hypervisors.optional import CanHotplug
from hanok.model.base import Frozen
from hanok.model.change import DiskRequest, VmChange
from hanok.model.hardware import MOST_DISKS, DataDisk, NicRecord, Pending
from hanok.model.keeping import Autostart, Health, Restart
from hanok.model.operation import Operation
from hanok.model.vm import Mode, Publish, VmRecord, VmSpec, VmState, Wanted
from hanok.network.base import free_address, make_mac
from hanok.services.applying import Progress, Steps, take_back
from hanok.services.busy import check_idle, check_not_exported
from hanok.services.capacity import CapacityService
from hanok.services.drafts import check_duplicates, check_publish
from hanok.services.events import make_event
from hanok.services.extra import grow_root, make_added
from hanok.services.guests import Guests
from hanok.services.instant import is_fresh_instant
from hanok.services.keeping import crashed
from hanok.services.lifecycle import Lifecycle
from hanok.services.machines import RUNS
from hanok.services.networks import NetworkService
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts, changed, is_up, port_of
from hanok.services.shape import (
    claimed_nics,
    folded,
    free_port,
    pending_of,
    wanted_of,
    with_pending,
)
from hanok.services.suiting import check_keeping
from hanok.store.base import PutVm
from hanok.units import format_size

_log = logging.getLogger(__name__)
_SETTLED = (VmState.READY, VmState.RUNNING, VmState.FAILED, VmState.STOPPED)
_MACS_TRIED = 64
_POLICY = ("restart", "health", "autostart")
_WAIT = "wait until that is done: 'hanok operations list' shows what is under way"
_HINTS = {
    VmState.PAUSED: "'hanok resume' lets it go on",
    VmState.WAITING: "it is started again soon; 'hanok stop' ends that",
}


class Before(Frozen):
    """What a VM was before a change: what is restored when that fails."""

    name: str
    publish: tuple[Publish, ...]
    cpus: int
    cpus_changed: bool = False
    memory: int
    disk: int
    nics: tuple[NicRecord, ...]
    disks: tuple[DataDisk, ...]
    pending: Pending | None
    restart: Restart = Restart()
    health: Health | None = None
    autostart: Autostart = Autostart()

    @classmethod
    def of(cls, record: VmRecord) -> Before:
        """Return what ``record`` is."""
        spec = record.spec
        return cls(
            name=spec.name,
            publish=spec.publish,
            cpus=spec.cpus,
            cpus_changed=record.cpus_changed,
            memory=spec.memory,
            disk=spec.disk,
            nics=record.nics,
            disks=record.disks,
            pending=record.pending,
            restart=spec.restart,
            health=spec.health,
            autostart=spec.autostart,
        )

    def in_place_of(self, record: VmRecord) -> VmRecord:
        """Return ``record`` as it was; what has grown while it runs and cannot shrink stays so."""
        cpus, disk, plugged = self.cpus, self.disk, self.cpus_changed
        if _runs(record):
            disk = max(disk, record.spec.disk)
            cpus = max(cpus, record.spec.cpus)
            plugged = plugged or record.cpus_changed
        spec = record.spec.model_copy(
            update={
                "name": self.name,
                "publish": self.publish,
                "cpus": cpus,
                "memory": self.memory,
                "disk": disk,
                "networks": tuple(nic.network for nic in self.nics),
                "restart": self.restart,
                "health": self.health,
                "autostart": self.autostart,
            }
        )
        return record.model_copy(
            update={
                "spec": spec,
                "cpus_changed": plugged,
                "nics": self.nics,
                "disks": self.disks,
                "pending": self.pending,
            }
        )


class ChangeService:
    """What users ask to change of VMs."""

    def __init__(
        self,
        parts: Parts,
        operations: Operations,
        capacity: CapacityService,
        networks: NetworkService,
        guests: Guests,
        lifecycle: Lifecycle,
    ) -> None:
        self._parts = parts
        self._operations = operations
        self._capacity = capacity
        self._networks = networks
        self._lifecycle = lifecycle
        self._steps = Steps(parts, guests)
        operations.register("set", self._set)

    # What callers use

    async def change(self, name: str, wanted: VmChange) -> Operation:
        """Change a VM. Raises InvalidInput, NotFound, Conflict, NotAdmitted."""
        if not wanted.model_fields_set - {"generation"}:
            raise InvalidInput("nothing was asked to be changed", expected="a field and its value")
        async with self._parts.locks.admission:
            record = await self._changeable(name, wanted.generation)
            return await self._begin(record, await self._as_asked(record, wanted))

    async def attach_disk(self, name: str, wanted: DiskRequest) -> Operation:
        """Add a data disk to a VM, or attach one again. Raises as ``change``."""
        async with self._parts.locks.admission:
            record = await self._changeable(name)
            disks = _with_disk(record, wanted, self._ports())
            return await self._begin(record, _asked(record, disks=disks))

    async def detach_disk(self, name: str, disk: str, *, delete: bool) -> Operation:
        """Unplug a data disk from a VM, and with ``delete`` remove it. Raises as ``change``."""
        async with self._parts.locks.admission:
            record = await self._changeable(name)
            disks = _without_disk(record, disk, delete=delete)
            return await self._begin(record, _asked(record, disks=disks))

    # What is asked for

    async def _changeable(self, name: str, generation: int | None = None) -> VmRecord:
        """Return a VM that nobody is at. Raises NotFound, Conflict."""
        record = await self._parts.vm(name)
        if record.internal:
            raise NotFound(f"there is no VM named {name}", field="name")
        if record.wanted is Wanted.ABSENT:
            raise Conflict(f"{record.spec.name} is being deleted")
        await check_not_exported(self._parts, record)
        if self._parts.locks.by_vm[record.uuid].locked() or record.state not in _SETTLED:
            raise Conflict(
                f"{record.spec.name} is {record.state} and cannot be changed just now",
                hint=_HINTS.get(record.state, _WAIT),
            )
        await check_idle(self._parts, record, "changed")
        if generation is not None and generation != record.generation:
            raise Conflict(
                f"{record.spec.name} was changed meanwhile by somebody else",
                field="generation",
                expected=str(record.generation),
                hint=f"look at it again ('hanok show {record.spec.name}'), then ask again",
            )
        return record

    async def _as_asked(self, record: VmRecord, wanted: VmChange) -> VmRecord:
        """Return the VM as it is asked to be. Raises InvalidInput, NotFound, Conflict."""
        self._check_size(record, wanted)
        spec = record.spec.model_copy(
            update={
                "name": wanted.name or record.spec.name,
                "publish": record.spec.publish if wanted.publish is None else wanted.publish,
                **_policy(record.spec, wanted),
            }
        )
        check_keeping(spec)
        # What was seen of its health was by the check that it had.
        seen = record.health if spec.health == record.spec.health else None
        asked = record.model_copy(update={"spec": spec, "health": seen})
        if wanted.name is not None and wanted.name != record.spec.name:
            await self._check_name(record, wanted.name)
        nics = None
        if wanted.networks is not None:
            nics = await self._nics(record, wanted.networks)
        asked = _asked(asked, cpus=wanted.cpus, memory=wanted.memory, disk=wanted.disk, nics=nics)
        if wanted.publish is not None or wanted.networks is not None:
            definition = wanted_of(asked).spec
            check_duplicates(definition)
            everyone = await self._parts.store.vms()
            check_publish(definition, [vm for vm in everyone if vm.uuid != record.uuid])
            self._check_first(record, asked)
        return asked

    def _check_first(self, record: VmRecord, asked: VmRecord) -> None:
        """Published ports lead through the first network: it cannot go below them."""
        nics = wanted_of(asked).nics
        if asked.spec.publish and record.nics and nics[:1] != record.nics[:1]:
            raise InvalidInput(
                f"the published ports of {record.spec.name} lead through"
                f" {record.nics[0].network}, its first network",
                field="networks",
                expected=f"{record.nics[0].network} as the first",
                hint="take the published ports away first (--unpublish)",
            )

    def _check_size(self, record: VmRecord, wanted: VmChange) -> None:
        spec = record.spec
        if wanted.disk is not None and wanted.disk < spec.disk:
            raise InvalidInput(
                f"the disk of {spec.name} has {format_size(spec.disk)} and cannot become smaller:"
                " what its guest has at the end would be cut off",
                field="disk",
                expected=f"at least {format_size(spec.disk)}",
                hint="make a new VM with a smaller disk, and copy what it is to have",
            )
        image = self._parts.images.get(record.image_id or "")
        least = image.minimum_memory if image is not None else 0
        if wanted.memory is not None and wanted.memory < min(least, spec.memory):
            raise InvalidInput(
                f"the image {spec.image} does not run with {format_size(wanted.memory)}",
                field="memory",
                expected=f"at least {format_size(least)}",
            )
        touched = wanted.model_fields_set - {"generation", "name", "publish"}
        if touched and is_fresh_instant(record):
            raise Conflict(
                f"{spec.name} is an instant clone that has never run: it has the shape of its"
                " template until it has",
                field=min(touched),
                hint=f"'hanok start {spec.name}' first",
            )

    async def _check_name(self, record: VmRecord, name: str) -> None:
        if record.stack is not None:
            raise Conflict(
                f"{record.spec.name} belongs to the stack {record.stack}, whose file names it",
                field="name",
                hint="rename it in the stack file: 'hanok up' makes another one of that name",
            )
        if await self._parts.store.find_vm(name) is not None:
            raise Conflict(
                f"a VM named {name} exists already", field="name", hint="choose another name"
            )
        if is_up(record):  # told now: after the answer it could only fail
            for nic in record.nics:
                port = port_of(record, nic.network)
                await self._parts.networks.rename(nic.network, port)

    async def _nics(self, record: VmRecord, networks: tuple[str, ...]) -> tuple[NicRecord, ...]:
        """Return the cards of a VM on ``networks``: those that it has stay what they are."""
        known = {nic.network: nic for nic in claimed_nics(record)}
        found: list[NicRecord] = []
        for name in networks:
            found.append(known[name] if name in known else await self._new_nic(record, name, found))
        return tuple(found)

    async def _new_nic(self, record: VmRecord, name: str, beside: list[NicRecord]) -> NicRecord:
        network = await self._networks.find_or_default(name)
        everyone = await self._parts.store.vms()
        taken = [n.address for vm in everyone for n in claimed_nics(vm) if n.network == name]
        macs = {n.mac for n in (*claimed_nics(record), *beside)}
        mac = next(m for n in range(_MACS_TRIED) if (m := make_mac(record.uuid, n)) not in macs)
        asked = record.model_copy(update={"nics": (*claimed_nics(record), *beside)})
        port = free_port(asked, self._ports()) if record.mode is not Mode.FULL else None
        return NicRecord(
            network=name, mac=mac, address=free_address(network.subnet, taken), port=port
        )

    def _ports(self) -> int:
        hypervisor = self._parts.hypervisor
        return hypervisor.hotplug_ports if isinstance(hypervisor, CanHotplug) else 0

    async def _begin(self, record: VmRecord, asked: VmRecord) -> Operation:
        """Make the change durable with its operation. The caller holds the admission lock."""
        await self._capacity.admit_growth(record, asked)
        after = asked if is_up(record) else folded(asked)
        after = changed(after, generation=record.generation + 1)
        name = after.spec.name
        async with self._parts.locks.by_vm[record.uuid]:
            operation = await self._operations.begin(
                "set",
                name,
                PutVm(after),
                arguments={
                    "vms": [record.uuid],
                    "before": Before.of(record).model_dump(mode="json"),
                },
                event=make_event("vm", name, "changing"),
            )
        self._parts.failpoints.hit("set.accepted")
        return operation

    # What the operation does

    async def _set(self, work: Work) -> dict[str, Any]:
        (uuid,) = work.operation.arguments["vms"]
        before = Before.model_validate(work.operation.arguments["before"])
        async with self._parts.locks.by_vm[uuid]:
            self._parts.failpoints.hit("set.begin")
            record = await self._seen(await self._parts.vm(uuid))
            progress = Progress(record, work.report)
            was = before.in_place_of(record)
            try:
                await self._apply(progress, was)
            except HanokError as error:
                await self._take_back(progress, before, error)
                raise
            gone = [disk for disk in before.disks if disk not in progress.record.disks]
            if _runs(record):
                gone = [disk for disk in gone if not pending_of(progress.record).disks]
            self._steps.forget_disks(progress.record, gone)
            now = progress.record.spec
            progress.changed += [
                name for name in _POLICY if getattr(now, name) != getattr(before, name)
            ]
            told = ", ".join(progress.changed) or "nothing at once"
            await self._parts.save(progress.record, event="changed", message=told)
            self._parts.failpoints.hit("set.end")
        self._lifecycle.on_change(uuid)
        return _result(progress)

    async def _seen(self, record: VmRecord) -> VmRecord:
        """Return the VM; one that has ended since it was asked for is settled before."""
        if not _runs(record):
            return record
        state = await self._parts.hypervisor.state(record.uuid)
        if state in RUNS:
            return record
        why = self._lifecycle.crash_reason(record, state, "")
        await self._lifecycle.settle_gone(record, crashed(why))
        return await self._parts.vm(record.uuid)

    async def _apply(self, progress: Progress, was: VmRecord) -> None:
        """Do the steps; those that cannot be taken back come last."""
        steps, record = self._steps, progress.record
        live = _runs(record)
        wanted = wanted_of(record)
        await steps.rename(progress, was, live=live)
        await self._keep(progress, "set.name")
        if not live:
            await self._apply_to_files(progress, was)
            return
        await self._parts.scopes.resize(record.uuid)
        await steps.publish(progress, was)
        await self._keep(progress, "set.publish")
        progress.report("plugging", None)
        await steps.nics(progress, was, wanted.nics)
        await self._keep(progress, "set.nics")
        await steps.disks(progress, was, wanted.disks)
        await self._keep(progress, "set.disks")
        await steps.memory(progress, was, wanted.spec.memory)
        await self._keep(progress, "set.memory")
        await steps.disk(progress, was, wanted.spec.disk)
        await self._keep(progress, "set.disk")
        await steps.cpus(progress, was, wanted.spec.cpus)
        await self._keep(progress, "set.cpus")

    async def _apply_to_files(self, progress: Progress, was: VmRecord) -> None:
        """Bring the files of a VM that does not run up to its definition."""
        record = progress.record
        await make_added(self._parts, record)
        await grow_root(self._parts, record)
        now = Before.of(record)
        progress.changed += [
            name
            for name in ("publish", "nics", "disks", "memory", "cpus", "disk")
            if getattr(now, name) != getattr(Before.of(was), name)
        ]

    async def _keep(self, progress: Progress, step: str) -> None:
        await self._parts.save(progress.record)
        self._parts.failpoints.hit(step)

    async def _take_back(self, progress: Progress, before: Before, error: HanokError) -> None:
        """Undo what was done, and let the record say what the VM was."""
        was = before.in_place_of(progress.record)
        for failed in await take_back(progress.undo):
            _log.error("a change of %s is not taken back whole: %s", was.spec.name, failed.message)
        self._steps.forget_disks(was, wanted_of(progress.record).disks)
        await self._parts.save(was, event="unchanged", message=error.message)


def _policy(spec: VmSpec, wanted: VmChange) -> dict[str, object]:
    """Return how a VM is to be kept running, of what is asked for."""
    said = {name: getattr(wanted, name) for name in _POLICY if name in wanted.model_fields_set}
    return {name: value for name, value in said.items() if value is not None or name == "health"}


def _runs(record: VmRecord) -> bool:
    """Whether a VM has a process: not when it waits for its next start."""
    return is_up(record) and record.state is not VmState.WAITING


def _asked(record: VmRecord, **wanted: object) -> VmRecord:
    """Return ``record`` with what is wanted and is not so pending; None leaves a field alone."""
    pending, update = pending_of(record), dict[str, object]()
    now = {
        "cpus": record.spec.cpus,
        "memory": record.spec.memory,
        "disk": record.spec.disk,
        "nics": record.nics,
        "disks": record.disks,
    }
    for name, value in wanted.items():
        if value is not None:
            update[name] = value if value != now[name] else None
    return with_pending(record, pending.model_copy(update=update))


def _with_disk(record: VmRecord, wanted: DiskRequest, ports: int) -> tuple[DataDisk, ...]:
    """Return the data disks of a VM with one more. Raises Conflict, InvalidInput."""
    disks = wanted_of(record).disks
    known = next((disk for disk in disks if disk.name == wanted.name), None)
    if known is not None and known.attached:
        raise Conflict(f"{record.spec.name} has a disk {wanted.name} already", field="name")
    if known is None and wanted.size is None:
        raise InvalidInput(
            f"{record.spec.name} has no disk {wanted.name} that was detached",
            field="size",
            expected="the size of a new disk, such as 2G",
        )
    if known is not None and wanted.size not in (None, known.size):
        raise InvalidInput(
            f"the disk {wanted.name} was detached with {format_size(known.size)}",
            field="size",
            expected="no size, to attach it again",
        )
    if known is None and len(disks) >= MOST_DISKS:
        raise InvalidInput(
            f"{record.spec.name} has {len(disks)} data disks",
            field="disks",
            expected=f"at most {MOST_DISKS}",
        )
    size = known.size if known is not None else wanted.size
    port = free_port(record, ports) if record.mode is not Mode.FULL else None
    new = DataDisk(name=wanted.name, size=size or 0, port=port)
    return (*(disk for disk in disks if disk.name != wanted.name), new)


def _without_disk(record: VmRecord, name: str, *, delete: bool) -> tuple[DataDisk, ...]:
    """Return the data disks of a VM with one less. Raises NotFound, Conflict."""
    disks = wanted_of(record).disks
    known = next((disk for disk in disks if disk.name == name), None)
    if known is None:
        there = ", ".join(disk.name for disk in disks) or "none"
        raise NotFound(
            f"{record.spec.name} has no data disk named {name}",
            field="disk",
            expected=f"one of its data disks: {there}",
        )
    if not known.attached and not delete:
        raise Conflict(f"the disk {name} of {record.spec.name} is detached already", field="disk")
    rest = tuple(disk for disk in disks if disk.name != name)
    gone = known.model_copy(update={"attached": False, "port": None})
    return rest if delete else (*rest, gone)


def _result(progress: Progress) -> dict[str, Any]:
    record = progress.record
    pending = pending_of(record)
    return {
        "name": record.spec.name,
        "uuid": record.uuid,
        "changed": progress.changed,
        "pending": {name: pending.why.get(name, "") for name in pending.fields},
        "notes": progress.notes,
    }
