"""Warm starts: a template of a freshly booted guest, for the next ``run`` of its kind."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from hanok.errors import HanokError
from hanok.hypervisors.base import Boot, Machine, Nic
from hanok.hypervisors.optional import CanFreeze
from hanok.images.recipes import LABS, is_own
from hanok.model.operation import OperationState
from hanok.model.template import TemplateOwner, TemplateRecord, TemplateState
from hanok.model.vm import VmRecord, VmSpec
from hanok.services.drafts import Drafts
from hanok.services.machines import choose_firmware, has_screen
from hanok.services.operations import Operations
from hanok.services.parts import Parts, changed
from hanok.services.templates import TemplateService
from hanok.store.base import PutVm

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a new VM comes up: as a clone of ``template``, or by a boot; ``boot`` says why."""

    template: TemplateRecord | None
    boot: str


class WarmStarts:
    """Chooses how a new VM comes up, and has warm templates made of what was booted."""

    def __init__(
        self, parts: Parts, operations: Operations, templates: TemplateService, drafts: Drafts
    ) -> None:
        self._parts = parts
        self._operations = operations
        self._templates = templates
        self._drafts = drafts

    async def choose(self, spec: VmSpec) -> Start:
        """Return how a VM of this definition comes up. Raises InvalidInput for its image."""
        reason = self._why_cold(spec)
        if reason is not None:
            return Start(None, f"booted: {reason}")
        name = await self._name(spec)
        for template in await self._parts.store.templates():
            if template.name != name or template.owner is not TemplateOwner.WARM:
                continue
            if template.state is TemplateState.MAKING:
                return Start(None, "booted: its warm template was still being made")
            found = await self._templates.why_not_instant(template)
            if found is not None:
                return Start(None, f"booted: its warm template does not fit any more ({found})")
            return Start(template, "")
        return Start(None, "booted: there was no warm template of its image and shape yet")

    def _why_cold(self, spec: VmSpec) -> str | None:
        if spec.cold:
            return "a cold start was asked for"
        if spec.user_data:
            return "its user data runs at its first boot"
        return self._templates.obstacle(self._machine(spec))

    def _machine(self, spec: VmSpec) -> Machine:
        """Return a machine of this shape: whether it can be frozen is told by no more."""
        return Machine(
            uuid="",
            name=spec.name,
            cpus=spec.cpus,
            memory=spec.memory,
            mode=self._parts.hypervisor.choose_mode(spec.mode),
            folder=self._parts.settings.vms,
            account=None,
            disks=(),
            nics=tuple(Nic(mac="", network=name) for name in spec.networks),
            tcg_buffer=spec.tcg_buffer,
            boot=self._boot(spec),
            architecture=self._parts.images.architecture(spec.image, spec.packages),
            screen=has_screen(spec, self._parts.hypervisor.choose_mode(spec.mode)),
        )

    def _boot(self, spec: VmSpec) -> Boot | None:
        image = self._parts.images.find(spec.image, spec.packages) if is_own(spec.image) else None
        firmware = choose_firmware(spec, image) if image is not None else None
        return Boot(firmware, self._parts.settings.vms) if firmware is not None else None

    async def _name(self, spec: VmSpec) -> str:
        """Return the name of the warm template of this image and shape on this host."""
        hypervisor = self._parts.hypervisor
        await hypervisor.probe()
        fingerprint = await hypervisor.fingerprint() if isinstance(hypervisor, CanFreeze) else ""
        shape = {
            "image": self._parts.images.identity(spec.image, spec.packages),
            "cpus": spec.cpus,
            "memory": spec.memory,
            "disk": spec.disk,
            "mode": str(hypervisor.choose_mode(spec.mode)),
            "networks": len(spec.networks),
            "tcg_buffer": spec.tcg_buffer,
            "nested": spec.nested,
            **({"watchdog": spec.watchdog.model_dump(mode="json")} if spec.watchdog.wanted else {}),
            "ready": spec.ready.model_dump(mode="json"),
            "fingerprint": fingerprint,
        }
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        return f"warm-{digest[:8]}"

    async def consider(self, record: VmRecord) -> None:
        """Have a warm template made, in the background, of what ``record`` has just booted."""
        limit = self._parts.settings.warm_limit
        if limit == 0 or record.internal or record.clone is not None:
            return
        if record.spec.image in LABS:  # whoever makes a lab freezes a host of it
            return
        if self._why_cold(record.spec.model_copy(update={"cold": False})) is not None:
            return
        name = await self._name(record.spec)
        async with self._parts.locks.admission:
            if await self._failed(name) or any(
                template.name == name for template in await self._parts.store.templates()
            ):
                return
            if await self._parts.store.find_vm(name) is not None:
                return
            if await self._make_room(limit):
                await self._begin(record, name)

    async def _failed(self, name: str) -> bool:
        """Return whether one was tried in vain: it is not tried again at each run."""
        kept = await self._parts.store.operations()
        last = next((op for op in kept if (op.kind, op.target) == ("warm", name)), None)
        return last is not None and last.state is OperationState.FAILED

    async def _make_room(self, limit: int) -> bool:
        """Remove warm templates until there is room for one more; those in use stay."""
        warm = [t for t in await self._parts.store.templates() if t.owner is TemplateOwner.WARM]
        idle = [t for t in warm if not await self._templates.clones(t)]
        idle = [t for t in idle if t.state is TemplateState.READY]
        stale = [t for t in idle if await self._templates.why_not_instant(t) is not None]
        rest = sorted((t for t in idle if t not in stale), key=lambda t: max(t.used, t.created))
        surplus = max(0, len(warm) - len(stale) + 1 - limit)
        if surplus > len(rest):
            return False
        for template in [*stale, *rest[:surplus]]:
            await self._templates.forget(template)
        return True

    async def _begin(self, record: VmRecord, name: str) -> None:
        fields = {**dict(record.spec), "name": name, "publish": (), "cold": True}
        try:
            (fresh,) = await self._drafts.draft([VmSpec.model_validate(fields)], internal=True)
        except HanokError as error:
            _log.info("no warm template of %s is made: %s", record.spec.image, error.message)
            return
        fresh = changed(fresh, image_id=record.image_id)
        await self._operations.begin(
            "warm", name, PutVm(fresh), arguments={"vms": [fresh.uuid], "image": record.spec.image}
        )
