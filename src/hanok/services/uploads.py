"""Files on their way to becoming images: written by the daemon, gone when their operation ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import InvalidInput
from hanok.filesystems import LOST_AND_FOUND, disk_full, file_system_of, full_error
from hanok.units import GIB, MIB

_KEPT_FREE = 1 * GIB
_PIECE = 4 * MIB
_PART = "part-"
_PART_AGE = 7 * 86400


@dataclass(frozen=True)
class Upload:
    """A file that has arrived whole: its name in the folder of uploads, its SHA-256."""

    id: str
    sha256: str


class Uploads:
    """The folder of files that are being imported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, ident: str) -> Path:
        """Return where the file of upload ``ident`` is."""
        return self._folder / ident

    async def receive(self, content: AsyncIterator[bytes], length: int | None) -> Upload:
        """Write what comes to a new file, with holes where there are zeros.

        ``length``: the bytes that were announced. Nothing is left when that fails. Raises
        DiskFull without room, InvalidInput when there is less than was announced, or nothing.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._check_room(length or 0)
        ident = uuid.uuid4().hex
        path = self.path(ident)
        try:
            with path.open("xb") as file:
                writer = _Writer(file.fileno())
                async for chunk in content:
                    if writer.add(chunk):
                        self._check_room(_PIECE)
                        await asyncio.to_thread(writer.flush)
                await asyncio.to_thread(writer.end)
            if writer.size == 0 or (length is not None and writer.size != length):
                raise InvalidInput(
                    f"{writer.size} bytes came",
                    field="file",
                    expected=f"{length} bytes" if length else "a file that is not empty",
                )
            sync_path(self._folder)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if full := full_error(error, path):
                raise full from error
            raise
        return Upload(ident, writer.digest)

    def _check_room(self, size: int) -> None:
        needed = size + _KEPT_FREE  # which stays free in any case
        if file_system_of(self._folder).free < needed:
            raise disk_full(self._folder, "the file", needed, field="file")

    def part(self, digest: str) -> Path:
        """Return where what has come of the download with ``digest`` is kept."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self.path(f"{_PART}{hashlib.sha256(digest.encode()).hexdigest()[:32]}")

    def remove(self, ident: str) -> None:
        """Remove an upload; nothing happens when it is gone."""
        self.path(ident).unlink(missing_ok=True)

    def sweep(self, used: Collection[str]) -> None:
        """Remove what nobody will ask for any more: all but ``used`` and young downloads."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                is_part = path.name.startswith(_PART)
                if path.name == LOST_AND_FOUND:
                    continue
                if path.name not in used and not (is_part and _is_young(path)):
                    path.unlink(missing_ok=True)


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < _PART_AGE


class _Writer:
    """Writes pieces to a descriptor; a piece of zeros becomes a hole."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending = bytearray()
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """The SHA-256 of all that was written."""
        return self._hash.hexdigest()

    def add(self, data: bytes) -> bool:
        """Take ``data``; return whether it is time to ``flush``."""
        self._pending += data
        return len(self._pending) >= _PIECE

    def flush(self) -> None:
        """Write what is pending (blocks)."""
        data = bytes(self._pending)
        self._pending.clear()
        self._hash.update(data)
        if data.count(0) == len(data):
            os.lseek(self._descriptor, len(data), os.SEEK_CUR)
        else:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        self.size += len(data)

    def end(self) -> None:
        """Write the rest and make all of it durable (blocks)."""
        self.flush()
        os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)
