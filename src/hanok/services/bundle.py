"""All services, put together for the API."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hanok.proc import boot_id
from hanok.services.capacity import CapacityService
from hanok.services.changes import ChangeService
from hanok.services.clones import CloneService
from hanok.services.departure import Departure
from hanok.services.diskwatch import DiskWatch
from hanok.services.drafts import Drafts
from hanok.services.entrance import Entrance
from hanok.services.exports import ExportService
from hanok.services.guests import Guests
from hanok.services.host import HostService
from hanok.services.images import ImageService
from hanok.services.keeping import Clock, SystemClock
from hanok.services.kernels import KernelService
from hanok.services.lifecycle import Lifecycle
from hanok.services.memories import Memories
from hanok.services.networks import NetworkService
from hanok.services.operations import Operations
from hanok.services.parts import Parts
from hanok.services.pulls import PullService
from hanok.services.recovery import Recovery
from hanok.services.returning import Returning
from hanok.services.screens import ScreenService
from hanok.services.stacks import StackService
from hanok.services.supervisor import Supervisor
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
    screens: ScreenService
    vms: VmService
    changes: ChangeService
    images: ImageService
    exports: ExportService
    pulls: PullService
    kernels: KernelService
    networks: NetworkService
    memories: Memories
    templates: TemplateService
    warmup: WarmMaker
    clones: CloneService
    stacks: StackService
    capacity: CapacityService
    views: Views
    recovery: Recovery
    returning: Returning
    departure: Departure
    host: HostService
    tokens: TokenService
    entrance: Entrance
    supervisor: Supervisor

    async def close(self) -> None:
        """Let go of everything; nothing that runs is stopped."""
        await self.supervisor.close()
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


def make_services(parts: Parts, clock: Clock | None = None) -> Services:
    """Return the services that work with ``parts``, by the time that ``clock`` tells."""
    clock = clock or SystemClock()
    operations = Operations(parts.store, parts.events)
    guests = Guests(parts)
    memories = Memories(parts)
    lifecycle = Lifecycle(parts, guests, memories, clock)
    capacity = CapacityService(parts)
    networks = NetworkService(parts, operations)
    drafts = Drafts(parts, capacity, networks)
    templates = TemplateService(parts, operations, guests, memories)
    warm = WarmStarts(parts, operations, templates, drafts)
    returning = Returning(parts.settings.home)
    vms = VmService(parts, lifecycle, operations, capacity, drafts, warm, returning)
    entrance = Entrance(parts.settings.certificates)
    views = Views(parts, capacity, entrance)
    images = ImageService(parts, operations)
    exports = ExportService(parts, operations, images)
    supervisor = Supervisor(parts, guests, vms, operations, clock)
    lifecycle.on_change = supervisor.look
    return Services(
        parts=parts,
        operations=operations,
        guests=guests,
        screens=ScreenService(parts),
        vms=vms,
        changes=ChangeService(parts, operations, capacity, networks, guests, lifecycle),
        images=images,
        exports=exports,
        pulls=PullService(parts, operations, images.uploads),
        kernels=KernelService(parts, operations, images),
        networks=networks,
        memories=memories,
        templates=templates,
        warmup=WarmMaker(parts, operations, templates, vms),
        clones=CloneService(parts, operations, drafts, templates, vms),
        stacks=StackService(
            parts, vms, networks, capacity, operations, views, templates, drafts, returning
        ),
        capacity=capacity,
        views=views,
        host=HostService(parts, operations),
        tokens=TokenService(parts.store, parts.events),
        entrance=entrance,
        returning=returning,
        supervisor=supervisor,
        departure=Departure(
            parts, vms, operations, returning, partial(why_ending, parts.runner), boot_id(), clock
        ),
        recovery=Recovery(
            *(parts, guests, lifecycle, vms, templates, operations, images, exports),
            DiskWatch(parts, vms, capacity),
        ),
    )
