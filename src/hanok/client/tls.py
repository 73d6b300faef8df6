"""Connections to a remote daemon: TLS whose certificate is known by its fingerprint.

No authority is asked and no name or date is compared: the SHA-256 of the certificate is what was
pinned when the remote was added, or nothing is sent. That also holds for a host that has no name
and on a machine whose clock is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from hanok.errors import CertificateChanged, DaemonUnreachable

T = TypeVar("T")

CONNECT_LIMIT = 10.0  # seconds for the connection, and again for the handshake
# A connection on which nothing comes is asked after 30 s whether its host is still there; one
# whose host is gone breaks within about a minute.
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 60_000),  # ms that what was sent may stay without an answer
)


class Address(NamedTuple):
    """Where a remote listens, and what it is called in errors."""

    host: str
    port: int
    label: str


class TlsConnection:
    """A TLS connection that one thread may read while another writes.

    OpenSSL does not allow that by itself: here its calls never wait, a lock is held around each,
    and the waiting is done beside it. It has what is used of a socket by ``http.py`` and by the
    WebSocket library.
    """

    def __init__(self, tls: ssl.SSLSocket) -> None:
        tls.setblocking(False)
        self._tls = tls
        self._lock = threading.Lock()
        self._timeout: float | None = None
        self._shut = False
        self.family = tls.family

    def recv(self, size: int) -> bytes:
        """Return what has come, at most ``size`` bytes; nothing at the end. Raises OSError."""
        try:
            return self._wait_for(lambda: self._tls.recv(size))
        except ConnectionError:
            # OpenSSL 3.5 wants to answer what it takes for the other side's end, and cannot.
            if self._shut:
                return b""
            raise

    def sendall(self, data: bytes) -> None:
        """Send ``data``. Raises BrokenPipeError when the other side takes no more."""
        view = memoryview(data).cast("B")
        sent = 0
        try:
            while sent < len(view):
                rest = view[sent:]
                sent += self._wait_for(lambda rest=rest: self._tls.send(rest))  # type: ignore[misc]
        except ssl.SSLError as error:
            raise BrokenPipeError(str(error)) from error

    def _wait_for(self, call: Callable[[], T]) -> T:
        limit = self._timeout
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            with self._lock:
                handle = self._tls.fileno()
                try:
                    return call()
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
            poll = select.poll()
            poll.register(handle, wanted)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not poll.poll(left):
                raise TimeoutError("timed out")

    def settimeout(self, timeout: float | None) -> None:
        """Bound each wait of later calls, in seconds; None: wait as long as it takes."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return the bound of each wait."""
        return self._timeout

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._tls.fileno()

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option of the TCP connection."""
        self._tls.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        """End one direction or both; who waits for data sees the end."""
        self._shut |= how != socket.SHUT_WR
        # Not SSLSocket.shutdown: that forgets the session while another thread may use it.
        socket.socket.shutdown(self._tls, how)

    def close(self) -> None:
        """Close; who waits for data sees the end."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._tls.close()


def connect(address: Address, fingerprint: str, timeout: float = CONNECT_LIMIT) -> TlsConnection:
    """Return a connection to the daemon whose certificate has ``fingerprint``.

    Raises DaemonUnreachable; CertificateChanged, with nothing sent, when it shows another one.
    """
    tls, found = _handshake(address, timeout)
    if not hmac.compare_digest(found, fingerprint):
        tls.close()
        raise CertificateChanged(
            f"{address.label} shows another certificate than the one that was pinned; nothing was"
            f" sent to it.\n  pinned: {in_pairs(fingerprint)}\n  shown:  {in_pairs(found)}",
            hint="if it was set up anew, compare with 'hanok host show' there and add it again:"
            " hanok remote add --replace; else someone may be between you and it",
        )
    return TlsConnection(tls)


def see_fingerprint(address: Address, timeout: float = CONNECT_LIMIT) -> str:
    """Return the fingerprint of the certificate that is shown at ``address``, sending nothing.

    Raises DaemonUnreachable.
    """
    tls, found = _handshake(address, timeout)
    tls.close()
    return found


def in_pairs(fingerprint: str) -> str:
    """Return a fingerprint as people compare it: ``ab:cd:...``."""
    return ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2))


def _handshake(address: Address, timeout: float) -> tuple[ssl.SSLSocket, str]:
    """Return a connection after its handshake and the fingerprint that was shown in it."""
    sock = _connect_tcp(address, timeout)
    try:
        tls = _context().wrap_socket(sock)
    except TimeoutError:
        sock.close()
        raise DaemonUnreachable(
            f"{address.label} takes connections, but does not answer within {timeout:g} s",
            hint="something else than hanokd may listen at that port",
        ) from None
    except ssl.SSLError as error:
        sock.close()
        raise DaemonUnreachable(
            f"{address.label} does not speak TLS ({error.reason or error})",
            hint="it is not hanokd's port (7443 unless it was told otherwise), or plain HTTP",
        ) from None
    except OSError as error:
        sock.close()
        raise DaemonUnreachable(
            f"{address.label} ended the connection before it was safe ({error.strerror or error})"
        ) from None
    shown = tls.getpeercert(binary_form=True)
    return tls, hashlib.sha256(shown or b"").hexdigest()


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The caller compares the fingerprint, before it sends anything: see the module's docstring.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _connect_tcp(address: Address, timeout: float) -> socket.socket:
    try:
        sock = socket.create_connection((address.host, address.port), timeout)
    except TimeoutError:
        raise DaemonUnreachable(
            f"{address.label} does not answer within {timeout:g} s",
            hint="is that host up, and does a firewall let you through?",
        ) from None
    except socket.gaierror as error:
        raise DaemonUnreachable(
            f"{address.label}: no address is known for {address.host!r} ({error.strerror})"
        ) from None
    except ConnectionRefusedError:
        raise DaemonUnreachable(
            f"{address.label} does not answer: nothing listens at port {address.port} there",
            hint="is hanokd up on that host, with HANOK_LISTEN set?",
        ) from None
    except OSError as error:
        raise DaemonUnreachable(
            f"{address.label} cannot be reached: {error.strerror or error}"
        ) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock
