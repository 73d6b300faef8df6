"""Messages between the daemon and the keeper of a network.

A client connects to the keeper's unix socket, sends one JSON object and a newline, with
descriptors by SCM_RIGHTS, gets one JSON object, a newline and descriptors back, and closes.
Both sides use this module, so it imports nothing heavy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROTOCOL = 1
_MESSAGE_LIMIT = 4 * 1024 * 1024
_CHUNK = 65536
_MAX_DESCRIPTORS = 250  # the kernel takes 253 at once (SCM_MAX_FD)


@dataclass(frozen=True)
class Message:
    """One message with the descriptors that came with it; whoever takes it closes them."""

    body: dict[str, Any]
    descriptors: tuple[int, ...] = ()


async def _ready(
    watch: Callable[..., None], forget: Callable[[int], bool], descriptor: int
) -> None:
    happened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not happened.done():
            happened.set_result(None)

    watch(descriptor, wake)
    try:
        await happened
    finally:
        forget(descriptor)


async def wait_readable(sock: socket.socket) -> None:
    """Return when ``sock`` has something to read."""
    loop = asyncio.get_running_loop()
    await _ready(loop.add_reader, loop.remove_reader, sock.fileno())


async def wait_writable(sock: socket.socket) -> None:
    """Return when ``sock`` takes something to write."""
    loop = asyncio.get_running_loop()
    await _ready(loop.add_writer, loop.remove_writer, sock.fileno())


async def send(
    sock: socket.socket, body: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send one message on the non-blocking ``sock``; the descriptors stay open here too.

    Raises OSError when the other side is gone.
    """
    data = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    while True:
        try:
            sent = socket.send_fds(sock, [data], list(descriptors))
            break
        except BlockingIOError:
            await wait_writable(sock)
    if sent < len(data):
        await asyncio.get_running_loop().sock_sendall(sock, memoryview(data)[sent:])


async def receive(sock: socket.socket) -> Message:
    """Receive one message from the non-blocking ``sock``.

    Raises EOFError when the other side closes before its end, ValueError when it is no JSON
    object or too long, OSError when the connection breaks.
    """
    data = bytearray()
    descriptors: list[int] = []
    try:
        while b"\n" not in data:
            try:
                chunk, new, _, _ = socket.recv_fds(
                    sock, _CHUNK, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await wait_readable(sock)
                continue
            descriptors += new
            data += chunk
            if not chunk:
                raise EOFError("the other side closed the connection")
            if len(data) > _MESSAGE_LIMIT:
                raise ValueError("the message is too long")
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("the message is no JSON object")
        return Message(body, tuple(descriptors))
    except BaseException:
        close_all(descriptors)
        raise


def close_all(descriptors: Sequence[int]) -> None:
    """Close ``descriptors``; those that are closed already are passed over."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
