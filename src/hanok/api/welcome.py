"""A pipe at which a lab host is told its certificate and a token, before anyone knows either.

What is written there is one line of JSON, a Welcome. Only root may: the file is 0600. It exists
while the daemon answers over the network, so that its being there says so. A request to the API or
another process would take an emulated CPU ten times as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from hanok.api.listener import TlsServer
from hanok.errors import HanokError
from hanok.model.base import Frozen, Name
from hanok.services.bundle import Services

_log = logging.getLogger("hanokd")
_LONGEST = 16 * 1024


class Welcome(Frozen):
    """A new certificate and its key, both PEM, and an administrator's token.

    ``digest``: SHA-256 of the token, hexadecimal. An earlier token of that name is void.
    """

    name: Name
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    certificate: str = Field(max_length=_LONGEST)
    key: str = Field(max_length=_LONGEST, repr=False)


async def enter(services: Services, server: TlsServer, wanted: Welcome) -> None:
    """Show the certificate and take the token from now on. Raises HanokError, OSError."""
    entrance = services.entrance
    entrance.put(wanted.key.encode(), wanted.certificate.encode())
    server.renew(entrance.context())
    await services.tokens.replace(wanted.name, wanted.digest)
    _log.info("it was told its certificate: %s", entrance.fingerprint)


@contextlib.contextmanager
def welcoming(path: Path, take: Callable[[Welcome], Awaitable[None]]) -> Iterator[None]:
    """Give each Welcome that is written to the pipe ``path`` to ``take``, during the block.

    Raises OSError when the pipe cannot be made.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    # Open for writing as well, so that it never ends when a writer goes.
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    lines, running = _Lines(), set[asyncio.Task[None]]()

    async def perform(line: bytes) -> None:
        try:
            await take(Welcome.model_validate_json(line))
        except ValidationError:  # its text would hold the key
            _log.error("what was written to %s is no welcome", path)
        except (HanokError, OSError) as error:
            _log.error("a welcome could not be followed: %s", error)

    def read() -> None:
        for line in lines.add(os.read(descriptor, _LONGEST)):
            task = asyncio.create_task(perform(line))
            running.add(task)
            task.add_done_callback(running.discard)

    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        path.unlink(missing_ok=True)


class _Lines:
    """Cuts what comes into lines; one that is too long is dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= 2 * _LONGEST else b""
        return whole
