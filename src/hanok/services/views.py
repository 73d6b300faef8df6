"""From what is kept and seen to what the API shows."""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from hanok import __version__
from hanok.errors import HanokError
from hanok.filesystems import WARN_PERCENT, level_of
from hanok.hypervisors.base import Statistics
from hanok.hypervisors.optional import HasScreen
from hanok.model.host import HostResources, HypervisorFacts, Room
from hanok.model.views import (
    DataDiskView,
    FileSystemView,
    HealthView,
    HostView,
    LimitsView,
    NetworkingView,
    NicView,
    PortView,
    RestartsView,
    RoomView,
    VmDetail,
    VmView,
)
from hanok.model.vm import Display, VmRecord, Wanted
from hanok.services.capacity import CapacityService, boot_overhead, memory_percent
from hanok.services.diskroom import find_file_systems
from hanok.services.entrance import Entrance
from hanok.services.machines import choose_firmware, has_screen
from hanok.services.parts import Parts, is_up
from hanok.services.pendings import pending_views
from hanok.shortage import GroupMemory
from hanok.units import format_size


def facts_of(record: VmRecord, facts: HypervisorFacts) -> HypervisorFacts:
    """Return what holds for one VM: a processor of another kind than the host's is emulated."""
    if record.spec.architecture is None or facts.is_own(record.spec.architecture):
        return facts
    return facts.model_copy(update={"accelerator": "tcg", "isolation": "none"})


def vm_view(record: VmRecord, facts: HypervisorFacts, templates: Mapping[str, str]) -> VmView:
    """Return a VM as lists show it; ``templates`` has the names of templates by id."""
    spec, facts = record.spec, facts_of(record, facts)
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
        nested=spec.nested,
        health=str(record.health.state) if record.health else None,
    )


def _restarts(record: VmRecord) -> RestartsView:
    seen = record.restarts
    return RestartsView(
        streak=seen.streak, total=seen.total, next=seen.next, last=seen.last, reason=seen.reason
    )


def _health(record: VmRecord) -> HealthView | None:
    seen = record.health
    if seen is None:
        return None
    return HealthView(state=str(seen.state), since=seen.since, message=seen.message)


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
        facts = facts_of(record, await self._parts.hypervisor.probe())
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
            overhead=self._parts.hypervisor.overhead(spec.cpus, spec.memory, spec.tcg_buffer)
            + boot_overhead(spec, self._parts.hypervisor),
            cpu_seconds=used.cpu_seconds if used else None,
            resident=used.resident if used else None,
            proportional=used.proportional if used else None,
            backend_seconds=used.backend_seconds if used else None,
            backend_memory=used.backend_memory if used else None,
            boot=record.boot,
            firmware=self._firmware(record),
            display=self._display(record),
            ready=spec.ready.model_dump(mode="json", exclude_none=True),
            packages=list(spec.packages),
            user_data="(redacted)" if spec.user_data else None,
            pid=None,
            limits=self._limits(record),
            restart=spec.restart.model_dump(mode="json"),
            restarts=_restarts(record),
            health_check=spec.health.model_dump(mode="json") if spec.health else None,
            health_seen=_health(record),
            autostart=spec.autostart.model_dump(mode="json"),
            watchdog=spec.watchdog.model_dump(mode="json"),
            network_limits=list(self._parts.networks.facts.limits) if record.nics else [],
            generation=record.generation,
            data_disks=[
                DataDiskView(name=disk.name, size=disk.size, attached=disk.attached)
                for disk in record.disks
            ],
            pending=pending_views(record),
        )

    def _firmware(self, record: VmRecord) -> str | None:
        image = self._parts.images.get(record.image_id or "")
        return None if image is None else choose_firmware(record.spec, image)

    def _display(self, record: VmRecord) -> str:
        can_show = isinstance(self._parts.hypervisor, HasScreen)
        return str(
            Display.VGA if can_show and has_screen(record.spec, record.mode) else Display.NONE
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
        await self._capacity.look()
        sums = await self._capacity.sums(records)
        resources, policy = sums.resources, self._parts.settings.policy
        file_systems = await asyncio.to_thread(find_file_systems, self._parts.settings)
        is_whole = self._capacity.share() is None  # else programs have but Dom0's part of it
        return HostView(
            name=socket.gethostname(),  # not platform.node(), which remembers: a clone is renamed
            version=__version__,
            kernel=platform.release(),
            home=str(self._parts.settings.home),
            user=psutil.Process().username(),
            hypervisors=[{**facts.model_dump(mode="json"), **self._share()}],
            isolation=facts.isolation,
            cpus=resources.cpus,
            cpu_ratio=policy.cpu_ratio,
            memory=resources.memory,
            overhead=sums.usage.overhead,
            vms=sum(not record.internal for record in records),
            running=sum(is_up(record) for record in records),
            rooms=[self._room(room) for room in sums.rooms],
            notes=_notes(file_systems, resources if is_whole else None, self._capacity.group()),
            filesystems=file_systems,
            memory_percent=memory_percent(resources) if is_whole else None,
            memory_level=level_of(memory_percent(resources)) if is_whole else None,
            memory_policy=str(policy.memory_policy),
            memory_factor=policy.memory_factor,
            shared_reserve=policy.shared_reserve,
            sold=sums.usage.memory + sums.usage.overhead,
            used=sums.totals.used,
            shared=sums.totals.shared,
            listen=self._entrance.address,
            fingerprint=self._entrance.fingerprint,
            networking=self._networking(),
        )

    def _networking(self) -> NetworkingView:
        facts = self._parts.networks.facts
        return NetworkingView(kind=facts.kind, reason=facts.reason, limits=list(facts.limits))

    def _share(self) -> dict[str, Any]:
        share = self._capacity.share()
        return {} if share is None else {"share": share.model_dump(mode="json")}

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


def _notes(
    file_systems: Sequence[FileSystemView],
    host: HostResources | None,
    group: GroupMemory | None = None,
) -> list[str]:
    """Return what people should know: what is nearly full. ``host``: whose memory counts."""
    notes = [
        f"the file system {one['mount']} ({', '.join(one['holds'])}) is {one['percent']} % full:"
        f" {format_size(one['free'])} are left"
        for one in file_systems
        if one["percent"] >= WARN_PERCENT
    ]
    if group is not None:
        notes.append(
            f"the control group that VMs run in may take {format_size(group.limit)} of the host's"
            " memory: that is all that is counted"
        )
    if host is not None and memory_percent(host) >= WARN_PERCENT:
        notes.append(
            f"{memory_percent(host)} % of the host's memory is used:"
            f" {format_size(host.available)} are left for programs"
        )
    return notes
