"""The server on TCP, from the services that know its certificate and its tokens."""

from __future__ import annotations

import asyncio
import logging
import socket

from hanok.api.auth import Guard
from hanok.api.listener import TlsServer
from hanok.config import Listen
from hanok.errors import HanokError
from hanok.services.bundle import Services

_log = logging.getLogger("hanokd")


async def make_tls_server(services: Services, guard: Guard, door: socket.socket) -> TlsServer:
    """Return the server for ``door``, with the tokens that are kept.

    Raises HostError when the certificate cannot be used.
    """
    entrance = services.entrance
    await services.tokens.load()
    server = TlsServer(guard, await asyncio.to_thread(entrance.context))
    host, port, *_ = door.getsockname()
    entrance.address = str(Listen(host, port))
    _log.info("it answers at %s as well; certificate %s", entrance.address, entrance.fingerprint)
    return server


async def renew(services: Services, server: TlsServer | None) -> None:
    """Read the tokens again, and the certificate, which is made anew if it is gone."""
    entrance = services.entrance
    try:
        if server is not None:
            server.renew(await asyncio.to_thread(entrance.context))
        await services.tokens.load()
    except HanokError as error:
        _log.error("SIGHUP: what cannot be read stays as it was: %s", error.message)
    else:
        _log.info("SIGHUP: tokens are read again; certificate %s", entrance.fingerprint)
