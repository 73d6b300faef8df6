"""The frozen memory of templates, open in this daemon: loaded when it is first needed."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Collection

from hanok.config import Settings
from hanok.errors import HostError
from hanok.images.filing import hash_file
from hanok.model.template import TemplateRecord
from hanok.proc import find_owned
from hanok.services.machines import template_files
from hanok.services.parts import Parts
from hanok.storage.memory import check_memory, find_in_process, load_memory


class Memories:
    """Keeps a descriptor of each template's memory, so that all its clones share the same pages.

    A clone that runs keeps the pages alive without us. So after a restart of the daemon they are
    taken from such a clone again: otherwise new clones would share with each other only.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._open: dict[str, int] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, template: TemplateRecord) -> int:
        """Return a descriptor of the template's memory, ours to keep.

        The first time all its files are checked. Raises HostError naming the one that is damaged.
        """
        async with self._locks[template.id]:
            found = self._open.get(template.id)
            if found is None:
                found = await self._find(template)
                self._open[template.id] = found
            return found

    async def _find(self, template: TemplateRecord) -> int:
        await asyncio.to_thread(_check_files, template, self._parts.settings)
        size, checksum = template.spec.memory, template.checksums["memory"]
        clones = {
            vm.uuid
            for vm in await self._parts.store.vms()
            if vm.clone is not None and vm.clone.template == template.id
        }
        found = await asyncio.to_thread(self._from_clones, clones, size, checksum)
        if found is not None:
            return found
        path = template_files(self._parts.settings, template.id).memory
        return await asyncio.to_thread(load_memory, path, size, checksum)

    def _from_clones(self, uuids: Collection[str], size: int, checksum: str) -> int | None:
        """Return the memory that one of the clones has open, if it is really the template's."""
        if not uuids:
            return None
        for process in find_owned(self._parts.settings.home, "vm"):
            if process.owner.ident not in uuids:
                continue
            found = find_in_process(process.pid, size)
            if found is None:
                continue
            if check_memory(found, size, checksum):
                return found
            os.close(found)
        return None

    def put(self, ident: str, memory: int) -> None:
        """Keep the memory of a template that was just made."""
        self.drop(ident)
        self._open[ident] = memory

    def drop(self, ident: str) -> None:
        """Let go of a template's memory; clones that run keep it."""
        found = self._open.pop(ident, None)
        if found is not None:
            os.close(found)

    def close(self) -> None:
        """Let go of all."""
        for ident in list(self._open):
            self.drop(ident)


def _check_files(template: TemplateRecord, settings: Settings) -> None:
    files = template_files(settings, template.id)
    for path in (files.state, files.disk):
        try:
            damaged = hash_file(path) != template.checksums[path.stem]
        except OSError as error:
            raise HostError(
                f"{path} of template {template.name} cannot be read: {error.strerror}",
                hint=f"'hanok template delete {template.name}', and make it anew",
            ) from error
        if damaged:
            raise HostError(
                f"{path} of template {template.name} is damaged: its checksum is not the one"
                " that was recorded",
                hint=f"'hanok template delete {template.name}', and make it anew",
            )
