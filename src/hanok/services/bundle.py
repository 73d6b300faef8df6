"""All services, put together for the API."""

from __future__ import annotations

from dataclasses import dataclass

from hanok.services.capacity import CapacityService
from hanok.services.guests import Guests
from hanok.services.host import HostService
from hanok.services.images import ImageService
from hanok.services.lifecycle import Lifecycle
from hanok.services.networks import NetworkService
from hanok.services.operations import Operations
from hanok.services.parts import Parts
from hanok.services.recovery import Recovery
from hanok.services.stacks import StackService
from hanok.services.views import Views
from hanok.services.vms import VmService


@dataclass(frozen=True)
class Services:
    """What the API calls."""

    parts: Parts
    operations: Operations
    guests: Guests
    vms: VmService
    images: ImageService
    networks: NetworkService
    stacks: StackService
    capacity: CapacityService
    views: Views
    recovery: Recovery
    host: HostService

    async def close(self) -> None:
        """Let go of everything; nothing that runs is stopped."""
        await self.recovery.close()
        await self.operations.close()
        self.parts.events.end()
        await self.guests.close()
        await self.parts.hypervisor.close()
        await self.parts.networks.close()
        await self.parts.store.close()


def make_services(parts: Parts) -> Services:
    """Return the services that work with ``parts``."""
    operations = Operations(parts.store, parts.events)
    guests = Guests(parts)
    lifecycle = Lifecycle(parts, guests)
    capacity = CapacityService(parts)
    networks = NetworkService(parts)
    vms = VmService(parts, lifecycle, operations, capacity, networks)
    views = Views(parts, capacity)
    return Services(
        parts=parts,
        operations=operations,
        guests=guests,
        vms=vms,
        images=ImageService(parts, operations),
        networks=networks,
        stacks=StackService(parts, vms, networks, capacity, operations, views),
        capacity=capacity,
        views=views,
        host=HostService(parts, operations),
        recovery=Recovery(parts, guests, lifecycle, vms, operations),
    )
