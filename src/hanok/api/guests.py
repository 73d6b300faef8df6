"""Routes into guests: commands, files, logs, console, TCP."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.websockets import WebSocketDisconnect

from hanok.api.common import (
    CurrentServices,
    body_of,
    describes,
    services_of,
)
from hanok.api.roles import operator, viewer
from hanok.api.sockets import CHUNK, close, first_to_end, refuse
from hanok.errors import HanokError, InvalidInput, Unsupported
from hanok.model.base import Frozen
from hanok.model.views import ExecView, SshView
from hanok.services.machines import files_of

router = APIRouter(prefix="/vms", tags=["Guests"])
_MAX_FILE = 256 * 1024 * 1024
_SSH_PORT = 22


class ExecRequest(Frozen):
    """A command to run in a guest; no shell is involved unless it is the command."""

    command: tuple[str, ...] = Field(min_length=1, max_length=1000)
    input: str | None = Field(default=None, description="base64")
    timeout: float = Field(default=3600, gt=0, le=86400, description="seconds")


@router.post("/{vm}/exec", openapi_extra=describes(ExecRequest))
@operator
async def exec_in_vm(
    services: CurrentServices,
    vm: str,
    wanted: Annotated[ExecRequest, Depends(body_of(ExecRequest))],
) -> ExecView:
    """Run a command in the guest and return its exit status and both streams."""
    record = await services.parts.vm(vm)
    agent = await services.guests.answering_agent(record)
    result = await agent.exec(
        wanted.command, input=_decoded(wanted.input), timeout=wanted.timeout, much=True
    )
    return ExecView(
        exit_status=result.exit_status,
        stdout=base64.b64encode(result.stdout).decode(),
        stderr=base64.b64encode(result.stderr).decode(),
        truncated=result.truncated,
    )


def _decoded(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidInput(
            f"the input is no base64: {error}", field="input", expected="base64"
        ) from error


@router.get("/{vm}/file")
@operator
async def read_file(services: CurrentServices, vm: str, path: str) -> StreamingResponse:
    """Return a file of the guest, read by its agent."""
    agent = await services.guests.answering_agent(await services.parts.vm(vm))
    pieces = agent.read_pieces(path)
    first = await anext(pieces, b"")  # a missing file is told before the answer has begun

    async def content() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(content(), media_type="application/octet-stream")


@router.put("/{vm}/file", status_code=204)
@operator
async def write_file(
    services: CurrentServices,
    request: Request,
    vm: str,
    path: str,
    mode: Annotated[int | None, Query(ge=0, le=0o7777)] = None,
    as_it_is: bool = False,
) -> Response:
    """Write a file of the guest, by its agent; ``as_it_is``: into what is there, as into a pipe."""
    agent = await services.guests.answering_agent(await services.parts.vm(vm))

    async def bounded() -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > _MAX_FILE:
                raise InvalidInput("the file is too large for the agent", expected="256 MiB")
            yield chunk

    if as_it_is:
        await agent.write_into(path, bounded())
    else:
        await agent.write_file(path, bounded(), mode)
    return Response(status_code=204)


@router.get("/{vm}/logs")
@operator
async def logs(
    services: CurrentServices,
    vm: str,
    lines: Annotated[int, Query(ge=0, le=100_000)] = 1000,
    follow: bool = False,
) -> StreamingResponse:
    """Return what the guest wrote to its console."""
    record = await services.parts.vm(vm)
    if follow:
        return _plain(services.guests.console(record).follow(lines))

    async def kept() -> AsyncIterator[bytes]:
        yield await asyncio.to_thread(services.guests.tail, record, lines)

    return _plain(kept())


def _plain(content: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(content, media_type="text/plain; charset=utf-8")


@router.get("/{vm}/ssh")
@viewer
async def ssh(services: CurrentServices, vm: str) -> SshView:
    """Return how to reach the guest by SSH."""
    record = await services.parts.vm(vm)
    settings = services.parts.settings
    image = services.parts.images.get(record.image_id or "")
    if image is None or image.ssh_user is None:
        raise Unsupported(
            f"{record.spec.name} ({record.spec.image}) has no SSH server",
            hint=f"'hanok exec {record.spec.name} -- sh' and 'hanok console' need none",
        )
    host_key = files_of(settings, record.uuid).host_key
    return SshView(
        user=image.ssh_user,
        port=_SSH_PORT,
        key=str(settings.keys / "id_ed25519"),
        host_keys=[host_key.read_text().strip()] if host_key.exists() else [],
    )


@router.websocket("/{vm}/console")
@operator
async def console(websocket: WebSocket, vm: str) -> None:
    """Attach to the console: binary frames both ways."""
    services = services_of(websocket)
    try:
        record = await services.parts.vm(vm)
        hub = await services.guests.open_console(record)
    except HanokError as error:
        await refuse(websocket, error)
        return
    await websocket.accept()
    async with hub.attach() as attached:

        async def outward() -> None:
            async for chunk in attached:
                await websocket.send_bytes(chunk)

        async def inward() -> None:
            while True:
                await attached.write(await websocket.receive_bytes())

        await first_to_end(outward(), inward())
    await close(websocket)


@router.websocket("/{vm}/tcp/{port}")
@operator
async def tcp(websocket: WebSocket, vm: str, port: int) -> None:
    """Connect to a TCP port of the guest: binary frames both ways."""
    services = services_of(websocket)
    try:
        record = await services.parts.vm(vm)
        connected = await services.guests.connect_tcp(record, port, 10)
    except HanokError as error:
        await refuse(websocket, error)
        return
    await websocket.accept()
    reader, writer = await asyncio.open_connection(sock=connected)

    async def outward() -> None:
        while chunk := await reader.read(CHUNK):
            await websocket.send_bytes(chunk)

    async def inward() -> None:
        while True:
            data = await websocket.receive_bytes()
            if not data:  # an empty frame: the client has no more to say
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async def both() -> None:
        sender = asyncio.create_task(inward())
        try:
            await outward()
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    try:
        with contextlib.suppress(WebSocketDisconnect, ConnectionError):
            await both()
    finally:
        writer.close()
    await close(websocket)
