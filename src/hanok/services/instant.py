"""The first start of an instant clone: it goes on from its template's memory, as somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from dataclasses import replace

from hanok.errors import HypervisorError, NotFound, Unsupported
from hanok.guest.identity import Identity, IdentityNic, give_identity
from hanok.guest.keys import HostKey
from hanok.hypervisors.base import Frozen
from hanok.hypervisors.optional import CanFreeze
from hanok.model.image import DiskFormat, Image
from hanok.model.network import Plug
from hanok.model.template import TemplateRecord
from hanok.model.vm import VmRecord, VmState
from hanok.network.keeper.config import DOMAIN
from hanok.services.guests import Guests
from hanok.services.keeping import Clock
from hanok.services.machines import account_of, files_of, make_folders, template_files
from hanok.services.memories import Memories
from hanok.services.parts import Parts, changed
from hanok.services.plugs import Plugs, ports_of
from hanok.services.seeds import write_seed
from hanok.storage.volumes import create_overlay

_IDENTITY_LIMIT = 60.0


class InstantStart:
    """Starts instant clones."""

    def __init__(self, parts: Parts, guests: Guests, memories: Memories, clock: Clock) -> None:
        self._parts = parts
        self._clock = clock
        self._guests = guests
        self._memories = memories
        self._plugs = Plugs(parts)

    async def start(self, record: VmRecord) -> VmRecord:
        """Let the clone go on from its template's memory and give it its identity.

        Nothing of an earlier try is used: a disk that the template's memory has once gone on with
        does not fit it any more. The caller undoes what is left when this fails.
        """
        template = await self._template(record)
        image = self._parts.images.get(template.image_id)
        if image is None:
            raise NotFound(f"the image of the template {template.name} is gone")
        memory = await self._memories.get(template)
        hit = self._parts.failpoints.hit
        await self._end_earlier(record)
        await self._plugs.ensure(record.nics)
        making = asyncio.create_task(self._make_files(record, template, image))
        try:
            async with self._plugs.taps(ports_of(record)) as taps:
                key = await making
                hit("clone.files")
                started = self._clock.now()
                await self._start_machine(record, template, memory, taps)
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
        hit("clone.process")
        await self._guests.connect(record)
        hit("clone.connected")
        await self._become(record, await self._identity(record, template, key))
        hit("clone.identity")
        return changed(
            record,
            state=VmState.RUNNING,
            reason=None,
            started=started,
            ready_seconds=None,
            evidence=template.evidence,
            boot=f"went on from the memory of template {template.name}",
        )

    async def _become(self, record: VmRecord, identity: Identity) -> None:
        """Let the guest go on, as ``identity``; returns when its agent answers too."""
        hypervisor = self._parts.hypervisor
        if not isinstance(hypervisor, CanFreeze):
            raise Unsupported(f"{hypervisor.name} cannot go on from frozen memory")
        agent = await self._guests.agent(record)

        async def go() -> None:
            await hypervisor.resume(record.uuid)
            self._parts.failpoints.hit("clone.resumed")

        async with hypervisor.identity_port(record.uuid) as port:
            await give_identity(port.reader, port.writer, identity, timeout=_IDENTITY_LIMIT, go=go)
            await agent.sync(_IDENTITY_LIMIT)

    async def _end_earlier(self, record: VmRecord) -> None:
        """End what an earlier daemon has started of this clone, if it came that far."""
        if files_of(self._parts.settings, record.uuid).folder.exists():
            with contextlib.suppress(HypervisorError):  # one that does not answer is ended too
                await self._parts.hypervisor.adopt(self._parts.machine(record))
            await self._parts.hypervisor.kill(record.uuid)

    async def _template(self, record: VmRecord) -> TemplateRecord:
        for template in await self._parts.store.templates():
            if record.clone is not None and template.id == record.clone.template:
                return template
        raise NotFound(f"the template of {record.spec.name} is gone")

    async def _make_files(
        self, record: VmRecord, template: TemplateRecord, image: Image
    ) -> HostKey | None:
        """Make the clone's disk and seed; return its SSH host key, if it has one."""
        files = files_of(self._parts.settings, record.uuid)
        make_folders(files, account_of(record.uid))
        files.disk.unlink(missing_ok=True)
        await create_overlay(
            base=template_files(self._parts.settings, template.id).disk,
            base_format=DiskFormat.QCOW2,
            path=files.disk,
            size=template.spec.disk,
            account=account_of(record.uid),
        )
        return await write_seed(self._parts, record, image)

    async def _start_machine(
        self, record: VmRecord, template: TemplateRecord, memory: int, taps: tuple[Plug, ...]
    ) -> None:
        machine = self._parts.machine(record)
        path = template_files(self._parts.settings, template.id).state
        state = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            frozen = replace(machine, frozen=Frozen(memory, state))
            await self._parts.hypervisor.start(frozen, taps)
        finally:
            os.close(state)

    async def _identity(
        self, record: VmRecord, template: TemplateRecord, key: HostKey | None
    ) -> Identity:
        nics = []
        for old, nic in zip(template.macs, record.nics, strict=True):
            network = await self._parts.network(nic.network)
            nics.append(
                IdentityNic(
                    old_mac=old,
                    mac=nic.mac,
                    address=nic.address,
                    prefix=ipaddress.IPv4Network(network.subnet).prefixlen,
                    gateway=network.gateway,
                    dns=network.gateway,
                    domain=DOMAIN,
                )
            )
        return Identity(
            host_name=record.spec.name,
            uuid=record.uuid,
            nics=tuple(nics),
            host_key_private=key.private if key else None,
            host_key_public=key.public if key else None,
        )


def is_fresh_instant(record: VmRecord) -> bool:
    """Return whether the VM's next start goes on from its template's memory."""
    clone = record.clone
    return clone is not None and clone.kind == "instant" and clone.fresh
