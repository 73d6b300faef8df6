"""Images of the catalog: downloaded, checked, unpacked, then imported like any foreign disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from hanok.errors import Conflict
from hanok.images.catalog import CatalogEntry, find_entry, read_catalog
from hanok.images.download import LARGEST, Download, Wanted, unpacked
from hanok.images.foreign.take import ForeignOrder
from hanok.images.recipes import OWN
from hanok.model.image import Image, ImportRequest, PullRequest
from hanok.model.operation import Operation
from hanok.model.views import CatalogView
from hanok.services.events import make_event
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts
from hanok.services.uploads import Uploads


class PullService:
    """What users ask of the catalog."""

    def __init__(self, parts: Parts, operations: Operations, uploads: Uploads) -> None:
        self._parts = parts
        self._operations = operations
        self._uploads = uploads
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        operations.register("pull", self._pull, cancellable=True)

    def _catalog(self) -> tuple[CatalogEntry, ...]:
        return read_catalog(self._parts.settings.catalog)

    async def list(self) -> list[CatalogView]:
        """Return the catalog."""
        entries, images = await asyncio.gather(
            asyncio.to_thread(self._catalog), asyncio.to_thread(self._parts.images.list)
        )
        here = {image.imported.pulled: image.ref for image in images if image.imported}
        return [
            CatalogView(
                ref=entry.ref,
                os=entry.os,
                url=entry.urls[0],
                digest=entry.digest,
                memory=entry.memory,
                here=here.get(entry.digest),
            )
            for entry in entries
        ]

    async def pull(self, wanted: PullRequest) -> Operation:
        """Download an image; one that is here already costs nothing.

        Raises NotFound, and Conflict when another image has its name.
        """
        entry = find_entry(await asyncio.to_thread(self._catalog), wanted.image)
        name = wanted.name or entry.name
        if await asyncio.to_thread(self._here, entry, name) is None:
            await asyncio.to_thread(self._parts.images.check_free, f"{OWN}:{name}")
        arguments = {"name": name}
        return await self._operations.begin("pull", entry.ref, arguments=arguments)

    def _here(self, entry: CatalogEntry, name: str) -> Image | None:
        """Return the image when it is here, by that name. Raises Conflict for another of it."""
        image = self._parts.images.find(f"{OWN}:{name}")
        if image is None or image.imported is None or image.imported.pulled is None:
            return None
        if image.imported.pulled != entry.digest:
            raise Conflict(
                f"{image.ref} is here already, of another build of {entry.ref}",
                field="name",
                hint=f"--name for another name, or 'hanok image delete {image.ref}' first",
            )
        return image

    async def _pull(self, work: Work) -> dict[str, Any]:
        entry = find_entry(await asyncio.to_thread(self._catalog), work.operation.target)
        name = str(work.operation.arguments["name"])
        # Two that want the same file, by different names, would write to the same part of it.
        async with self._locks[entry.digest]:
            image = await asyncio.to_thread(self._here, entry, name)
            if image is None:
                image = await self._get(entry, name, work)
        return {"id": image.id, "ref": image.ref, "firmware": [str(one) for one in image.firmware]}

    async def _get(self, entry: CatalogEntry, name: str, work: Work) -> Image:
        part = self._uploads.part(entry.digest)
        await Download(Wanted(entry.urls, entry.digest), part, work.report).run()
        if entry.is_packed:
            work.report("unpacking the file", None)
            upload = await self._uploads.receive(_pieces(part), None)
            path, sha256 = self._uploads.path(upload.id), upload.sha256
        else:
            path, sha256 = part, await asyncio.to_thread(_sha256, part)
        try:
            image = await self._parts.images.take(_order(entry, name, path, sha256), work.report)
        except asyncio.CancelledError:
            if entry.is_packed:
                path.unlink(missing_ok=True)
            raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        for one in (path, part):
            one.unlink(missing_ok=True)
        event = make_event("image", image.ref, "pulled", f"{image.id}, {entry.ref}")
        await self._parts.events.commit(event=event)
        return image


def _order(entry: CatalogEntry, name: str, path: Path, sha256: str) -> ForeignOrder:
    wanted = ImportRequest(
        name=name,
        file=entry.file,
        format=entry.format,
        firmware=entry.firmware,
        os=entry.os,
        ssh_user=entry.ssh_user,
        agent=entry.agent,
    )
    return ForeignOrder(path, sha256, wanted, pulled=entry.digest, memory=entry.memory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    """Yield what is in an xz file, unpacked in a thread."""
    pieces = unpacked(path, LARGEST)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
