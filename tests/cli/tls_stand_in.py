"""Stands in for whatever may answer at a remote's address: TLS, plain text, or nothing at all.

It notes what reached it after the handshake: tests count on that being nothing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN = "hanok_" + "a" * 43
Talk = Callable[["Place", socket.socket], None]


@dataclass
class Place:
    """An address, the certificate that is shown there, and what came after each handshake."""

    port: int
    fingerprint: str
    heard: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        """Its URL."""
        return f"https://127.0.0.1:{self.port}"

    def read_request(self, sock: socket.socket) -> bytes:
        """Return one request with its body, or nothing at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return b""
            data += piece
            self.heard.append(piece)
        return data


def answer(status: int, body: bytes, *headers: str) -> bytes:
    """Return an HTTP answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def problem(status: int, code: str, detail: str, *headers: str) -> bytes:
    """Return an answer that tells of an error."""
    body = {"status": status, "code": code, "detail": detail}
    return answer(status, json.dumps(body).encode(), *headers)


UNAUTHORIZED = problem(401, "unauthorized", "no good token came with the request")


def like_hanok(place: Place, sock: socket.socket) -> None:
    """Answer as a daemon without VMs, to TOKEN only, on one connection."""
    while request := place.read_request(sock):
        if f"Authorization: Bearer {TOKEN}".encode() not in request:
            sock.sendall(UNAUTHORIZED)
        elif request.startswith(b"GET /v1/version "):
            sock.sendall(answer(200, b'{"name":"hanok","version":"9","pid":1,"home":"/x"}'))
        else:
            sock.sendall(answer(200, b"[]"))


@contextmanager
def tls_place(talk: Talk = like_hanok, *, valid: timedelta = timedelta(days=1)) -> Iterator[Place]:
    """Serve ``talk`` by TLS; the certificate's validity lies around now, or before it."""
    with tempfile.TemporaryDirectory(prefix="hk-tls-", dir="/tmp") as folder:
        pem = Path(folder, "both.pem")
        der = _make_certificate(pem, valid)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)

        def greet(place: Place, plain: socket.socket) -> None:
            with context.wrap_socket(plain, server_side=True) as sock:
                talk(place, sock)

        with plain_place(greet, sha256(der).hexdigest()) as place:
            yield place


@contextmanager
def plain_place(talk: Talk, fingerprint: str = "0" * 64) -> Iterator[Place]:
    """Serve ``talk`` without TLS, a thread a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = Place(listener.getsockname()[1], fingerprint)
        open_now: list[socket.socket] = []

        def serve(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                talk(place, sock)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    place.connections += 1
                    open_now.append(sock)
                    threading.Thread(target=serve, args=(sock,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield place
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for sock in open_now:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """Return a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _make_certificate(path: Path, valid: timedelta) -> bytes:
    """Write a key and its certificate, valid for ``valid`` from two days ago on; return its DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another name")])
    begin = datetime.now(UTC) - timedelta(days=2)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + valid)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return made.public_bytes(serialization.Encoding.DER)
