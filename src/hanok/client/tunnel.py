"""Byte streams to guests (console, TCP) through the daemon, as WebSockets with binary frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from hanok.client.client import Client
from hanok.errors import DaemonUnreachable, GuestError, Unauthorized

if TYPE_CHECKING:
    import socket

    from websockets.sync.client import ClientConnection

_CLOSED_WELL = (1000, 1001)
_POLICY_VIOLATION = 1008
_LARGEST_FRAME = 16 * 1024 * 1024


class Tunnel:
    """An open byte stream to a guest. One thread may send while another receives."""

    def __init__(self, connection: ClientConnection, peer: str = "the daemon") -> None:
        self._connection = connection
        self._peer = peer

    def send(self, data: bytes) -> None:
        """Send ``data``; nothing happens when the other side has closed."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._connection.send(data)
        except ConnectionClosed:
            return

    def receive(self, timeout: float | None = None) -> bytes | None:
        """Return the next bytes, or None at the end of the stream.

        Raises TimeoutError after ``timeout`` seconds without any, GuestError when the stream
        broke, DaemonUnreachable when the daemon went away, Unauthorized when it ended the stream
        together with the token.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            data = self._connection.recv(timeout)
        except ConnectionClosed as error:
            if error.rcvd is None and not self._closed_here(error):
                raise DaemonUnreachable(f"the connection to {self._peer} broke") from None
            if error.rcvd is not None and error.rcvd.code not in _CLOSED_WELL:
                if error.rcvd.code == _POLICY_VIOLATION:
                    raise Unauthorized(error.rcvd.reason or "the token is no longer good") from None
                raise GuestError(error.rcvd.reason or "the stream to the guest broke") from None
            return None
        return data.encode() if isinstance(data, str) else data

    @staticmethod
    def _closed_here(error: object) -> bool:
        return getattr(error, "sent", None) is not None

    def close(self) -> None:
        """End the stream; a ``receive`` that waits returns None."""
        self._connection.close()


@contextmanager
def open_console(client: Client, vm: str) -> Iterator[Tunnel]:
    """Open the VM's serial console. Raises NotFound, Conflict when it does not run."""
    with _open(client, f"/v1/vms/{quote(vm, safe=':')}/console") as tunnel:
        yield tunnel


@contextmanager
def open_screen(client: Client, vm: str) -> Iterator[Tunnel]:
    """Open the VM's screen, which speaks VNC. Raises NotFound, Conflict when it has none."""
    with _open(client, f"/v1/vms/{quote(vm, safe=':')}/vnc") as tunnel:
        yield tunnel


@contextmanager
def open_tcp(client: Client, vm: str, port: int) -> Iterator[Tunnel]:
    """Open a TCP connection to a port of the guest. Raises NotFound, Conflict, GuestError."""
    with _open(client, f"/v1/vms/{quote(vm, safe=':')}/tcp/{port}") as tunnel:
        yield tunnel


@contextmanager
def _open(client: Client, path: str) -> Iterator[Tunnel]:
    from websockets.exceptions import InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect

    transport = client.transport
    connected = transport.connect()
    # A TLS connection has all of a socket that the library uses.
    sock = cast("socket.socket", connected)
    try:
        connection = connect(
            f"ws://hanok{path}",
            sock=sock,
            additional_headers=transport.headers,
            compression=None,
            max_size=_LARGEST_FRAME,
            open_timeout=30,
            close_timeout=2,
            ping_interval=None,  # the socket itself tells when the daemon is gone
            user_agent_header=None,
            proxy=None,
        )
    except InvalidStatus as error:
        sock.close()
        answer = error.response
        raise transport.refusal(bytes(answer.body or b""), answer.status_code) from None
    except (InvalidHandshake, OSError, EOFError) as error:
        sock.close()
        raise DaemonUnreachable(
            f"{transport.peer.name} did not open the stream: {error}"
        ) from error
    with connection:
        yield Tunnel(connection, transport.peer.name)
