"""What the host has, what its VMs take, and whether one more fits."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from hanok.model.host import Demand, Fit, HostResources, Room
from hanok.model.vm import VmRecord, VmSpec
from hanok.placement import admission, capacity
from hanok.services.machines import files_of
from hanok.services.parts import Parts, is_up


class CapacityService:
    """Admission with real figures: every overhead counted, disks at what they can grow to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def resources(self) -> HostResources:
        """Return what the host has now."""
        disk = psutil.disk_usage(str(self._parts.settings.home))
        return HostResources(
            cpus=len(os.sched_getaffinity(0)),
            memory=psutil.virtual_memory().total,
            disk=disk.total,
            disk_free=disk.free,
        )

    def demand(self, spec: VmSpec, allocated: int = 0) -> Demand:
        """Return what a VM of this definition takes; ``allocated`` bytes of its disk are there."""
        return Demand(
            cpus=spec.cpus,
            memory=spec.memory,
            overhead=self._parts.hypervisor.overhead(spec.cpus, spec.memory, spec.tcg_buffer),
            disk=max(0, spec.disk - allocated),
        )

    def demand_of(self, record: VmRecord) -> Demand:
        """Return what a VM takes now: one that is stopped takes its disk only."""
        disk = files_of(self._parts.settings, record.uuid).disk
        demand = self.demand(record.spec, _allocated(disk))
        if is_up(record):
            return demand
        return demand.model_copy(update={"cpus": 0, "memory": 0, "overhead": 0})

    async def demands(self, everyone: list[VmRecord]) -> list[Demand]:
        """Return what each VM takes now."""
        return await asyncio.to_thread(lambda: [self.demand_of(vm) for vm in everyone])

    async def admit(self, spec: VmSpec, everyone: list[VmRecord]) -> None:
        """Raise NotAdmitted when there is no room for ``spec`` beside the other VMs."""
        await self._parts.hypervisor.probe()
        others = [vm for vm in everyone if vm.spec.name != spec.name]
        own = [vm for vm in everyone if vm.spec.name == spec.name]
        allocated = sum(_allocated(files_of(self._parts.settings, vm.uuid).disk) for vm in own)
        admission.admit(
            self.resources(),
            self._parts.settings.policy,
            await self.demands(others),
            self.demand(spec, allocated),
        )

    async def fit(self, cpus: int, memory: int, disk: int) -> Fit:
        """Return how many more VMs of this shape fit, and what stops the next one."""
        await self._parts.hypervisor.probe()
        overhead = self._parts.hypervisor.overhead(cpus, memory, None)
        shape = Demand(cpus=cpus, memory=memory, overhead=overhead, disk=disk)
        demands = await self.demands(await self._parts.store.vms())
        return admission.fit(self.resources(), self._parts.settings.policy, demands, shape)

    async def rooms(self) -> tuple[Room, ...]:
        """Return what is given away and what is left, by resource."""
        demands = await self.demands(await self._parts.store.vms())
        used = capacity.usage(demands)
        return capacity.rooms(self.resources(), self._parts.settings.policy, used)


def _allocated(disk: Path) -> int:
    try:
        return disk.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
