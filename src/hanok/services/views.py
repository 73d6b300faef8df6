"""From what is kept and seen to what the API shows."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping

import psutil

from hanok import __version__
from hanok.errors import HanokError
from hanok.hypervisors.base import Statistics
from hanok.model.host import HypervisorFacts, Room
from hanok.model.views import HostView, LimitsView, NicView, PortView, RoomView, VmDetail, VmView
from hanok.model.vm import VmRecord, Wanted
from hanok.services.capacity import CapacityService
from hanok.services.entrance import Entrance
from hanok.services.parts import Parts, is_up
from hanok.units import format_size

_WARN_DISK_PERCENT = 80


def vm_view(record: VmRecord, facts: HypervisorFacts, templates: Mapping[str, str]) -> VmView:
    """Return a VM as lists show it; ``templates`` has the names of templates by id."""
    spec = record.spec
    return VmView(
        name=spec.name,
        uuid=record.uuid,
        state="deleting" if record.wanted is Wanted.ABSENT else str(record.state),
        reason=record.reason,
        image=spec.image,
        hypervisor=record.hypervisor,
        accelerator=facts.accelerator,
        mode=str(record.mode),
        cpus=spec.cpus,
        memory=spec.memory,
        disk=spec.disk,
        addresses=[nic.address for nic in record.nics],
        ports=[
            PortView(address=port.address, host_port=port.host_port, guest_port=port.guest_port)
            for port in spec.publish
        ],
        ready_seconds=record.ready_seconds,
        created=record.created,
        stack=record.stack,
        template=templates.get(record.clone.template) if record.clone else None,
        clone=str(record.clone.kind) if record.clone else None,
    )


class Views:
    """Builds the larger views, which ask the hypervisor and the host."""

    def __init__(self, parts: Parts, capacity: CapacityService, entrance: Entrance) -> None:
        self._parts = parts
        self._capacity = capacity
        self._entrance = entrance

    async def vms(self) -> list[VmView]:
        """Return all VMs."""
        facts = await self._parts.hypervisor.probe()
        names = await self._template_names()
        records = [vm for vm in await self._parts.store.vms() if not vm.internal]
        return [vm_view(record, facts, names) for record in records]

    async def _template_names(self) -> dict[str, str]:
        return {template.id: template.name for template in await self._parts.store.templates()}

    async def vm(self, name: str) -> VmDetail:
        """Return everything about one VM."""
        record = await self._parts.vm(name)
        facts = await self._parts.hypervisor.probe()
        spec = record.spec
        used = await self._statistics(record)
        return VmDetail(
            **vm_view(record, facts, await self._template_names()),
            wanted=str(record.wanted),
            networks=[
                NicView(network=nic.network, mac=nic.mac, address=nic.address)
                for nic in record.nics
            ],
            image_id=record.image_id,
            machine_type=record.machine_type,
            isolation=facts.isolation,
            started=record.started,
            evidence=record.evidence.model_dump(mode="json") if record.evidence else None,
            overhead=self._parts.hypervisor.overhead(spec.cpus, spec.memory, spec.tcg_buffer),
            cpu_seconds=used.cpu_seconds if used else None,
            resident=used.resident if used else None,
            proportional=used.proportional if used else None,
            boot=record.boot,
            ready=spec.ready.model_dump(mode="json", exclude_none=True),
            packages=list(spec.packages),
            user_data="(redacted)" if spec.user_data else None,
            pid=None,
            limits=self._limits(record),
        )

    def _limits(self, record: VmRecord) -> LimitsView | None:
        if not is_up(record):
            return None
        held = self._parts.scopes.held(record.uuid)
        return LimitsView(
            unit=held.unit,
            memory=held.memory,
            tasks=held.tasks,
            cpu_weight=held.cpu_weight,
            reason=held.reason,
        )

    async def _statistics(self, record: VmRecord) -> Statistics | None:
        if not is_up(record):
            return None
        try:
            return await self._parts.hypervisor.statistics(record.uuid)
        except HanokError:
            return None  # it has just stopped: its state says so

    async def host(self) -> HostView:
        """Return the host: what it has, what is given away, what is left."""
        facts = await self._parts.hypervisor.probe()
        records = await self._parts.store.vms()
        sums = await self._capacity.sums(records)
        resources, policy = sums.resources, self._parts.settings.policy
        return HostView(
            name=socket.gethostname(),  # not platform.node(), which remembers: a clone is renamed
            version=__version__,
            kernel=platform.release(),
            home=str(self._parts.settings.home),
            user=psutil.Process().username(),
            hypervisors=[facts.model_dump(mode="json")],
            isolation=facts.isolation,
            cpus=resources.cpus,
            cpu_ratio=policy.cpu_ratio,
            memory=resources.memory,
            overhead=sums.usage.overhead,
            vms=sum(not record.internal for record in records),
            running=sum(is_up(record) for record in records),
            rooms=[self._room(room) for room in sums.rooms],
            notes=self._notes(resources.disk, resources.disk_free),
            memory_policy=str(policy.memory_policy),
            memory_factor=policy.memory_factor,
            shared_reserve=policy.shared_reserve,
            sold=sums.usage.memory + sums.usage.overhead,
            used=sums.totals.used,
            shared=sums.totals.shared,
            listen=self._entrance.address,
            fingerprint=self._entrance.fingerprint,
        )

    def _room(self, room: Room) -> RoomView:
        policy = self._parts.settings.policy
        reserved = {
            "memory": policy.reserve_memory,
            "real-memory": policy.shared_reserve,
            "disk": policy.reserve_disk,
        }
        return RoomView(
            resource=room.resource,
            capacity=room.capacity,
            used=room.used,
            reserved=reserved.get(room.resource, 0),
            free=room.free,
        )

    def _notes(self, disk: int, disk_free: int) -> list[str]:
        percent = round(100 * (disk - disk_free) / disk) if disk else 0
        if percent < _WARN_DISK_PERCENT:
            return []
        return [f"the disk is {percent} % full: {format_size(disk_free)} are left"]
