"""Clones: many VMs of one template by one operation, all of them or none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from hanok.errors import Conflict, HanokError, InvalidInput, NotFound
from hanok.model.operation import Operation
from hanok.model.template import CloneRequest, TemplateRecord, TemplateState
from hanok.model.vm import CloneKind, VmRecord, VmSpec
from hanok.services.drafts import Drafts, check_duplicates
from hanok.services.events import make_event
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts
from hanok.services.templates import TemplateService
from hanok.services.vms import VmService
from hanok.store.base import PutTemplate, PutVm

# One at a time leaves a CPU idle while a clone waits for its guest; many at once wait for CPUs.
_AT_ONCE = 4


class CloneService:
    """What users ask of clones."""

    def __init__(
        self,
        parts: Parts,
        operations: Operations,
        drafts: Drafts,
        templates: TemplateService,
        vms: VmService,
    ) -> None:
        self._parts = parts
        self._operations = operations
        self._drafts = drafts
        self._templates = templates
        self._vms = vms
        operations.register("clone", self._clone, cancellable=True)

    async def create(self, request: CloneRequest) -> Operation:
        """Make VMs of a template. Raises NotFound, InvalidInput, Conflict, NotAdmitted."""
        async with self._parts.locks.admission:
            template = await self._templates.find(request.template)
            specs = _specs(template, request)
            await self._check(template, request.kind, specs[0])
            records = await self._drafts.draft(specs, template=template, kind=request.kind)
            used = template.model_copy(update={"used": time.time()})
            names = f"{len(records)} times" if len(records) > 1 else f"as {records[0].spec.name}"
            operation = await self._operations.begin(
                "clone",
                template.name,
                PutTemplate(used),
                *(PutVm(record) for record in records),
                arguments={"vms": [record.uuid for record in records]},
                event=make_event("template", template.name, "cloned", names),
            )
            self._parts.failpoints.hit("clone.accepted")
            return operation

    async def _check(self, template: TemplateRecord, kind: CloneKind, spec: VmSpec) -> None:
        check_duplicates(spec)
        if template.state is not TemplateState.READY:
            raise Conflict(
                f"the template {template.name} is still being made",
                field="template",
                hint="'hanok operations list' shows how far it is",
            )
        if kind is not CloneKind.INSTANT:
            return
        if len(spec.networks) != len(template.macs):
            raise InvalidInput(
                f"the template has {len(template.macs)} network cards, and an instant clone too",
                field="networks",
                expected=f"{len(template.macs)} networks",
                hint="--linked makes clones that boot, with as many as you like",
            )
        reason = await self._templates.why_not_instant(template)
        if reason is not None:
            raise Conflict(
                f"the template {template.name} cannot be cloned instantly: {reason}",
                field="template",
                hint="make it anew of a VM that runs here now, or clone it with --linked",
            )

    async def _clone(self, work: Work) -> dict[str, Any]:
        uuids = [str(uuid) for uuid in work.operation.arguments["vms"]]
        records = [record for uuid in uuids if (record := await self._parts.store.find_vm(uuid))]
        try:
            await self._bring_up(records, work)
        except HanokError:
            await self._remove(records, work)
            raise
        except asyncio.CancelledError:
            if work.by_user:
                await self._remove(records, work)
            raise
        return {"names": [record.spec.name for record in records]}

    async def _bring_up(self, records: list[VmRecord], work: Work) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)
        done = 0

        async def one(record: VmRecord) -> None:
            nonlocal done
            async with gate:
                part = work.part("clone", record.spec.name, quiet=True)
                with contextlib.suppress(NotFound):  # deleted meanwhile, as its user wished
                    await self._vms.bring_up_new(record.uuid, part)
            done += 1
            work.report(f"{done} of {len(records)} ready", done / len(records))

        tasks = [asyncio.create_task(one(record)) for record in records]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _remove(self, records: list[VmRecord], work: Work) -> None:
        """Take down whatever this operation has made: it leaves all of its clones or none."""
        for record in records:
            with contextlib.suppress(NotFound):
                await self._vms.take_down(record.uuid, work.part("delete", record.spec.name))


def _specs(template: TemplateRecord, request: CloneRequest) -> list[VmSpec]:
    networks = template.spec.networks if request.networks is None else request.networks
    fields = {**dict(template.spec), "networks": networks, "publish": request.publish}
    first = VmSpec.model_validate({**fields, "name": request.names()[0], "cold": False})
    return [first.model_copy(update={"name": name}) for name in request.names()]
