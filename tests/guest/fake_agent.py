"""A guest agent at the other end of a socket pair that does what a test scripts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hanok.guest.agent import AgentConnection

Request = dict[str, Any]
Handler = Callable[["FakeAgent", Request], Awaitable[None]]


def line(reply: dict[str, Any]) -> bytes:
    """Return a reply as it goes over the wire."""
    return json.dumps(reply).encode() + b"\n"


class FakeAgent:
    """Answers guest-sync-delimited and guest-ping; everything else as ``handlers`` say.

    ``echoes``: whether answers carry the request's id, as real ones do since QEMU 3.1.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.handlers: dict[str, Handler] = {}
        self.echoes = True
        self.deaf = asyncio.Event()
        self.requests: list[Request] = []

    async def serve(self) -> None:
        """Answer until the connection ends."""
        with contextlib.suppress(ConnectionError):
            while raw := await self.reader.readline():
                request = json.loads(raw.rpartition(b"\xff")[2])
                self.requests.append(request)
                if self.deaf.is_set():
                    continue
                command = request["execute"]
                if command in self.handlers:
                    await self.handlers[command](self, request)
                elif command == "guest-sync-delimited":
                    await self.answer(request, request["arguments"]["id"], prefix=b"\xff")
                else:
                    await self.answer(request, {})

    def reply(self, request: Request, body: dict[str, Any]) -> bytes:
        """Return the line that answers ``request`` with ``body``."""
        return line(body | ({"id": request["id"]} if self.echoes else {}))

    async def answer(self, request: Request, value: Any, *, prefix: bytes = b"") -> None:
        """Answer with a return value."""
        await self.send(prefix + self.reply(request, {"return": value}))

    async def refuse(self, request: Request, text: str, kind: str = "GenericError") -> None:
        """Answer with an error."""
        await self.send(self.reply(request, {"error": {"class": kind, "desc": text}}))

    async def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self.writer.write(data)
        await self.writer.drain()

    def asked(self, command: str) -> list[Request]:
        """Return the requests for ``command`` so far."""
        return [request for request in self.requests if request["execute"] == command]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[AgentConnection, FakeAgent]]:
    """Yield a connection and the fake agent that serves it."""
    ours, theirs = socket.socketpair()
    connection = AgentConnection(*await asyncio.open_connection(sock=ours))
    fake = FakeAgent(*await asyncio.open_connection(sock=theirs, limit=8 * 1024 * 1024))
    task = asyncio.create_task(fake.serve())
    try:
        yield connection, fake
    finally:
        await connection.close()
        fake.writer.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def answering(value: Any) -> Handler:
    """Return a handler that answers every request with ``value``."""

    async def handle(fake: FakeAgent, request: Request) -> None:
        await fake.answer(request, value)

    return handle


def refusing(text: str, kind: str = "GenericError") -> Handler:
    """Return a handler that answers every request with an error."""

    async def handle(fake: FakeAgent, request: Request) -> None:
        await fake.refuse(request, text, kind)

    return handle


def sending(data: bytes) -> Handler:
    """Return a handler that sends ``data`` instead of an answer."""

    async def handle(fake: FakeAgent, _request: Request) -> None:
        await fake.send(data)

    return handle


async def silent(_fake: FakeAgent, _request: Request) -> None:
    """Do not answer."""
