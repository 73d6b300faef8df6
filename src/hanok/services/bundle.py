"""All services, put together for the API."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hanok.services.capacity import CapacityService
from hanok.services.clones import CloneService
from hanok.services.departure import Departure
from hanok.services.drafts import Drafts
from hanok.services.entrance import Entrance
from hanok.services.guests import Guests
from hanok.services.host import HostService
from hanok.services.images import ImageService
from hanok.services.lifecycle import Lifecycle
from hanok.services.memories import Memories
from hanok.services.networks import NetworkService
from hanok.services.operations import Operations
from hanok.services.parts import Parts
from hanok.services.recovery import Recovery
from hanok.services.stacks import StackService
from hanok.services.templates import TemplateService
from hanok.services.tokens import TokenService
from hanok.services.views import Views
from hanok.services.vms import VmService
from hanok.services.warm import WarmStarts
from hanok.services.warmup import WarmMaker
from hanok.systemd.stop import why_ending


@dataclass(frozen=True)
class Services:
    """What the API calls."""

    parts: Parts
    operations: Operations
    guests: Guests
    vms: VmService
    images: ImageService
    networks: NetworkService
    memories: Memories
    templates: TemplateService
    warmup: WarmMaker
    clones: CloneService
    stacks: StackService
    capacity: CapacityService
    views: Views
    recovery: Recovery
    departure: Departure
    host: HostService
    tokens: TokenService
    entrance: Entrance

    async def close(self) -> None:
        """Let go of everything; nothing that runs is stopped."""
        await self.departure.close()
        await self.recovery.close()
        await self.operations.close()
        self.parts.events.end()
        await self.guests.close()
        await self.parts.hypervisor.close()
        await self.parts.networks.close()
        self.memories.close()
        await self.parts.scopes.close()
        await self.tokens.close()
        await self.parts.store.close()


def make_services(parts: Parts) -> Services:
    """Return the services that work with ``parts``."""
    operations = Operations(parts.store, parts.events)
    guests = Guests(parts)
    memories = Memories(parts)
    lifecycle = Lifecycle(parts, guests, memories)
    capacity = CapacityService(parts)
    networks = NetworkService(parts)
    drafts = Drafts(parts, capacity, networks)
    templates = TemplateService(parts, operations, guests, memories)
    warm = WarmStarts(parts, operations, templates, drafts)
    vms = VmService(parts, lifecycle, operations, capacity, drafts, warm)
    entrance = Entrance(parts.settings.certificates)
    views = Views(parts, capacity, entrance)
    return Services(
        parts=parts,
        operations=operations,
        guests=guests,
        vms=vms,
        images=ImageService(parts, operations),
        networks=networks,
        memories=memories,
        templates=templates,
        warmup=WarmMaker(parts, operations, templates, vms),
        clones=CloneService(parts, operations, drafts, templates, vms),
        stacks=StackService(parts, vms, networks, capacity, operations, views, templates, drafts),
        capacity=capacity,
        views=views,
        host=HostService(parts, operations),
        tokens=TokenService(parts.store, parts.events),
        entrance=entrance,
        departure=Departure(parts, vms, operations, partial(why_ending, parts.runner)),
        recovery=Recovery(parts, guests, lifecycle, vms, templates, operations),
    )
