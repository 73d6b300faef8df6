"""The parts that the services work with, put together once by app.py."""

from __future__ import annotations

import asyncio
import uuid as uuids
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from hanok.config import Settings
from hanok.errors import NotFound
from hanok.hypervisors.base import Hypervisor, Machine
from hanok.images.library import ImageLibrary
from hanok.model.network import NetworkPort, NetworkRecord
from hanok.model.vm import VmRecord, VmState, Wanted
from hanok.network.base import Networks
from hanok.proc import Runner
from hanok.services.events import EventLog, make_event
from hanok.services.failpoints import Failpoints
from hanok.services.machines import machine_of
from hanok.store.base import PutVm, Store
from hanok.systemd.scopes import NoScopes, Scopes


@dataclass
class Locks:
    """A lock a VM, and one for everything that must see all VMs at rest (admission, addresses)."""

    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    by_vm: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))


@dataclass(frozen=True)
class Parts:
    """What the services share."""

    settings: Settings
    store: Store
    events: EventLog
    hypervisor: Hypervisor
    networks: Networks
    images: ImageLibrary
    runner: Runner
    failpoints: Failpoints
    locks: Locks = field(default_factory=Locks)
    scopes: Scopes = field(default_factory=NoScopes)

    async def vm(self, name_or_uuid: str) -> VmRecord:
        """Return a VM by name or uuid. Raises NotFound with the nearest name."""
        record = await self.store.find_vm(name_or_uuid)
        if record is None:
            raise NotFound(
                f"there is no VM named {name_or_uuid}",
                field="name",
                hint="see 'hanok list' for those there are",
            )
        return record

    async def network(self, name: str) -> NetworkRecord:
        """Return a network by name. Raises NotFound."""
        for record in await self.store.networks():
            if record.name == name:
                return record
        raise NotFound(
            f"there is no network named {name}",
            field="networks",
            hint=f"'hanok network create {name}' makes it; 'hanok network list' shows the others",
        )

    def network_lock(self, name: str) -> asyncio.Lock:
        """Return the lock under which a network is started and stopped."""
        return self.locks.by_vm[f"network {name}"]

    async def ports_on(
        self, network: str, states: Collection[VmState] = tuple(VmState)
    ) -> list[NetworkPort]:
        """Return the ports on ``network`` of the VMs that are up, and in one of ``states``."""
        return [
            port_of(vm, network)
            for vm in await self.store.vms()
            if is_up(vm) and vm.state in states and any(n.network == network for n in vm.nics)
        ]

    async def save(self, record: VmRecord, *, event: str | None = None, message: str = "") -> None:
        """Make ``record`` durable, with an event about it when ``event`` names one."""
        told = make_event("vm", record.spec.name, event, message) if event else None
        await self.events.commit(PutVm(record), event=told)

    def machine(self, record: VmRecord) -> Machine:
        """Return the machine of a VM whose image has been chosen. Raises NotFound without it."""
        image = self.images.get(record.image_id) if record.image_id else None
        if image is None:
            raise NotFound(
                f"the image of {record.spec.name} ({record.spec.image}) is gone",
                hint=f"'hanok image build {record.spec.image}' builds it again",
            )
        return machine_of(self.settings, record, image, self.images.path(image))


def is_up(record: VmRecord) -> bool:
    """Return whether a VM holds its place on its networks and in the host's memory."""
    return record.wanted in (Wanted.RUNNING, Wanted.PAUSED)


def changed(record: VmRecord, **fields: object) -> VmRecord:
    """Return ``record`` with ``fields`` changed, validated as at the start."""
    return VmRecord.model_validate({**dict(record), **fields})


def port_of(record: VmRecord, network: str) -> NetworkPort:
    """Return a VM's port on ``network``; published ports belong to its first network."""
    nic = next(nic for nic in record.nics if nic.network == network)
    first = record.nics[0].network == network
    return NetworkPort(
        vm=record.uuid,
        host_name=record.spec.name,
        mac=nic.mac,
        address=nic.address,
        publish=record.spec.publish if first else (),
    )


def new_uuid() -> str:
    """Return a new VM's uuid."""
    return str(uuids.uuid4())
