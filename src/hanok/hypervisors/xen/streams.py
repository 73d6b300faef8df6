"""Byte streams into a domain: unix sockets of its device model, and the terminal of xenconsoled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tty
from pathlib import Path

from hanok.errors import HypervisorError
from hanok.hypervisors.optional import Stream

_CONNECT_LIMIT = 10.0
_CONSOLES = "xenconsoled"
_PID_FILE = Path("/run/xenconsoled.pid")


async def open_socket(path: Path, *, slow: bool = False) -> Stream:
    """Connect to a unix socket; ``slow``: see Stream. Raises HypervisorError."""
    try:
        async with asyncio.timeout(_CONNECT_LIMIT):
            return Stream(*await asyncio.open_unix_connection(path), slow)
    except (OSError, TimeoutError) as error:
        raise HypervisorError(f"{path.name} cannot be opened: {error}") from error


class _Terminal(asyncio.StreamReaderProtocol):
    """Reads from a terminal whose other side closes by EIO (tty_ioctl(4)): that is its end."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the terminal's end for the end of the stream."""
        ended = isinstance(exc, OSError) and exc.errno == errno.EIO
        super().connection_lost(None if ended else exc)


def consoles_served(pid_file: Path = _PID_FILE) -> bool:
    """Return whether xenconsoled runs, the daemon that has the terminals of PV and PVH domains.

    ``pid_file`` is where Debian's start of it writes its number; all processes are looked at only
    when it is not there: in an emulated Dom0 that takes a second.
    """
    with contextlib.suppress(OSError):
        if _name_of(pid_file.read_text().strip()) == _CONSOLES:
            return True
    return any(_name_of(entry.name) == _CONSOLES for entry in os.scandir("/proc"))


def _name_of(pid: str) -> str:
    if not pid.isdigit():
        return ""
    try:
        return Path("/proc", pid, "comm").read_text().rstrip("\n")
    except OSError:  # it has ended
        return ""


async def open_terminal(path: str) -> Stream:
    """Open a terminal, raw. Raises HypervisorError."""
    try:
        ours = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"the console {path} cannot be opened: {error.strerror}") from error
    try:
        tty.setraw(ours)
        theirs = os.dup(ours)
    except OSError as error:
        os.close(ours)
        raise HypervisorError(f"the console {path} is gone: {error}") from error
    return await _stream_of(ours, theirs)


async def _stream_of(reading: int, writing: int) -> Stream:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    source, _ = await loop.connect_read_pipe(
        lambda: _Terminal(reader), os.fdopen(reading, "rb", buffering=0)
    )
    sink, protocol = await loop.connect_write_pipe(
        lambda: _Writing(source), os.fdopen(writing, "wb", buffering=0)
    )
    return Stream(reader, asyncio.StreamWriter(sink, protocol, None, loop))


class _Writing(asyncio.StreamReaderProtocol):
    """The writing side of a terminal: when it is closed, so is the reading side."""

    def __init__(self, source: asyncio.ReadTransport) -> None:
        super().__init__(asyncio.StreamReader())
        self._source = source

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the reading side too."""
        self._source.close()
        super().connection_lost(None)
