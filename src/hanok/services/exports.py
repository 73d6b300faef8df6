"""Disks of stopped VMs, and of images, as files to take elsewhere: written, fetched, forgotten.

    exports/ID          what operation ID has written; gone when it was fetched, or after an hour
    exports/.work-ID/   the jail in which it is being written; gone with the daemon that wrote it

While that is done the VM's lock is held, and requests that would start, change or delete it are
refused.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hanok.durable import sync_path
from hanok.errors import Conflict, NotFound, Unsupported
from hanok.filesystems import LOST_AND_FOUND
from hanok.images.export import Source, measure, write_disk
from hanok.images.foreign.formats import check_size
from hanok.images.jail import Jail
from hanok.images.sandbox import DEFAULT_ACCOUNT
from hanok.model.image import DiskFormat, ExportFormat, ExportRequest, Image
from hanok.model.operation import Operation
from hanok.model.vm import VmRecord, VmState
from hanok.services.busy import EXPORT, check_idle
from hanok.services.diskroom import check_room_for
from hanok.services.events import make_event
from hanok.services.images import ImageService
from hanok.services.machines import account_of
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts, is_up
from hanok.storage.volumes import chain_node, virtual_size

_IDENT = re.compile(r"[0-9a-f]{12}", re.A)
_WORK = ".work-"
_KEPT_SECONDS = 3600.0
_EXPORT_IMAGE = "export-image"


@dataclass(frozen=True)
class Fetched:
    """A disk that was exported: the open file and its size in bytes."""

    file: BinaryIO
    size: int


class ExportService:
    """What users ask of disks, to have them as files."""

    def __init__(self, parts: Parts, operations: Operations, images: ImageService) -> None:
        self._parts = parts
        self._images = images
        self._operations = operations
        self._folder = parts.settings.exports
        operations.register(EXPORT, self._export, cancellable=True)
        operations.register(_EXPORT_IMAGE, self._export_image, cancellable=True)

    async def export(self, name: str, wanted: ExportRequest) -> Operation:
        """Write the system disk of a stopped VM to one file. Raises NotFound, Conflict."""
        async with self._parts.locks.admission:
            record = await self._parts.vm(name)
            _check_stopped(record)
            await check_idle(self._parts, record, "exported")
            arguments = {"vms": [record.uuid], "format": str(wanted.format)}
            operation = await self._operations.begin(EXPORT, record.spec.name, arguments=arguments)
        self._parts.failpoints.hit("export.accepted")
        return operation

    async def export_image(self, ref_or_id: str, wanted: ExportRequest) -> Operation:
        """Write the disk of an image to one file. Raises NotFound, Unsupported without a disk."""
        image = await self._images.find(ref_or_id)
        if image.kernels and image.kernels[0].bare:
            raise Unsupported(
                f"the image {image.ref} is a kernel alone", field="image", expected="a disk"
            )
        arguments = {"image": image.id, "format": str(wanted.format)}
        return await self._operations.begin(_EXPORT_IMAGE, image.ref, arguments=arguments)

    def open(self, ident: str) -> Fetched:
        """Return what operation ``ident`` has written. Raises NotFound."""
        try:
            if _IDENT.fullmatch(ident) is None:
                raise FileNotFoundError
            file = self._path(ident).open("rb")
        except FileNotFoundError:
            raise NotFound(
                f"there is no exported disk {ident[:60]!r}",
                hint="it is kept for an hour, or until it was fetched: export it again",
            ) from None
        return Fetched(file, os.fstat(file.fileno()).st_size)

    def remove(self, ident: str) -> None:
        """Forget an exported disk; nothing happens when it is gone."""
        if _IDENT.fullmatch(ident) is not None:
            self._path(ident).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a dead daemon was writing, and what nobody has fetched for an hour."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if path.name.startswith(_WORK):
                shutil.rmtree(path)
        self._expire()

    def _expire(self) -> None:
        """Remove files that nobody has fetched for an hour, and look again when the next is due."""
        oldest = None
        for path in self._folder.iterdir():
            if path.name == LOST_AND_FOUND or path.name.startswith(_WORK):
                continue
            left = path.stat().st_mtime + _KEPT_SECONDS - time.time()
            if left <= 0:
                path.unlink(missing_ok=True)
            else:
                oldest = left if oldest is None else min(oldest, left)
        if oldest is not None:
            asyncio.get_running_loop().call_later(oldest + 1, self._expire)

    def _path(self, ident: str) -> Path:
        return self._folder / ident

    async def _export(self, work: Work) -> dict[str, Any]:
        self._parts.failpoints.hit("export.begin")
        arguments, path = work.operation.arguments, self._path(work.operation.id)
        (uuid,) = arguments["vms"]
        format = ExportFormat(arguments["format"])
        if not path.exists():  # else a daemon has died after its last step
            async with self._parts.locks.by_vm[uuid]:
                record = await self._parts.vm(uuid)
                _check_stopped(record)
                await self._write(partial(self._look, record), format, path, work)
                told = make_event("vm", record.spec.name, "exported", str(format))
                await self._parts.events.commit(event=told)
        self._parts.failpoints.hit("export.made")
        return self._made(path, format)

    async def _export_image(self, work: Work) -> dict[str, Any]:
        arguments, path = work.operation.arguments, self._path(work.operation.id)
        format = ExportFormat(arguments["format"])
        if not path.exists():
            image = await self._images.find(arguments["image"])
            await self._write(partial(self._look_at_image, image), format, path, work)
            told = make_event("image", image.ref, "exported", str(format))
            await self._parts.events.commit(event=told)
        return self._made(path, format)

    def _made(self, path: Path, format: ExportFormat) -> dict[str, Any]:
        self._expire()
        return {"id": path.name, "format": str(format), "size": path.stat().st_size}

    async def _write(
        self,
        look: Callable[[Path], tuple[Source, Jail]],
        format: ExportFormat,
        path: Path,
        work: Work,
    ) -> None:
        """Write the disk that ``look`` finds to ``path``, in a jail that goes again."""
        work.report("looking at the disk", None)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        folder = self._folder / f"{_WORK}{path.name}"
        async with AsyncExitStack() as undo:
            source, jail = await asyncio.to_thread(look, folder)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            jail.make()
            self._parts.failpoints.hit("export.jail")
            runner = self._parts.runner
            needed = await measure(source, jail, runner)
            check_room_for(self._folder, f"the disk of {work.operation.target}", needed)
            made = await write_disk(source, jail, format, needed, runner, work.report)
            self._parts.failpoints.hit("export.written")
            made.rename(path)
            sync_path(self._folder)

    def _look_at_image(self, image: Image, folder: Path) -> tuple[Source, Jail]:
        """Return how an image's disk is read, which is ours, and the jail for that."""
        path = self._parts.images.path(image) / image.disk
        jail = Jail((path,), folder, DEFAULT_ACCOUNT if os.geteuid() == 0 else None)
        return Source(chain_node([(jail.given(), image.disk_format)]), image.disk_size), jail

    def _look(self, record: VmRecord, folder: Path) -> tuple[Source, Jail]:
        """Return how the VM's system disk is read, and the jail for that.

        Raises HostError when something else is in its place, InvalidInput when it is too large.
        """
        machine = self._parts.machine(record)
        if not machine.disks:
            raise Unsupported(
                f"{record.spec.name} has no disk: its image is a kernel alone",
                field="name",
                expected="a VM with a disk",
            )
        root, account = machine.disks[0], account_of(record.uid)
        size = virtual_size(root.path, os.geteuid() if account is None else account.uid)
        check_size(size)
        files = [(root.path, DiskFormat.QCOW2), *((base.path, base.format) for base in root.bases)]
        jail = Jail(tuple(path for path, _ in files), folder, account)
        seen = [(jail.given(number), format) for number, (_, format) in enumerate(files)]
        return Source(chain_node(seen), size), jail


def _check_stopped(record: VmRecord) -> None:
    """Raise Conflict for a VM whose disk may be written by its guest."""
    name = record.spec.name
    if record.internal:
        raise NotFound(f"there is no VM named {name}", field="name")
    if is_up(record) or record.state not in (VmState.STOPPED, VmState.FAILED):
        raise Conflict(
            f"{name} is {record.state}: its disk is in use",
            expected="a VM that is stopped",
            hint=f"'hanok stop {name}' first",
        )
