"""Makes warm templates: a VM of Hanok's own is booted, frozen and removed."""

from __future__ import annotations

import asyncio
from typing import Any

from hanok.errors import HanokError
from hanok.model.template import TemplateOwner, TemplateState
from hanok.services.events import make_event
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts
from hanok.services.templates import TemplateService
from hanok.services.vms import VmService
from hanok.store.base import PutTemplate


class WarmMaker:
    """Does the operations that WarmStarts begins."""

    def __init__(
        self, parts: Parts, operations: Operations, templates: TemplateService, vms: VmService
    ) -> None:
        self._parts = parts
        self._templates = templates
        self._vms = vms
        operations.register("warm", self._make, cancellable=True)

    async def _make(self, work: Work) -> dict[str, Any]:
        name = work.operation.target
        (uuid,) = work.operation.arguments["vms"]
        try:
            if await self._parts.store.find_vm(uuid) is not None:
                await self._vms.bring_up_new(uuid, work)
                await self._freeze(uuid, name, work)
        except (HanokError, asyncio.CancelledError) as error:
            if work.by_user or isinstance(error, HanokError):
                await self._remove(uuid, work)
            raise
        await self._remove(uuid, work)
        return {"name": name}

    async def _freeze(self, uuid: str, name: str, work: Work) -> None:
        for template in await self._parts.store.templates():
            if template.name == name:
                if template.state is TemplateState.READY:
                    return
                await self._templates.forget(template)
        source = await self._parts.vm(uuid)
        record = await self._templates.prepare(source, name, TemplateOwner.WARM)
        told = make_event("template", name, "making", f"a warm start of {source.spec.image}")
        await self._parts.events.commit(PutTemplate(record), event=told)
        try:
            await self._templates.make(record, work)
        except (HanokError, asyncio.CancelledError) as error:
            if work.by_user or isinstance(error, HanokError):
                await self._templates.forget(record)
            raise

    async def _remove(self, uuid: str, work: Work) -> None:
        if await self._parts.store.find_vm(uuid) is not None:
            await self._vms.take_down(uuid, work)
