"""HTTP/1.1 over a unix socket, one connection a request.

``http.client`` brings the email package with it, 25 ms a command; httptools is the parser that the
daemon itself uses, and costs 5.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlencode

import httptools

from hanok.errors import DaemonUnreachable, HanokError, TimedOut, all_error_types

_CHUNK = 65536
_SMALL = 64 * 1024 * 1024  # no JSON answer of the API is anywhere near

Connector = Callable[[], socket.socket]


class _Collector:
    """Keeps what the parser calls back with."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.headers_done = False
        self.complete = False
        self.body: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.headers_done = True

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


class _NoAnswerError(Exception):
    """The connection ended before a single byte of an answer."""


class Response:
    """An answer whose head has arrived; the body is read as it comes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._collector = _Collector()
        self._parser = httptools.HttpResponseParser(self._collector)
        self._heard = False
        while not self._collector.headers_done:
            if not self._feed():
                raise _NoAnswerError
        self.status = self._parser.get_status_code()
        self.headers: Mapping[str, str] = self._collector.headers

    def _feed(self) -> bool:
        """Read once from the socket; return False at its end."""
        try:
            data = self._sock.recv(_CHUNK)
        except TimeoutError:
            raise TimedOut(
                f"the daemon did not answer within {self._sock.gettimeout():g} s"
            ) from None
        except OSError as error:
            if not self._heard:
                raise _NoAnswerError from error
            raise DaemonUnreachable(f"the connection to the daemon broke: {error}") from error
        if not data:
            return False
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise DaemonUnreachable(
                f"what answers at the socket does not speak HTTP: {error}"
            ) from error
        return True

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces as they arrive.

        Raises DaemonUnreachable when the connection ends before the body does.
        """
        while True:
            if self._collector.body:
                pieces, self._collector.body = self._collector.body, []
                yield b"".join(pieces)
            elif self._collector.complete:
                return
            elif not self._feed():
                if self._has_length():
                    raise DaemonUnreachable("the daemon went away before its answer was whole")
                return

    def _has_length(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    def lines(self) -> Iterator[bytes]:
        """Yield the body line by line, without the line ends."""
        rest = b""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def read(self) -> bytes:
        """Return the whole body."""
        found = bytearray()
        for chunk in self.chunks():
            found += chunk
            if len(found) > _SMALL:
                raise HanokError("the daemon's answer is too large")
        return bytes(found)

    def json(self) -> Any:
        """Return the body as JSON; raises HanokError when it is none."""
        data = self.read()
        try:
            return json.loads(data)
        except ValueError as error:
            raise HanokError("the daemon's answer is not JSON") from error


class Transport:
    """Sends requests; ``connect`` gives a connected socket for each."""

    def __init__(self, connect: Connector) -> None:
        self.connect = connect

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
        length: int | None = None,
        content_type: str = "application/json",
        timeout: float | None = 120,
    ) -> Iterator[Response]:
        """Send a request and give its answer; the connection closes with the block.

        ``path`` is percent-encoded already.
        ``length`` is the size of a ``body`` that is a file. ``timeout`` bounds each wait for data,
        in seconds. Raises the error that the daemon answered with, DaemonUnreachable, TimedOut.
        """
        size = len(body) if isinstance(body, bytes) else length
        head = _head(method, path, query, content_type, size)
        # A daemon that just ended itself as idle may have taken the connection and no more. What
        # only asks is asked again, which starts a new one; what changes something is not.
        sock, response = self._exchange(head, body, timeout, again=method == "GET")
        with sock:
            if response.status >= 400:
                raise error_of(response.read(), response.status)
            yield response

    def _exchange(
        self, head: bytes, body: bytes | BinaryIO | None, timeout: float | None, *, again: bool
    ) -> tuple[socket.socket, Response]:
        sock = self.connect()
        try:
            sock.settimeout(timeout)
            _send(sock, head, body)
            return sock, Response(sock)
        except _NoAnswerError:
            sock.close()
            if not again:
                raise DaemonUnreachable(
                    "the daemon closed the connection without an answer",
                    hint="its log tells why: hanokd.log in the data directory",
                ) from None
        except BaseException:
            sock.close()
            raise
        return self._exchange(head, body, timeout, again=False)


def _head(
    method: str,
    path: str,
    query: Mapping[str, str] | None,
    content_type: str,
    size: int | None,
) -> bytes:
    target = path + (f"?{urlencode(query)}" if query else "")
    lines = [f"{method} {target} HTTP/1.1", "Host: hanok", "Connection: close"]
    if size is not None:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {size}"]
    elif method in ("POST", "PUT"):
        lines.append("Content-Length: 0")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _send(sock: socket.socket, head: bytes, body: bytes | BinaryIO | None) -> None:
    try:
        if isinstance(body, bytes):
            sock.sendall(head + body)
            return
        sock.sendall(head)
        while body is not None and (chunk := body.read(_CHUNK)):
            sock.sendall(chunk)
    except (BrokenPipeError, ConnectionResetError):
        return  # a server may refuse early: its answer says why, or reading it fails
    except TimeoutError:
        raise TimedOut("the daemon does not take the request") from None


def error_of(body: bytes, status: int) -> HanokError:
    """Return the error that a problem+json ``body`` stands for; never raises."""
    try:
        problem = json.loads(body)
        kind = all_error_types().get(str(problem.get("code")), HanokError)
        detail = problem.get("detail")
    except (ValueError, AttributeError):
        return HanokError(f"the daemon answered with status {status}")
    if not isinstance(detail, str):
        detail = f"the daemon answered with status {status}"
    return kind(
        detail,
        field=problem.get("field"),
        expected=problem.get("expected"),
        hint=problem.get("hint"),
    )
