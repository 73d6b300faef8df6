"""Images as users see them."""

from __future__ import annotations

import asyncio
from typing import Any

from hanok.errors import Conflict, NotFound
from hanok.images.recipes import resolve
from hanok.model.image import Image
from hanok.model.operation import Operation
from hanok.model.views import ImageView
from hanok.services.events import make_event
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts


class ImageService:
    """What users ask of images."""

    def __init__(self, parts: Parts, operations: Operations) -> None:
        self._parts = parts
        self._operations = operations
        operations.register("build", self._build, cancellable=True)

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
            modes=sorted({str(mode) for kernel in image.kernels for mode in kernel.modes}),
            created=image.created,
            used_by=await self._users(image),
        )
