"""The console of one VM: always drained, kept in a log that cannot grow, shared by any number.

Everything that the guest prints goes into one ring of fixed size; each reader has a place in it,
and one that is slower than the guest finds the oldest bytes gone. So a guest that floods costs the
ring, two log files, and no more than RATE bytes a second: beyond that, its console port blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from hanok.units import KIB, MIB

LOG_SIZE = 1 * MIB
RING_SIZE = 512 * KIB
# Bytes a second that a guest may print for long; four times that at once.
RATE = 1 * MIB
_BURST_SECONDS = 4
_CHUNK = 64 * KIB
_TYPED = 4 * KIB
_CLOSE_LIMIT = 5.0

_log = logging.getLogger(__name__)


class _Ring:
    """The last RING_SIZE bytes of an endless stream, found by their place in it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()
        self.end = 0

    def add(self, data: bytes) -> None:
        self.end += len(data)
        self._kept += data
        if len(self._kept) > self._size:
            del self._kept[: len(self._kept) - self._size]

    @property
    def start(self) -> int:
        return self.end - len(self._kept)

    def after(self, place: int, most: int) -> bytes:
        """Return up to ``most`` bytes from ``place`` on, which is not before ``start``."""
        at = place - self.start
        return bytes(self._kept[at : at + most])


class LogSink(Protocol):
    """Where the console's bytes are kept."""

    def write(self, data: bytes) -> None:
        """Keep ``data``; never raises, never blocks for long."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class RotatingLog:
    """A log of at most two files of LOG_SIZE: ``path`` and the older ``path``.1, both 0600.

    The folder may belong to someone who wants us to write elsewhere: links are never followed.
    A disk that is full loses log, not the VM.
    """

    def __init__(self, path: Path, size: int = LOG_SIZE) -> None:
        self._path = path
        self._limit = size
        self._file: int | None = None
        self._written = 0
        self._failed = False

    def write(self, data: bytes) -> None:
        """See LogSink.write."""
        view = memoryview(data)
        try:
            while view:
                target = self._open()
                if self._written >= self._limit:
                    self._rotate()
                    continue
                done = os.write(target, view[: self._limit - self._written])
                self._written += done
                view = view[done:]
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning("console log %s: %s", self._path, error)
            self._failed = True

    def close(self) -> None:
        """See LogSink.close."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = _open_regular(self._path, flags)
            self._written = os.fstat(self._file).st_size
        return self._file

    def _rotate(self) -> None:
        self.close()
        self._path.replace(_older(self._path))


def tail_log(path: Path, lines: int, *, most: int = 2 * LOG_SIZE) -> bytes:
    """Return the last ``lines`` lines of a console's log, rotated part included; b"" for none."""
    kept = b""
    for part in (path, _older(path)):
        if kept.count(b"\n") > lines:
            break
        kept = _read_end(part, most - len(kept)) + kept
    if lines <= 0:
        return b""
    found = kept.splitlines(keepends=True)
    return b"".join(found[-lines:])


class ConsoleClient:
    """One reader and writer of a console: ``async with hub.attach() as client``, ``async for``."""

    def __init__(self, hub: ConsoleHub, place: int) -> None:
        self._hub = hub
        self._place = place
        self._news = asyncio.Event()
        self._closed = False
        self.lost = 0

    async def read(self, most: int = _CHUNK) -> bytes:
        """Return what the guest printed next, b"" when the console has ended or this is closed.

        Bytes that were overwritten before this client came to read them are counted in ``lost``.
        """
        ring = self._hub.ring
        while self._place >= ring.end:
            if self._hub.ended or self._closed:
                return b""
            self._news.clear()
            await self._news.wait()
        if self._place < ring.start:
            self.lost += ring.start - self._place
            self._place = ring.start
        found = ring.after(self._place, most)
        self._place += len(found)
        return found

    async def write(self, data: bytes) -> None:
        """Type ``data``; returns when the guest's side took it, at its own speed."""
        await self._hub.type(data)

    def notify(self) -> None:
        """Wake ``read``: there is something new, or the console has ended."""
        self._news.set()

    def close(self) -> None:
        """Leave the console; safe to repeat."""
        self._closed = True
        self._hub.forget(self)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if data := await self.read():
            return data
        raise StopAsyncIteration

    async def __aenter__(self) -> ConsoleClient:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.close()


class ConsoleHub:
    """Owns the stream of one VM's console from ``start`` until the stream ends or ``close``."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Path,
        *,
        sink: LogSink | None = None,
        ring_size: int = RING_SIZE,
        rate: int = RATE,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._path = log
        self._sink = sink if sink is not None else RotatingLog(log)
        self._rate = rate
        self._clients: set[ConsoleClient] = set()
        self._task: asyncio.Task[None] | None = None
        self.ring = _Ring(ring_size)
        self.ended = False

    async def start(self) -> None:
        """Begin to drain the console, in a task of the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._drain(), name=f"console {self._path}")

    async def close(self) -> None:
        """Let go of the stream, end all clients, close the log; safe to repeat."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._end()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_LIMIT):
                await self._writer.wait_closed()

    async def wait_ended(self) -> None:
        """Return when the stream has ended (the VM is gone, or ``close``)."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once the stream of a hub that was started has ended, as wait_ended says."""
        if self._task is not None:
            self._task.add_done_callback(lambda _: tell())

    def tail(self, lines: int) -> bytes:
        """Return the last ``lines`` lines that the console showed, as far as the log has them."""
        return tail_log(self._path, lines)

    async def follow(self, lines: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the last ``lines`` lines and then what comes, without a gap, until it ends."""
        with contextlib.closing(self.attach()) as client:
            if past := self.tail(lines):
                yield past
            while data := await client.read():
                yield data

    def attach(self) -> ConsoleClient:
        """Return a new client, which sees what the guest prints from now on."""
        client = ConsoleClient(self, self.ring.end)
        self._clients.add(client)
        return client

    def forget(self, client: ConsoleClient) -> None:
        """Drop ``client``; nothing happens when it is not one of ours."""
        self._clients.discard(client)
        client.notify()

    async def type(self, data: bytes) -> None:
        """Send ``data`` to the guest in small pieces, so that two typists share the line.

        Raises ConnectionError when the console has ended.
        """
        for start in range(0, len(data), _TYPED):
            if self.ended:
                raise ConnectionResetError("the console has ended")
            self._writer.write(data[start : start + _TYPED])
            await self._writer.drain()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        burst = float(self._rate * _BURST_SECONDS)
        allowance = burst
        counted = loop.time()
        try:
            while chunk := await self._reader.read(_CHUNK):
                self._sink.write(chunk)
                self.ring.add(chunk)
                for client in self._clients:
                    client.notify()
                now = loop.time()
                allowance = min(burst, allowance + (now - counted) * self._rate) - len(chunk)
                counted = now
                if allowance < 0:
                    await asyncio.sleep(-allowance / self._rate)  # the flood's price, not a wait
        except OSError as error:
            _log.info("console %s: %s", self._path, error)
        finally:
            self._end()

    def _end(self) -> None:
        self.ended = True
        for client in self._clients:
            client.notify()
        self._sink.close()
        self._writer.close()


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _open_regular(path: Path, flags: int) -> int:
    """Open a regular file of one name; a link, a pipe or a device there is an OSError."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise OSError(f"{path} is not a regular file of its own")
    return file


def _read_end(path: Path, most: int) -> bytes:
    """Return up to ``most`` bytes of the end of a file, b"" when there is none to read."""
    try:
        with open(_open_regular(path, os.O_RDONLY), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            return file.read(most)
    except OSError:
        return b""
