"""Images as users see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hanok.errors import Conflict, HostError, NotFound
from hanok.images.foreign.take import ForeignOrder
from hanok.images.recipes import OWN, resolve
from hanok.model.image import Image, ImportRequest
from hanok.model.operation import Operation
from hanok.model.views import ImageView
from hanok.services.events import make_event
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts
from hanok.services.uploads import Uploads

# What QEMU offers to a disk that firmware boots: whether its system has the drivers it must know.
_FIRMWARE_MODES = ("full", "para")


class ImageService:
    """What users ask of images."""

    def __init__(self, parts: Parts, operations: Operations) -> None:
        self._parts = parts
        self._operations = operations
        self.uploads = Uploads(parts.settings.uploads)
        operations.register("build", self._build, cancellable=True)
        operations.register("import", self._import, cancellable=True)

    async def build(self, ref: str, packages: tuple[str, ...]) -> Operation:
        """Build an image unless it is there. Raises InvalidInput for an unknown one."""
        resolve(ref, packages)
        arguments = {"packages": list(packages)}
        return await self._operations.begin("build", ref, arguments=arguments)

    async def _build(self, work: Work) -> dict[str, Any]:
        ref = work.operation.target
        packages = tuple(work.operation.arguments["packages"])
        image = await self._parts.images.ensure(ref, packages, work.report)
        await self._parts.events.commit(event=make_event("image", ref, "built", image.id))
        return {"id": image.id, "ref": image.ref}

    async def import_disk(
        self, wanted: ImportRequest, content: AsyncIterator[bytes], length: int | None
    ) -> Operation:
        """Take a disk that others made, ``length`` bytes; it becomes the image own:NAME.

        Raises Conflict when an image has that name, NotAdmitted without room, InvalidInput when
        less came than was announced.
        """
        ref = f"{OWN}:{wanted.name}"
        await asyncio.to_thread(self._parts.images.check_free, ref)
        upload = await self.uploads.receive(content, length)
        arguments = {
            "wanted": wanted.model_dump(mode="json"),
            "upload": upload.id,
            "sha256": upload.sha256,
        }
        try:
            operation = await self._operations.begin("import", ref, arguments=arguments)
        except BaseException:
            self.uploads.remove(upload.id)
            raise
        self._parts.failpoints.hit("import.accepted")
        return operation

    async def _import(self, work: Work) -> dict[str, Any]:
        self._parts.failpoints.hit("import.begin")
        arguments = work.operation.arguments
        ident = arguments["upload"]
        order = ForeignOrder(
            source=self.uploads.path(ident),
            sha256=arguments["sha256"],
            wanted=ImportRequest.model_validate(arguments["wanted"]),
        )
        image = self._parts.images.get(order.id)  # of a daemon that died after its last step
        if image is None:
            if not order.source.exists():
                raise HostError("the file that was being imported is gone", hint="import it again")
            try:
                image = await self._parts.images.take(order, work.report)
            except asyncio.CancelledError:
                if work.by_user:  # else the next daemon goes on with it
                    self.uploads.remove(ident)
                raise
            except BaseException:
                self.uploads.remove(ident)
                raise
        self._parts.failpoints.hit("import.taken")
        self.uploads.remove(ident)
        event = make_event("image", image.ref, "imported", image.id)
        await self._parts.events.commit(event=event)
        return {"id": image.id, "ref": image.ref, "firmware": [str(one) for one in image.firmware]}

    async def sweep(self) -> None:
        """Remove files that no unfinished import will ask for."""
        unfinished = await self._parts.store.operations(unfinished=True)
        used = {str(one.arguments.get("upload")) for one in unfinished if one.kind == "import"}
        await asyncio.to_thread(self.uploads.sweep, used)

    async def find(self, ref_or_id: str) -> Image:
        """Return an image by id, or the newest by what users call it. Raises NotFound."""
        images = await asyncio.to_thread(self._parts.images.list)
        found = [image for image in images if ref_or_id in (image.id, image.ref)]
        if not found:
            raise NotFound(
                f"there is no image {ref_or_id} on this host",
                hint=f"'hanok image build {ref_or_id}' builds it, 'hanok image list' shows others",
            )
        return max(found, key=lambda image: image.created)

    async def delete(self, ref_or_id: str) -> None:
        """Remove an image. Raises Conflict naming the VMs whose disks stand on it."""
        image = await self.find(ref_or_id)
        users = await self._users(image)
        if users:
            raise Conflict(
                f"the image {image.ref} ({image.id}) is used by {', '.join(users)}",
                hint="delete those VMs first",
            )
        await self._parts.images.delete(image.id)
        await self._parts.events.commit(event=make_event("image", image.ref, "deleted", image.id))

    async def _users(self, image: Image) -> list[str]:
        store = self._parts.store
        users = [vm.spec.name for vm in await store.vms() if vm.image_id == image.id]
        templates = [t.name for t in await store.templates() if t.image_id == image.id]
        return users + [f"the template {name}" for name in templates]

    async def list(self) -> list[ImageView]:
        """Return the images on this host."""
        images = await asyncio.to_thread(self._parts.images.list)
        return [await self._view(image) for image in images]

    async def _view(self, image: Image) -> ImageView:
        return ImageView(
            id=image.id,
            ref=image.ref,
            os=image.os,
            packages=list(image.packages),
            disk_size=image.disk_size,
            size=image.size,
            modes=_modes(image),
            created=image.created,
            used_by=await self._users(image),
        )


def _modes(image: Image) -> list[str]:
    if not image.kernels:
        return list(_FIRMWARE_MODES)
    return sorted({str(mode) for kernel in image.kernels for mode in kernel.modes})
