"""What becomes of VMs when the daemon is told to end, and when it is back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from hanok.errors import Conflict, HanokError, NotFound
from hanok.services.events import make_event
from hanok.services.machines import give_file
from hanok.services.operations import Operations
from hanok.services.parts import Parts, is_up
from hanok.services.vms import VmService
from hanok.storage.volumes import sync_folder
from hanok.systemd.stop import Ending

_log = logging.getLogger(__name__)


class Departure:
    """Shuts guests down when that is asked for, and starts them again when the daemon is back.

    ``why_ending`` tells why the daemon ends. Which VMs ran is kept in the file ``running.json``.
    """

    def __init__(
        self,
        parts: Parts,
        vms: VmService,
        operations: Operations,
        why_ending: Callable[[], Awaitable[Ending]],
    ) -> None:
        self._parts = parts
        self._vms = vms
        self._operations = operations
        self._why_ending = why_ending
        self._returning: asyncio.Task[None] | None = None

    @property
    def _file(self) -> Path:
        return self._parts.settings.home / "running.json"

    async def leave(self) -> None:
        """Shut guests down if the host goes down, or the unit is stopped and HANOK_ON_STOP says so.

        Each is asked to power off, and ended after the limit for that. Returns when none is up.
        """
        ending = await self._why_ending()
        asked = ending is Ending.STOP and self._parts.settings.on_stop == "shutdown"
        if not (asked or ending is Ending.HOST):
            return
        uuids = [record.uuid for record in await self._parts.store.vms() if is_up(record)]
        _log.info("shutting down %s VMs (%s)", len(uuids), ending)
        await asyncio.to_thread(_write, self._file, uuids)
        await asyncio.gather(*(self._shut_down(uuid) for uuid in uuids))

    async def _shut_down(self, uuid: str) -> None:
        try:
            operation = await self._vms.stop(uuid, force=False, timeout=None)
            await self._operations.wait(operation.id)
        except (Conflict, NotFound):
            return  # it has ended meanwhile, or is about to
        except HanokError:
            _log.exception("the VM %s could not be shut down", uuid)

    async def come_back(self) -> None:
        """Start what ran when the guests were shut down; goes on in the background."""
        if self._file.exists():
            self._returning = asyncio.create_task(self._come_back(), name="coming back")

    async def _come_back(self) -> None:
        for uuid in await asyncio.to_thread(_read, self._file):
            try:
                await self._bring_back(uuid)
            except NotFound:
                continue
            except HanokError as error:
                record = await self._parts.store.find_vm(uuid)
                name = record.spec.name if record is not None else uuid
                message = f"it could not be started again: {error.message}"
                _log.warning("%s: %s", name, message)
                await self._parts.events.commit(event=make_event("vm", name, "failed", message))
        self._file.unlink(missing_ok=True)

    async def _bring_back(self, uuid: str) -> None:
        record = await self._parts.vm(uuid)
        # A daemon that was killed while it waited for the guest has left that unfinished.
        for operation in await self._parts.store.operations(unfinished=True):
            if operation.target in (record.spec.name, uuid):
                await self._operations.wait(operation.id)
        if not is_up(await self._parts.vm(uuid)):
            await self._vms.start(uuid)

    async def close(self) -> None:
        """End what goes on; the file is there for the next daemon."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)


def _write(path: Path, uuids: list[str]) -> None:
    give_file(path, json.dumps(uuids).encode(), None)
    sync_folder(path.parent)


def _read(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        _log.exception("%s cannot be read: no VM is started because of it", path)
        return []
    return [uuid for uuid in found if isinstance(uuid, str)] if isinstance(found, list) else []
