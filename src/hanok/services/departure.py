"""What becomes of VMs when the daemon is told to end or the host loses power, and afterwards."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from hanok.durable import give_file, sync_path
from hanok.errors import Conflict, HanokError, NotFound
from hanok.model.keeping import StartWhen
from hanok.model.operation import Operation
from hanok.model.vm import VmRecord, Wanted
from hanok.services.events import make_event
from hanok.services.keeping import Clock, SystemClock
from hanok.services.operations import Operations
from hanok.services.parts import Parts, is_up
from hanok.services.returning import Returning
from hanok.services.vms import VmService
from hanok.systemd.stop import Ending

_log = logging.getLogger(__name__)
# Operations after which a VM is not to run: one that was asked for counts, done or not.
_ENDS = ("stop", "delete", "down")
_REMOVES = ("delete", "down")


class Departure:
    """Shuts guests down when that is asked for, and starts them again when the daemon is back.

    ``why_ending`` tells why the daemon ends, ``boot_id`` which start of the host this is. Which VMs
    ran is kept in ``returning``, the host's last start known in the file ``boot-id``.
    """

    def __init__(
        self,
        parts: Parts,
        vms: VmService,
        operations: Operations,
        returning: Returning,
        why_ending: Callable[[], Awaitable[Ending]],
        boot_id: str,
        clock: Clock | None = None,
    ) -> None:
        self._parts = parts
        self._vms = vms
        self._operations = operations
        self._returning = returning
        self._why_ending = why_ending
        self._boot_id = boot_id
        self._clock = clock or SystemClock()
        self._coming: asyncio.Task[None] | None = None

    async def look_back(self) -> None:
        """Keep which VMs start with the host, if it was started since a daemon was here.

        Those are the ones that were up when it went down, as by a power cut, and those that say so.

        Comes before recovery, which finds none of them running and takes them for ended.
        """
        seen = self._parts.settings.home / "boot-id"
        before = seen.read_text().strip() if seen.exists() else None
        if before == self._boot_id:
            return
        if before is not None:
            await self._keep_lost()
        await asyncio.to_thread(_write, seen, self._boot_id)

    async def _keep_lost(self) -> None:
        """Keep which VMs start with the host; some of those that it was shut down with may not."""
        store = self._parts.store
        records = [vm for vm in await store.vms() if vm.wanted is not Wanted.ABSENT]
        unfinished = await store.operations(unfinished=True)
        going = {operation.target for operation in unfinished if operation.kind in _REMOVES}
        lost = [
            *await self._who_runs(),
            *(vm.uuid for vm in records if _says(vm, StartWhen.YES) and not going & _owners(vm)),
        ]
        never = {vm.uuid for vm in records if _says(vm, StartWhen.NO)}
        await self._returning.forget(never)
        lost = [uuid for uuid in dict.fromkeys(lost) if uuid not in never]
        if not lost:
            return
        _log.warning("the host has started anew: %s VMs are started with it", len(lost))
        # A daemon of this or an earlier start may have died with its list half done.
        await self._returning.add(lost)

    async def _who_runs(self) -> list[str]:
        """Return the VMs that are up, but for those that were asked to end."""
        store = self._parts.store
        ending = {
            operation.target
            for operation in await store.operations(unfinished=True)
            if operation.kind in _ENDS
        }
        return [
            record.uuid
            for record in await store.vms()
            if is_up(record) and not ending & _owners(record)
        ]

    async def leave(self) -> None:
        """Shut guests down if the host goes down, or the unit is stopped and HANOK_ON_STOP says so.

        Each is asked to power off, and ended after the limit for that. Returns when none is up.
        """
        ending = await self._why_ending()
        asked = ending is Ending.STOP and self._parts.settings.on_stop == "shutdown"
        if not (asked or ending is Ending.HOST):
            return
        await self._returning.add(await self._who_runs())
        up = [record.uuid for record in await self._parts.store.vms() if is_up(record)]
        _log.info("shutting down %s VMs (%s)", len(up), ending)
        await asyncio.gather(*(self._shut_down(uuid) for uuid in up))

    async def _shut_down(self, uuid: str) -> None:
        try:
            operation = await self._vms.shut_down(uuid)
            await self._operations.wait(operation.id)
        except (Conflict, NotFound):
            return  # it has ended meanwhile, or is about to
        except HanokError:
            _log.exception("the VM %s could not be shut down", uuid)

    async def come_back(self) -> None:
        """Start what ran when the guests were shut down; goes on in the background."""
        uuids = await self._returning.uuids()
        if uuids:
            self._coming = asyncio.create_task(self._come_back(uuids), name="coming back")

    async def _come_back(self, uuids: list[str]) -> None:
        """Start them in their order; those of the same one together."""
        found = {record.uuid: record for record in await self._parts.store.vms()}
        await self._returning.forget(set(uuids) - set(found))
        records = sorted((found[uuid] for uuid in uuids if uuid in found), key=_place)
        groups = [list(lot) for _, lot in itertools.groupby(records, key=_order)]
        for number, lot in enumerate(groups, start=1):
            begun = [await self._begin(record) for record in lot]
            if number < len(groups):
                await self._wait(begun, max(record.spec.autostart.delay for record in lot))

    async def _wait(self, begun: Sequence[Operation | None], delay: float) -> None:
        """Wait until all are ready or have failed, and then for ``delay`` seconds."""
        for operation in begun:
            if operation is not None:
                await self._operations.wait(operation.id)
        await self._clock.pause(delay, asyncio.Event())

    async def _begin(self, record: VmRecord) -> Operation | None:
        """Begin to start a VM; None when it runs already, is gone, or cannot be started."""
        name = record.spec.name
        try:
            return await self._bring_back(record.uuid)
        except NotFound:
            await self._returning.forget([record.uuid])
        except HanokError as error:
            message = f"it could not be started again: {error.message}"
            _log.warning("%s: %s", name, message)
            await self._parts.events.commit(event=make_event("vm", name, "failed", message))
            await self._returning.forget([record.uuid])
        return None

    async def _bring_back(self, uuid: str) -> Operation | None:
        record = await self._parts.vm(uuid)
        # A daemon that was killed while it waited for the guest has left that unfinished.
        for operation in await self._parts.store.operations(unfinished=True):
            if operation.target in (record.spec.name, uuid):
                await self._operations.wait(operation.id)
        async with self._returning.holding(uuid) as is_listed:
            if is_listed and not is_up(await self._parts.vm(uuid)):
                return await self._vms.start(uuid)
        return None

    async def close(self) -> None:
        """End what goes on; the list is there for the next daemon."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)


def _owners(record: VmRecord) -> set[str | None]:
    """Return what an operation on a VM may be about: the VM, or its stack."""
    return {record.spec.name, record.stack}


def _says(record: VmRecord, when: StartWhen) -> bool:
    return record.spec.autostart.start is when and not record.internal


def _order(record: VmRecord) -> int:
    return record.spec.autostart.order


def _place(record: VmRecord) -> tuple[int, str]:
    return record.spec.autostart.order, record.spec.name


def _write(path: Path, text: str) -> None:
    give_file(path, text.encode(), None)
    sync_path(path.parent)
