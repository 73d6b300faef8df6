"""Which VMs are to be started when the daemon, or the host, is back: the file ``running.json``.

A VM leaves the list before a request to end it is answered, and once its start is written down: so
that no daemon, after whatever power cut, starts what was asked to end.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from hanok.durable import give_file, sync_path

_log = logging.getLogger(__name__)


class Returning:
    """The list, by uuid, durable after each change; it is kept in the folder ``home``."""

    def __init__(self, home: Path) -> None:
        self._file = home / "running.json"
        self._lock = asyncio.Lock()

    async def uuids(self) -> list[str]:
        """Return who is on the list."""
        async with self._lock:
            return await asyncio.to_thread(_read, self._file)

    async def add(self, uuids: Iterable[str]) -> None:
        """Put VMs on the list. Raises OSError when it cannot be written."""
        async with self._lock:
            kept = await asyncio.to_thread(_read, self._file)
            await asyncio.to_thread(_write, self._file, [*dict.fromkeys([*kept, *uuids])])

    async def forget(self, uuids: Iterable[str]) -> None:
        """Take VMs off the list. Raises OSError when it cannot be written."""
        async with self._lock:
            await self._forget(frozenset(uuids))

    @asynccontextmanager
    async def holding(self, uuid: str) -> AsyncIterator[bool]:
        """Tell whether a VM is on the list; nobody takes it off meanwhile, and then it is off.

        It stays on the list when what is done meanwhile is cancelled.
        """
        async with self._lock:
            try:
                yield uuid in await asyncio.to_thread(_read, self._file)
            except Exception:
                await self._forget({uuid})
                raise
            await self._forget({uuid})

    async def _forget(self, uuids: frozenset[str] | set[str]) -> None:
        kept = await asyncio.to_thread(_read, self._file)
        left = [uuid for uuid in kept if uuid not in uuids]
        if left != kept or not left:
            await asyncio.to_thread(_write, self._file, left)


def _write(path: Path, uuids: list[str]) -> None:
    if uuids:
        give_file(path, json.dumps(uuids).encode(), None)
    elif path.exists():
        path.unlink()
    else:
        return
    sync_path(path.parent)


def _read(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        _log.exception("%s cannot be read: no VM is started because of it", path)
        return []
    return [uuid for uuid in found if isinstance(uuid, str)] if isinstance(found, list) else []
