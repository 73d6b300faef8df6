"""Templates: VMs frozen with memory, devices and disk while they go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, retry_if_result, wait_exponential

from hanok.durable import sync_path
from hanok.errors import Conflict, HanokError, NotFound, Unsupported
from hanok.filesystems import LOST_AND_FOUND, disk_full, full_error, is_full
from hanok.guest.identity import has_helper
from hanok.hypervisors.base import Disk, Machine
from hanok.hypervisors.optional import CanFreeze
from hanok.images.filing import hash_file
from hanok.model.image import DiskFormat
from hanok.model.network import NetworkPort, Plug
from hanok.model.operation import Operation
from hanok.model.template import TemplateOwner, TemplateRecord, TemplateRequest, TemplateState
from hanok.model.views import TemplateView
from hanok.model.vm import CloneKind, VmRecord, VmState
from hanok.network.base import free_address, make_mac
from hanok.proc import find_owned, kill_and_wait
from hanok.services.events import make_event
from hanok.services.guests import Guests
from hanok.services.machines import (
    TemplateFiles,
    VmFiles,
    account_of,
    files_of,
    make_folders,
    remove_folder,
    template_files,
)
from hanok.services.memories import Memories
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts, new_uuid
from hanok.services.plugs import Plugs
from hanok.services.shape import changed_shape, claimed_nics
from hanok.storage.memory import MemoryFacts, new_memory, save_memory, seal_memory
from hanok.storage.sparse import copy_sparse
from hanok.storage.volumes import create_empty
from hanok.store.base import DeleteTemplate, PutTemplate

_LOADER = "loader"
_HELPER_LIMIT = 15.0


class TemplateService:
    """What users ask of templates."""

    def __init__(
        self, parts: Parts, operations: Operations, guests: Guests, memories: Memories
    ) -> None:
        self._parts = parts
        self._operations = operations
        self._guests = guests
        self._memories = memories
        self._plugs = Plugs(parts)
        operations.register("template", self._make, cancellable=True)

    # What callers use

    async def create(self, request: TemplateRequest) -> Operation:
        """Freeze a VM that is ready. Raises NotFound, Conflict, Unsupported with the reason."""
        source = await self._parts.vm(request.source)
        record = await self.prepare(source, request.name, TemplateOwner.USER)
        operation = await self._operations.begin(
            "template",
            record.name,
            PutTemplate(record),
            arguments={"id": record.id},
            event=make_event("template", record.name, "making", f"of {source.spec.name}"),
        )
        self._parts.failpoints.hit("template.accepted")
        return operation

    async def prepare(
        self, source: VmRecord, name: str, owner: TemplateOwner, stack: str | None = None
    ) -> TemplateRecord:
        """Return the record of a new template, not yet kept. Raises Conflict, Unsupported."""
        if any(template.name == name for template in await self._parts.store.templates()):
            raise Conflict(
                f"a template named {name} exists already",
                field="name",
                hint=f"choose another name, or 'hanok template delete {name}' first",
            )
        if source.state is not VmState.READY or source.image_id is None:
            raise Conflict(
                f"{source.spec.name} is {source.state}, not ready",
                field="source",
                hint="a template is made of a VM that runs and is ready",
            )
        obstacle = changed_shape(source) or self.obstacle(self._parts.machine(source))
        if obstacle is not None:
            raise Unsupported(
                f"{source.spec.name} cannot be frozen: {obstacle}",
                field="source",
                expected="a VM whose memory and devices can be frozen",
                hint="'hanok run' another one in mode para, and freeze that",
            )
        return TemplateRecord(
            id=new_uuid(),
            name=name,
            owner=owner,
            stack=stack,
            source=source.uuid,
            spec=source.spec,
            mode=source.mode,
            hypervisor=source.hypervisor,
            image_id=source.image_id,
            machine_type=source.machine_type,
            instance_id=source.instance_id or source.uuid,
            macs=tuple(nic.mac for nic in source.nics),
            evidence=source.evidence,
            created=time.time(),
        )

    def obstacle(self, machine: Machine) -> str | None:
        """Return why a machine cannot be frozen, None when it can."""
        hypervisor = self._parts.hypervisor
        if not isinstance(hypervisor, CanFreeze):
            return f"{hypervisor.name} cannot freeze machines"
        if machine.nics and self._parts.networks.facts.kind == "user":
            return "its network is QEMU's own, whose connections cannot be frozen"
        return hypervisor.freeze_obstacle(machine)

    async def find(self, name_or_id: str) -> TemplateRecord:
        """Return a template. Raises NotFound."""
        for template in await self._parts.store.templates():
            if name_or_id in (template.name, template.id):
                return template
        raise NotFound(
            f"there is no template named {name_or_id}",
            field="template",
            hint="'hanok template list' shows those there are; 'template create' makes one",
        )

    async def clones(self, template: TemplateRecord) -> list[str]:
        """Return the names of the VMs that need the template's disk."""
        return [
            vm.spec.name
            for vm in await self._parts.store.vms()
            if vm.clone is not None
            and vm.clone.template == template.id
            and (vm.clone.kind is not CloneKind.FULL or vm.clone.fresh)
        ]

    async def why_not_instant(self, template: TemplateRecord) -> str | None:
        """Return why the template's memory cannot be gone on from here, None when it can."""
        hypervisor = self._parts.hypervisor
        if template.state is not TemplateState.READY:
            return "it is still being made"
        if not isinstance(hypervisor, CanFreeze):
            return f"{hypervisor.name} cannot go on from frozen memory"
        await hypervisor.probe()
        now = await hypervisor.fingerprint()
        if now != template.fingerprint:
            return f"it was frozen by {template.fingerprint}, and this is {now}"
        return None

    async def delete(self, name_or_id: str) -> None:
        """Remove a template. Raises NotFound, Conflict naming its clones."""
        async with self._parts.locks.admission:
            template = await self.find(name_or_id)
            clones = await self.clones(template)
            if clones:
                shown = ", ".join(clones[:8]) + (" and more" if len(clones) > 8 else "")
                raise Conflict(
                    f"{len(clones)} clones stand on the template {template.name}: {shown}",
                    hint="delete those VMs first; full clones do not need their template",
                )
            if template.state is TemplateState.MAKING:
                await self._operations.supersede(template.name, ("template",))
                await self._operations.supersede(template.name, ("warm",), undo=True)
            await self.forget(template)

    async def forget(self, template: TemplateRecord) -> None:
        """Remove a template that no clone stands on, with its files; safe to repeat."""
        self._memories.drop(template.id)
        await asyncio.to_thread(_remove, template_files(self._parts.settings, template.id).folder)
        told = make_event("template", template.name, "deleted")
        await self._parts.events.commit(DeleteTemplate(template.id), event=told)

    async def views(self) -> list[TemplateView]:
        """Return all templates."""
        return [await self.view(template) for template in await self._parts.store.templates()]

    async def view(self, template: TemplateRecord) -> TemplateView:
        """Return what the API shows of a template."""
        spec = template.spec
        return TemplateView(
            id=template.id,
            name=template.name,
            owner=str(template.owner),
            stack=template.stack,
            state=str(template.state),
            image=spec.image,
            cpus=spec.cpus,
            memory=spec.memory,
            disk=spec.disk,
            mode=str(template.mode),
            created=template.created,
            used=template.used,
            memory_used=template.memory_used,
            size=template.size,
            clones=await self.clones(template),
            reason=await self.why_not_instant(template),
        )

    async def recover(self) -> None:
        """Remove what an earlier daemon left half made; its unfinished operations begin again."""
        for process in find_owned(self._parts.settings.home, _LOADER):
            await kill_and_wait(process.pid)
        templates = await self._parts.store.templates()
        known = {template.id for template in templates}
        unfinished = await self._parts.store.operations(unfinished=True)
        wanted = {operation.arguments.get("id") for operation in unfinished}
        for template in templates:
            if template.state is TemplateState.MAKING and template.id not in wanted:
                await self.forget(template)
        if self._parts.settings.templates.is_dir():
            for folder in self._parts.settings.templates.iterdir():
                if folder.name not in known and folder.name != LOST_AND_FOUND:
                    await asyncio.to_thread(_remove, folder)

    # What the operation does

    async def _make(self, work: Work) -> dict[str, Any]:
        ident = str(work.operation.arguments["id"])
        record = await self.find(ident)
        try:
            await self.make(record, work)
        except (HanokError, OSError):
            await self.forget(record)
            raise
        except asyncio.CancelledError:
            if work.by_user:
                await self.forget(record)
            raise
        return {"id": ident, "name": record.name}

    async def make(self, record: TemplateRecord, work: Work) -> TemplateRecord:
        """Freeze the VM that ``record`` was prepared from; nothing is left when that fails.

        Raises Conflict, GuestError, HypervisorError, HostError.
        """
        if record.state is TemplateState.READY:
            return record
        async with self._parts.locks.by_vm[record.source], AsyncExitStack() as undo:
            source = await self._ready_source(record)
            files = template_files(self._parts.settings, record.id)
            _remove(files.folder)
            files.folder.parent.mkdir(mode=0o711, exist_ok=True)
            files.folder.parent.chmod(0o711)
            files.folder.mkdir(mode=0o711)
            files.folder.chmod(0o711)
            undo.callback(_remove, files.folder)
            memory = new_memory(source.spec.memory, record.id)
            undo.callback(os.close, memory)
            try:
                done = await self._fill(record, source, files, memory, work)
            except (HanokError, OSError) as error:
                if is_full(files.folder) or full_error(error) is not None:
                    disk = files_of(self._parts.settings, source.uuid).disk
                    needed = source.spec.memory + disk.stat().st_blocks * 512
                    what = f"the memory and the disk of {source.spec.name}"
                    raise disk_full(files.folder, what, needed) from error
                raise
            undo.pop_all()
            self._memories.put(record.id, memory)
            self._parts.failpoints.hit("template.end")
        return done

    async def _fill(
        self,
        record: TemplateRecord,
        source: VmRecord,
        files: TemplateFiles,
        memory: int,
        work: Work,
    ) -> TemplateRecord:
        """Freeze the VM into the template's files, and write down that it is there."""
        work.report("freezing the VM; it is paused for a moment", None)
        await self._freeze(record, source, files, memory)
        await self._guests.set_clock(source)
        self._parts.failpoints.hit("template.frozen")
        work.report("saving its memory", None)
        facts = await asyncio.to_thread(_keep, memory, files)
        self._parts.failpoints.hit("template.saved")
        return await self._finish(record, files, facts)

    async def _ready_source(self, record: TemplateRecord) -> VmRecord:
        source = await self._parts.vm(record.source)
        if source.state is not VmState.READY:
            raise Conflict(f"{source.spec.name} is {source.state} meanwhile, not ready")
        if not await self._wait_helper(source):
            raise Unsupported(
                f"{source.spec.name} has no helper that gives clones their identity",
                field="source",
                expected="a guest of an image that this version of Hanok has built",
                hint=f"'hanok image build {source.spec.image}', and run a new VM of it",
            )
        return source

    async def _wait_helper(self, source: VmRecord) -> bool:
        """Wait a while for the helper: in a guest that has just booted it may be on its way."""
        agent = await self._guests.agent(source)
        retrying = AsyncRetrying(
            wait=wait_exponential(multiplier=0.02, max=0.5),
            retry=retry_if_result(lambda found: not found),
        )
        try:
            async with asyncio.timeout(_HELPER_LIMIT):
                return bool(await retrying(has_helper, agent))
        except TimeoutError:
            return False

    async def _freeze(
        self, record: TemplateRecord, source: VmRecord, files: TemplateFiles, memory: int
    ) -> None:
        hypervisor = self._parts.hypervisor
        if not isinstance(hypervisor, CanFreeze):
            raise Unsupported(f"{hypervisor.name} cannot freeze machines", field="source")
        disk = files_of(self._parts.settings, source.uuid).disk

        async def copy_disk() -> None:
            await asyncio.to_thread(copy_sparse, disk, files.disk, 0o644)

        async with self._loader(record, source) as (loader, taps):
            with open(files.state, "xb") as state:
                os.fchmod(state.fileno(), 0o600)
                descriptor = state.fileno()
                await hypervisor.freeze(source.uuid, loader, taps, memory, descriptor, copy_disk)
                os.fsync(descriptor)

    @asynccontextmanager
    async def _loader(
        self, record: TemplateRecord, source: VmRecord
    ) -> AsyncIterator[tuple[Machine, tuple[Plug, ...]]]:
        """Give a machine like the source, with stand-in disks, and taps of its own."""
        settings, runner = self._parts.settings, self._parts.runner
        files = VmFiles(settings.vms / record.id)
        account = account_of(source.uid)
        machine = self._parts.machine(source)
        async with AsyncExitStack() as undo:
            undo.callback(remove_folder, files)
            make_folders(files, account)
            disks: list[Disk] = []
            for disk in machine.disks:
                path = files.machine / f"{disk.name}.img"
                if disk.read_only:
                    await asyncio.to_thread(_stand_in, path, disk.path)
                    disks.append(Disk(disk.name, path, DiskFormat.RAW, read_only=True))
                else:
                    await create_empty(runner, path=path, size=source.spec.disk, account=account)
                    disks.append(Disk(disk.name, path, DiskFormat.QCOW2))
            ports = await self._loader_ports(record, source)
            for network, port in ports:
                undo.push_async_callback(self._parts.networks.detach, network, port.vm)
            taps = await undo.enter_async_context(self._plugs.taps(ports))
            yield replace(machine, uuid=record.id, folder=files.machine, disks=tuple(disks)), taps

    async def _loader_ports(
        self, record: TemplateRecord, source: VmRecord
    ) -> list[tuple[str, NetworkPort]]:
        """Return ports for a machine that never runs: its cards need taps, or features differ."""
        everyone = await self._parts.store.vms()
        ports = []
        for index, nic in enumerate(source.nics):
            network = await self._parts.network(nic.network)
            taken = [
                n.address for vm in everyone for n in claimed_nics(vm) if n.network == network.name
            ]
            port = NetworkPort(
                vm=record.id,
                host_name=f"template-{record.id[:8]}",
                mac=make_mac(record.id, index),
                address=free_address(network.subnet, taken),
            )
            ports.append((network.name, port))
        return ports

    async def _finish(
        self, record: TemplateRecord, files: TemplateFiles, facts: MemoryFacts
    ) -> TemplateRecord:
        hypervisor = self._parts.hypervisor
        checksums = {"memory": facts.checksum}
        for path in (files.state, files.disk):
            checksums[path.stem] = await asyncio.to_thread(hash_file, path)
        fingerprint = await hypervisor.fingerprint() if isinstance(hypervisor, CanFreeze) else ""
        for path in (*files.folder.iterdir(), files.folder, files.folder.parent):
            await asyncio.to_thread(sync_path, path)
        done = record.model_copy(
            update={
                "state": TemplateState.READY,
                "fingerprint": fingerprint,
                "memory_used": facts.used,
                "size": sum(path.stat().st_blocks * 512 for path in files.folder.iterdir()),
                "checksums": checksums,
            }
        )
        told = make_event("template", record.name, "ready")
        await self._parts.events.commit(PutTemplate(done), event=told)
        return done


def _keep(memory: int, files: TemplateFiles) -> MemoryFacts:
    seal_memory(memory)
    return save_memory(memory, files.memory)


def _stand_in(path: Path, original: Path) -> None:
    """Make a file of nothing, as large as the original."""
    with open(path, "xb") as file:
        file.truncate(original.stat().st_size)
        os.fchmod(file.fileno(), 0o644)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
