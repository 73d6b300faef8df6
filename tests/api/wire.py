"""Requests to a daemon over real TLS, written byte by byte: tests send what no client would."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.machine import patient

_LIMIT = 30.0
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@dataclass(frozen=True)
class Answer:
    """An answer; ``raw`` is all that came, to the end of the connection."""

    raw: bytes
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def problem(self) -> dict[str, Any]:
        """The error it tells."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


def parsed(raw: bytes) -> Answer:
    """Return what ``raw`` says; status 0 for something that is no answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        return Answer(raw)
    pairs = [line.partition(": ") for line in lines]
    headers = {name.lower(): value for name, _, value in pairs}
    return Answer(raw, int(first.split()[1]), headers, body)


def bearer(token: str) -> str:
    """Return the header that shows ``token``."""
    return f"Authorization: Bearer {token}"


@dataclass(frozen=True)
class Wire:
    """Where a daemon listens on this machine and the certificate it must show."""

    port: int
    fingerprint: str

    @contextlib.contextmanager
    def plain(self) -> Iterator[socket.socket]:
        """Open a connection without TLS."""
        with socket.create_connection(("127.0.0.1", self.port), patient(_LIMIT)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield sock

    @contextlib.contextmanager
    def open(self) -> Iterator[ssl.SSLSocket]:
        """Open a connection and compare the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with self.plain() as sock, context.wrap_socket(sock) as tls:
            shown = tls.getpeercert(binary_form=True)
            assert shown is not None
            assert hashlib.sha256(shown).hexdigest() == self.fingerprint
            yield tls

    def send(self, request: bytes) -> Answer:
        """Send ``request`` and return what comes until the daemon ends the connection."""
        with self.open() as tls:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                tls.sendall(request)
            return parsed(read_to_end(tls))

    def ask(self, method: str, path: str, *headers: str, body: bytes | None = None) -> Answer:
        """Ask with ``headers``; the connection ends with the answer."""
        return self.send(head(method, path, *headers, body=body) + (body or b""))


def head(method: str, path: str, *headers: str, body: bytes | None = None) -> bytes:
    """Return the head of a request after which the connection ends."""
    lines = [f"{method} {path} HTTP/1.1", "Host: hanok", *headers]
    if "Connection: Upgrade" not in headers:
        lines.append("Connection: close")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read_to_end(sock: socket.socket) -> bytes:
    """Return what comes until the other side ends; a reset is an end as well."""
    found = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while data := sock.recv(65536):
            found += data
    return found
