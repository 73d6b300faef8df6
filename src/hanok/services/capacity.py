"""What the host has, what its VMs take, and whether more fit."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import psutil

from hanok.errors import NotAdmitted, NotFound
from hanok.filesystems import file_system_of
from hanok.hypervisors.base import Hypervisor
from hanok.hypervisors.optional import HasScreen, OwnsHost
from hanok.model.hardware import DataDisk
from hanok.model.host import (
    Demand,
    Fit,
    HostResources,
    HostShare,
    MemoryPolicy,
    Room,
    Usage,
)
from hanok.model.template import TemplateRecord
from hanok.model.vm import CloneKind, Firmware, VmRecord, VmSpec, VmState
from hanok.placement import admission, capacity
from hanok.placement.capacity import DISK
from hanok.services.footprints import Footprints, Totals
from hanok.services.machines import files_of, has_screen
from hanok.services.parts import Parts, is_up
from hanok.services.shape import claimed, claimed_disks
from hanok.shortage import GroupMemory, group_memory
from hanok.systemd.scopes import NoScopes
from hanok.units import MIB

# Admitted, and what they take is not yet in what the host is seen to have available.
_NOT_STARTED = (VmState.CREATING, VmState.STARTING, VmState.WAITING)
_DISK_PATHS = 8192
# OVMF has 4 MiB of flash, half a MiB of it written; swtpm was seen to take 7 MiB.
_UEFI_OVERHEAD = 8 * MIB
_TPM_OVERHEAD = 16 * MIB
_SCREEN_OVERHEAD = 32 * MIB
# Seconds. People see what is; an admission, which a start waits for, what was a moment ago: only
# somebody's hand in Dom0 changes how Xen's host is divided.
_NOW = 2.0
_LATELY = 60.0


@dataclass(frozen=True)
class HostSums:
    """The host in sums: what it has, what the VMs take, what is left, what is really used."""

    resources: HostResources
    usage: Usage
    rooms: tuple[Room, ...]
    totals: Totals


def memory_percent(host: HostResources) -> int:
    """Return how much of the host's memory is used."""
    return 100 - 100 * host.available // host.memory if host.memory else 0


class CapacityService:
    """Admission with real figures: every overhead counted, disks at what they can grow to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._footprints = Footprints(parts.hypervisor)
        # Each admission looks at the disk of every VM, and making a Path takes longer than that.
        self._disk_path = lru_cache(_DISK_PATHS)(
            lambda uuid: str(files_of(parts.settings, uuid).disk)
        )

    def resources(self) -> HostResources:
        """Return what the host has now; under a Type 1 hypervisor as the last look saw it."""
        disk = file_system_of(self._parts.settings.vms)
        memory = psutil.virtual_memory()
        group = self.group()
        seen = HostResources(
            cpus=len(os.sched_getaffinity(0)),
            memory=memory.total if group is None else min(memory.total, group.limit),
            disk=disk.size,
            disk_free=disk.free,
            available=memory.available if group is None else min(memory.available, group.available),
        )
        share = self.share()
        return seen if share is None else self._whole_host(seen, share)

    def group(self) -> GroupMemory | None:
        """Return the memory of the control group that VMs share with the daemon.

        None: there is no limit, or they have groups of their own.
        """
        return group_memory() if isinstance(self._parts.scopes, NoScopes) else None

    async def look(self, age: float = _NOW) -> None:
        """Let the hypervisor look at the host: a Type 1 also at how it is divided.

        That is then at most ``age`` seconds old.
        """
        hypervisor = self._parts.hypervisor
        await hypervisor.probe()
        if isinstance(hypervisor, OwnsHost):
            await hypervisor.look(age)

    def share(self) -> HostShare | None:
        """Return how a Type 1 hypervisor divides the host; None under any other."""
        hypervisor = self._parts.hypervisor
        return hypervisor.share() if isinstance(hypervisor, OwnsHost) else None

    def _whole_host(self, seen: HostResources, share: HostShare) -> HostResources:
        """Return what there is for VMs and for the reserve, which is Dom0's before all.

        What Dom0 has beyond the reserve is nobody else's.
        """
        beyond = max(0, share.own_memory - self._parts.settings.policy.reserve_memory)
        return seen.model_copy(
            update={
                "cpus": share.cpus,
                "memory": share.memory - beyond,
                "available": share.free,
            }
        )

    def demand(self, spec: VmSpec, allocated: int = 0, cost_now: int | None = None) -> Demand:
        """Return what a VM of this definition takes; ``allocated`` bytes of its disk are there.

        ``cost_now``: see Demand.
        """
        return Demand(
            cpus=spec.cpus,
            memory=spec.memory,
            overhead=self._parts.hypervisor.overhead(spec.cpus, spec.memory, spec.tcg_buffer)
            + boot_overhead(spec, self._parts.hypervisor),
            disk=max(0, spec.disk - allocated) + spec.data_disks,
            cost_now=cost_now,
        )

    async def demands(self, everyone: Sequence[VmRecord]) -> list[Demand]:
        """Return what each VM takes now: one that is stopped takes its disk only.

        The frozen memory of templates is one more demand: it may be open as long as they exist,
        and a clone that reads a page of nothing fills it.
        """
        costs = await self._costs(t for vm in everyone if (t := _resumes(vm)) is not None)
        demands = await asyncio.to_thread(self._demands, everyone, costs)
        frozen = sum(template.spec.memory for template in await self._parts.store.templates())
        if frozen:
            demands.append(Demand(cpus=0, memory=0, overhead=frozen, cost_now=0))
        return demands

    def _demands(self, everyone: Sequence[VmRecord], costs: Mapping[str, int]) -> list[Demand]:
        overhead = cache(self._parts.hypervisor.overhead)  # hundreds have the same shape
        return [self._demand_of(record, costs, overhead) for record in everyone]

    def _demand_of(
        self,
        record: VmRecord,
        costs: Mapping[str, int],
        overhead: Callable[[int, int, int | None], int],
    ) -> Demand:
        spec = claimed(record)
        disk = max(0, spec.disk - self._allocated(record)) + spec.data_disks
        disk += sum(self._growth(record.uuid, data) for data in claimed_disks(record))
        if not is_up(record):
            return Demand(cpus=0, memory=0, overhead=0, disk=disk, cost_now=0)
        template = _resumes(record)
        return Demand(
            cpus=spec.cpus,
            memory=spec.memory,
            overhead=overhead(spec.cpus, spec.memory, spec.tcg_buffer)
            + boot_overhead(spec, self._parts.hypervisor),
            disk=disk,
            cost_now=0 if record.state not in _NOT_STARTED else costs.get(template or ""),
        )

    def _allocated(self, record: VmRecord) -> int:
        """Return the bytes of the host's disk that the VM's disk has now."""
        return _allocated(self._disk_path(record.uuid))

    def _growth(self, uuid: str, disk: DataDisk) -> int:
        """Return the bytes that a data disk may still grow by."""
        path = files_of(self._parts.settings, uuid).attached_disk(disk.name)
        return max(0, disk.size - _allocated(str(path)))

    async def admit_growth(self, before: VmRecord, after: VmRecord) -> None:
        """Raise NotAdmitted when there is no room for what a VM would take beyond what it does.

        What does not grow is not asked for, so that a full host takes no change away.
        """
        await self.look(_LATELY)
        everyone = await self._parts.store.vms()
        costs: dict[str, int] = {}
        now, then = self._demands([before, after], costs)
        grown = Demand(
            cpus=max(0, then.cpus - now.cpus),
            memory=max(0, then.memory - now.memory),
            overhead=max(0, then.overhead - now.overhead),
            disk=max(0, then.disk - now.disk),
        )
        if grown == Demand(cpus=0, memory=0, overhead=0, disk=0):
            return
        demands = await self.demands(everyone)
        try:
            admission.admit(self.resources(), self._parts.settings.policy, demands, grown)
        except NotAdmitted as error:
            raise _does_not_grow(before, error) from None

    async def admit(
        self, spec: VmSpec, everyone: Sequence[VmRecord], template: str | None = None
    ) -> None:
        """Raise NotAdmitted when there is no room for ``spec`` beside the other VMs.

        ``template``: see ``admit_many``.
        """
        await self.admit_many([spec], everyone, template)

    async def admit_many(
        self, specs: Sequence[VmSpec], everyone: Sequence[VmRecord], template: str | None = None
    ) -> None:
        """Raise NotAdmitted when there is no room for all of ``specs`` beside the other VMs.

        VMs of the same names are themselves. ``template`` is the id of the template from whose
        memory they go on; None for VMs that boot, as linked and full clones do.
        """
        await self.look(_LATELY)
        wanted = {spec.name for spec in specs}
        own = {vm.spec.name: vm for vm in everyone if vm.spec.name in wanted}
        demands = await self.demands([vm for vm in everyone if vm.spec.name not in wanted])
        cost = None if template is None else (await self._costs([template])).get(template, 0)
        lot = [
            self.demand(spec, self._allocated(own[spec.name]) if spec.name in own else 0, cost)
            for spec in specs
        ]
        with self._naming_disk():
            admission.admit_all(self.resources(), self._parts.settings.policy, demands, lot)
        if self._is_shared():
            self._footprints.refresh_soon(everyone)

    @contextlib.contextmanager
    def _naming_disk(self) -> Iterator[None]:
        """Let an error that the disk has no room say which file system that is."""
        try:
            yield
        except NotAdmitted as error:
            if error.field != DISK:
                raise
            mount = file_system_of(self._parts.settings.vms).mount
            raise NotAdmitted(
                f"{error.message}; disks of VMs are on the file system {mount}",
                field=error.field,
                expected=error.expected,
                hint=error.hint,
            ) from None

    def _is_shared(self) -> bool:
        return self._parts.settings.policy.memory_policy is MemoryPolicy.SHARED

    async def _costs(self, templates: Iterable[str]) -> dict[str, int]:
        """Return what one more instant clone takes now, by the template's id, as last measured.

        Only policy shared counts it.
        """
        wanted = set(templates) if self._is_shared() else set()
        if not wanted:
            return {}
        return {
            template.id: self._clone_cost(template, self._footprints.of_clones(template.id))
            for template in await self._parts.store.templates()
            if template.id in wanted
        }

    def _clone_cost(self, template: TemplateRecord, measured: Sequence[int]) -> int:
        whole = self.demand(template.spec)
        return capacity.clone_cost(whole, template.memory_used, measured)

    async def fit(self, cpus: int, memory: int, disk: int) -> Fit:
        """Return how many more VMs of this shape fit, and what stops the next one."""
        await self.look()
        overhead = self._parts.hypervisor.overhead(cpus, memory, None)
        return await self._fit(Demand(cpus=cpus, memory=memory, overhead=overhead, disk=disk))

    async def fit_clones(self, name: str) -> Fit:
        """Return how many more instant clones of template ``name`` fit. Raises NotFound."""
        await self.look()
        template = await self._template(name)
        everyone = await self._parts.store.vms()
        measured = await self._footprints.measure_clones(template.id, everyone)
        cost = self._clone_cost(template, measured)
        found = await self._fit(self.demand(template.spec, cost_now=cost))
        return found.model_copy(update={"measured": bool(measured)})

    async def _fit(self, shape: Demand) -> Fit:
        demands = await self.demands(await self._parts.store.vms())
        return admission.fit(self.resources(), self._parts.settings.policy, demands, shape)

    async def _template(self, name: str) -> TemplateRecord:
        for template in await self._parts.store.templates():
            if name in (template.name, template.id):
                return template
        raise NotFound(
            f"there is no template named {name}",
            field="template",
            hint="'hanok template list' shows those there are",
        )

    async def sums(self, everyone: Sequence[VmRecord]) -> HostSums:
        """Return the host in sums; the VMs' processes are measured, at most every few seconds."""
        used = capacity.usage(await self.demands(everyone))
        totals = await self._footprints.totals([vm for vm in everyone if is_up(vm)])
        resources = self.resources()
        return HostSums(
            resources=resources,
            usage=used,
            rooms=capacity.rooms(resources, self._parts.settings.policy, used),
            totals=totals,
        )


def _allocated(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512  # noqa: PTH116  a text
    except OSError:
        return 0


def _does_not_grow(record: VmRecord, error: NotAdmitted) -> NotAdmitted:
    """Return the error in words of a VM that is there and asked for more."""
    missing = error.message.partition(";")[0]
    return NotAdmitted(
        f"{record.spec.name} cannot grow by what was asked: {missing}",
        field=error.field,
        expected="less growth",
        hint=error.hint,
    )


def _resumes(record: VmRecord) -> str | None:
    """Return the id of the template from whose memory a VM is about to go on."""
    clone = record.clone
    if record.state not in _NOT_STARTED or clone is None:
        return None
    return clone.template if clone.fresh and clone.kind is CloneKind.INSTANT else None


def boot_overhead(spec: VmSpec, hypervisor: Hypervisor) -> int:
    """Return the bytes that a VM takes beside its hypervisor's own, which only some have.

    They are of UEFI's flash, a TPM's process and a graphics card.
    """
    shows = isinstance(hypervisor, HasScreen) and has_screen(spec, spec.mode)
    uefi = _UEFI_OVERHEAD if spec.firmware is Firmware.UEFI else 0
    screen = _SCREEN_OVERHEAD if shows else 0
    return uefi + screen + (_TPM_OVERHEAD if spec.tpm else 0)
