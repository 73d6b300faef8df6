"""File systems and memory that fill: told at 80 and 90 %; VMs that met a full disk go on later.

QEMU pauses a VM whose disk cannot be written for want of room (``werror=enospc``): nothing is lost,
and the guest notices nothing but the time. It goes on where it was, by itself or by ``resume``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from hanok.config import Settings
from hanok.errors import HanokError
from hanok.filesystems import CRITICAL_PERCENT, WARN_PERCENT, file_system_of, level_of
from hanok.hypervisors.base import RunState
from hanok.model.views import FileSystemView
from hanok.model.vm import VmState
from hanok.services.capacity import CapacityService, memory_percent
from hanok.services.diskroom import ROOM_TO_GO_ON, find_file_systems
from hanok.services.events import make_event
from hanok.services.machines import files_of
from hanok.services.parts import Parts
from hanok.services.vms import VmService
from hanok.units import format_size

_LOOK = 2.0
# A level counts as left only when it is left by so much, or an event would come with each write.
_MARGIN_PERCENT = 2
_MEMORY_MARGIN = 5  # what programs use goes up and down more than what is on disks
_MEMORY = "memory"
_RANKS = {"ok": 0, "warning": WARN_PERCENT, "critical": CRITICAL_PERCENT}
_BRINGS_UP = (VmState.CREATING, VmState.STARTING, VmState.RUNNING)

_log = logging.getLogger(__name__)


class DiskWatch:
    """Looks at file systems and memory every two seconds, from ``start`` until ``close``."""

    def __init__(
        self,
        parts: Parts,
        vms: VmService,
        capacity: CapacityService,
        look: Callable[[Settings], Sequence[FileSystemView]] = find_file_systems,
    ) -> None:
        self._parts = parts
        self._vms = vms
        self._capacity = capacity
        self._find = look
        self._levels: dict[str, str] = {}
        self._starved: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, in a task of the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="disk watch")

    def starves(self, uuid: str) -> None:
        """Note that a VM has met a full file system."""
        self._starved.add(uuid)

    async def _watch(self) -> None:
        self._starved |= {vm.uuid for vm in await self._parts.store.vms() if vm.starved}
        while True:
            try:
                await self.look()
            except (HanokError, OSError):
                _log.exception("the file systems could not be looked at")
            await asyncio.sleep(_LOOK)

    async def look(self) -> None:
        """Tell which levels have changed, and let VMs go on that have room again."""
        for one in await asyncio.to_thread(self._find, self._parts.settings):
            message = f"{one['percent']} % full: {format_size(one['free'])} are left"
            await self._tell("disk", one["mount"], one["percent"], message, _MARGIN_PERCENT)
        if self._capacity.share() is None:  # else Dom0's own memory, which holds no VM's
            host = await asyncio.to_thread(self._capacity.resources)
            message = f"{memory_percent(host)} % used: {format_size(host.available)} are left"
            await self._tell(_MEMORY, _MEMORY, memory_percent(host), message, _MEMORY_MARGIN)
        for uuid in list(self._starved):
            await self._feed(uuid)

    async def _tell(self, kind: str, name: str, percent: int, message: str, margin: int) -> None:
        before = self._levels.get(name, "ok")
        level = level_of(percent)
        eased = percent + margin
        if level == before or (_RANKS[level] < _RANKS[before] and eased >= _RANKS[before]):
            return
        self._levels[name] = level
        await self._parts.events.commit(event=make_event("host", name, f"{kind}-{level}", message))

    async def _feed(self, uuid: str) -> None:
        """Let a VM go on if there is room where its disk is, and forget it once it runs.

        Whoever brings it up holds its lock, and waits for just that.
        """
        record = await self._parts.store.find_vm(uuid)
        state = await self._parts.hypervisor.state(uuid)
        if record is None or state not in (RunState.PAUSED, RunState.RUNNING):
            self._starved.discard(uuid)
            return
        disk = files_of(self._parts.settings, uuid).disk
        if state is RunState.PAUSED and file_system_of(disk).free < ROOM_TO_GO_ON:
            return
        if record.starved:  # or it runs, and the daemon died before it wrote that down
            if not self._parts.locks.by_vm[uuid].locked():  # else at the next look
                await self._vms.resume_now(uuid)
        elif state is RunState.RUNNING:
            self._starved.discard(uuid)
        elif record.state in _BRINGS_UP:
            await self._parts.hypervisor.resume(uuid)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
