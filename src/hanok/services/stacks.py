"""Stacks: several VMs that belong together, brought up and taken down as one."""

from __future__ import annotations

import asyncio
from typing import Any

from hanok.errors import Conflict, HanokError, NotFound, Unsupported
from hanok.model.keeping import RestartsSeen
from hanok.model.operation import Operation
from hanok.model.stack import Stack, StackMachine, parse_stack
from hanok.model.template import TemplateOwner, TemplateRecord, TemplateState
from hanok.model.views import StackView
from hanok.model.vm import VmRecord, VmSpec, VmState, Wanted
from hanok.placement.admission import admit
from hanok.services.busy import BRINGS_UP
from hanok.services.capacity import CapacityService
from hanok.services.drafts import Drafts
from hanok.services.events import make_event
from hanok.services.networks import NetworkService
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts, changed
from hanok.services.returning import Returning
from hanok.services.suiting import check_offered
from hanok.services.templates import TemplateService
from hanok.services.views import Views
from hanok.services.vms import VmService, check_definition
from hanok.store.base import PutTemplate, PutVm


class StackService:
    """What users ask of stacks."""

    def __init__(
        self,
        parts: Parts,
        vms: VmService,
        networks: NetworkService,
        capacity: CapacityService,
        operations: Operations,
        views: Views,
        templates: TemplateService,
        drafts: Drafts,
        returning: Returning,
    ) -> None:
        self._parts = parts
        self._vms = vms
        self._networks = networks
        self._capacity = capacity
        self._operations = operations
        self._views = views
        self._templates = templates
        self._drafts = drafts
        self._returning = returning
        operations.register("up", self._up, cancellable=True)
        operations.register("down", self._down)

    async def up(self, name: str, data: dict[str, Any]) -> Operation:
        """Bring up what ``data``, a stack file's content, describes; what is up already stays.

        Raises InvalidInput, Conflict or NotAdmitted before anything is changed.
        """
        stack = parse_stack({**data, "name": data.get("name", name)})
        await self._check(stack)
        arguments = {"stack": data}
        return await self._operations.begin("up", stack.name, arguments=arguments)

    async def _check(self, stack: Stack) -> None:
        everyone = await self._parts.store.vms()
        by_name = {vm.spec.name: vm for vm in everyone}
        new: list[VmSpec] = []
        for machine in stack.machines():
            check_definition(machine.spec)
            spec = await self._vms.suit(machine.spec)
            existing = by_name.get(spec.name)
            if existing is not None:
                _check_same(existing, spec, stack.name)
                continue
            self._parts.hypervisor.choose_mode(spec.mode)
            check_offered(spec, self._parts.hypervisor)
            new.append(spec)
        await self._check_room(everyone, new)
        for network in await self._parts.store.networks():
            if network.stack != stack.name and network.name in _network_names(stack):
                raise Conflict(
                    f"a network named {network.name} exists already, outside this stack",
                    field="networks",
                    hint="name the stack's network otherwise",
                )

    async def _check_room(self, everyone: list[VmRecord], new: list[VmSpec]) -> None:
        await self._capacity.look()
        demands = await self._capacity.demands(everyone)
        for spec in new:
            wanted = self._capacity.demand(spec)
            admit(self._capacity.resources(), self._parts.settings.policy, demands, wanted)
            demands.append(wanted)

    async def _up(self, work: Work) -> dict[str, Any]:
        stack = parse_stack({"name": work.operation.target, **work.operation.arguments["stack"]})
        async with self._parts.locks.by_vm[f"stack {stack.name}"]:
            await self._make_networks(stack)
            created = await self._bring_up_all(stack, work)
        view = await self.find(stack.name)
        view["created"] = created
        return dict(view)

    async def _make_networks(self, stack: Stack) -> None:
        existing = {network.name for network in await self._parts.store.networks()}
        for spec in stack.network_specs():
            if spec.name not in existing:
                await self._networks.create(spec, stack.name)

    async def _bring_up_all(self, stack: Stack, work: Work) -> list[str]:
        """Bring up each VM as soon as those that it depends on are ready."""
        tasks: dict[str, asyncio.Task[bool]] = {}
        machines = stack.machines()
        counter = _Counter(work, len(machines))
        for machine in machines:
            needed = [tasks[name] for name in machine.depends_on]
            if machine.like is not None:
                needed.append(tasks[machine.like])
            tasks[machine.spec.name] = asyncio.create_task(
                self._bring_up_one(stack.name, machine, needed, work, counter)
            )
        try:
            results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        except asyncio.CancelledError:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            raise
        _raise_first(results)
        return [name for name, task in tasks.items() if task.result()]

    async def _bring_up_one(
        self,
        stack: str,
        machine: StackMachine,
        needed: list[asyncio.Task[bool]],
        work: Work,
        counter: _Counter,
    ) -> bool:
        for task in needed:
            try:
                await asyncio.shield(task)
            except HanokError as error:
                raise _Skipped(f"{machine.spec.name} was not started") from error
        part = work.part("run", machine.spec.name)
        record = await self._parts.store.find_vm(machine.spec.name)
        created = record is None
        if record is None:
            record = await self._create(machine, stack, part)
        try:
            await self._bring_up(record, created, part)
        except HanokError as error:
            error.message = f"{machine.spec.name}: {error.message}"
            raise
        counter.one_more()
        return created

    async def _create(self, machine: StackMachine, stack: str, part: Work) -> VmRecord:
        template: TemplateRecord | None = None
        if machine.like is not None:
            template = await self._template_of(machine.like, stack, part)
        spec = await self._vms.suit(machine.spec)
        async with self._parts.locks.admission:
            if template is None:
                record = await self._vms.prepare(spec, stack)
            else:
                (record,) = await self._drafts.draft([spec], template=template, stack=stack)
            event = make_event("vm", spec.name, "created", f"of stack {stack}")
            await self._parts.events.commit(PutVm(record), event=event)
        return record

    async def _template_of(self, first: str, stack: str, part: Work) -> TemplateRecord | None:
        """Return the template that the replicas of ``first`` are cloned from, made if need be.

        None when it cannot be frozen: then each of them boots.
        """
        source = await self._parts.vm(first)
        name = f"replicas-{source.uuid[:8]}"
        async with self._parts.locks.by_vm[f"template {name}"]:
            for template in await self._parts.store.templates():
                if template.name == name and template.state is TemplateState.READY:
                    usable = await self._templates.why_not_instant(template) is None
                    return template if usable else None
            try:
                owner = TemplateOwner.STACK
                record = await self._templates.prepare(source, name, owner, stack)
            except (Unsupported, Conflict):
                return None
            await self._parts.events.commit(PutTemplate(record))
            try:
                return await self._templates.make(record, part)
            except Unsupported:
                await self._templates.forget(record)
                return None
            except (HanokError, asyncio.CancelledError):
                await self._templates.forget(record)
                raise

    async def _bring_up(self, record: VmRecord, created: bool, part: Work) -> None:
        if created or record.state is VmState.CREATING:
            await self._vms.bring_up_new(record.uuid, part)
        elif record.state is VmState.PAUSED:
            await self._vms.resume_now(record.uuid)
        elif record.state is not VmState.READY:
            if record.wanted is not Wanted.RUNNING:
                async with self._parts.locks.admission:
                    await self._capacity.admit(record.spec, await self._parts.store.vms())
                    record = changed(record, wanted=Wanted.RUNNING, restarts=RestartsSeen())
                    await self._parts.save(record)
            await self._vms.bring_up_again(record.uuid, part)

    async def down(self, name: str) -> Operation:
        """Stop and delete everything of a stack. Raises NotFound."""
        await self.find(name)
        own = [record.uuid for record in await self._parts.store.vms() if record.stack == name]
        await self._returning.forget(own)
        return await self._operations.begin("down", name)

    async def _down(self, work: Work) -> dict[str, Any]:
        name = work.operation.target
        await self._operations.supersede(name, ("up",))
        async with self._parts.locks.by_vm[f"stack {name}"]:
            records = [vm for vm in await self._parts.store.vms() if vm.stack == name]
            counter = _Counter(work, len(records))
            results = await asyncio.gather(
                *(self._take_down(record, work, counter) for record in records),
                return_exceptions=True,
            )
            _raise_first(results)
            for template in await self._parts.store.templates():
                if template.stack == name:
                    await self._templates.forget(template)
            for network in await self._parts.store.networks():
                if network.stack == name:
                    await self._networks.delete(network.name)
        return {"deleted": [record.spec.name for record in records]}

    async def _take_down(self, record: VmRecord, work: Work, counter: _Counter) -> None:
        await self._operations.supersede(record.spec.name, (*BRINGS_UP, "stop"))
        await self._vms.take_down(record.uuid, work.part("delete", record.spec.name))
        counter.one_more()

    async def find(self, name: str) -> StackView:
        """Return a stack that is up, wholly or partly. Raises NotFound."""
        for view in await self.list():
            if view["name"] == name:
                return view
        raise NotFound(f"no stack named {name} is up", hint="see 'hanok list'")

    async def list(self) -> list[StackView]:
        """Return the stacks that are up."""
        vms = await self._views.vms()
        networks = await self._parts.store.networks()
        names = {vm["stack"] for vm in vms} | {network.stack for network in networks}
        return [
            StackView(
                name=name,
                vms=[vm for vm in vms if vm["stack"] == name],
                networks=[network.name for network in networks if network.stack == name],
                created=[],
            )
            for name in sorted(name for name in names if name)
        ]


class _Skipped(HanokError):
    """A VM was not started since one that it depends on failed; that one tells why."""


class _Counter:
    """Shows how many VMs of a stack are done."""

    def __init__(self, work: Work, total: int) -> None:
        self._work = work
        self._total = total
        self._done = 0

    def one_more(self) -> None:
        self._done += 1
        self._work.report(f"{self._done} of {self._total} done", self._done / self._total)


def _raise_first(results: list[Any]) -> None:
    errors = [result for result in results if isinstance(result, BaseException)]
    told = [error for error in errors if not isinstance(error, _Skipped)]
    for error in told or errors:
        raise error


def _network_names(stack: Stack) -> set[str]:
    return {network.name for network in stack.network_specs()}


def _check_same(existing: VmRecord, spec: VmSpec, stack: str) -> None:
    if existing.stack != stack:
        raise Conflict(
            f"a VM named {spec.name} exists already, outside the stack {stack}",
            field=f"vms.{spec.name}",
            hint=f"name it otherwise, or 'hanok delete {spec.name}' first",
        )
    fields = [
        name for name in VmSpec.model_fields if getattr(existing.spec, name) != getattr(spec, name)
    ]
    if fields:
        raise Conflict(
            f"{spec.name} runs with another {', '.join(fields)} than the file says",
            field=f"vms.{spec.name}.{fields[0]}",
            hint="change the file back, or 'hanok down' and 'hanok up' again",
        )
