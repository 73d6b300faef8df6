"""HTTP/1.1 to a daemon: one connection a request here, where connecting costs nothing.

To a remote host a connection is kept for the next request, since each costs three journeys.

``http.client`` brings the email package with it, 25 ms a command; httptools is the parser that the
daemon itself uses, and costs 5.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlencode

import httptools

from hanok.errors import DaemonUnreachable, HanokError, TimedOut, all_error_types

_CHUNK = 65536
_EXPECT = b"Expect: 100-continue"
_CONTINUE, _NO_CONTENT = 100, 204
_SMALL = 64 * 1024 * 1024  # no JSON answer of the API is anywhere near, and no line of a stream
_LARGEST_HEAD = 256 * 1024
# uvicorn ends a connection on which nothing came for 5 s; one that is nearly as old is not used.
_KEEP_SECONDS = 2.0

if TYPE_CHECKING:
    from hanok.client.tls import TlsConnection

    Connection = socket.socket | TlsConnection
    Connector = Callable[[], Connection]


def _as_it_is(error: HanokError) -> HanokError:
    return error


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, for the words of errors.

    ``explain`` may add to an error that the daemon answered with. ``reconnects``: how often the
    following of an operation is taken up again when its connection breaks.
    """

    name: str = "the daemon"
    log_hint: str = "its log tells why: hanokd.log in the data directory"
    explain: Callable[[HanokError], HanokError] = _as_it_is
    reconnects: int = 5


class _Collector:
    """Keeps what the parser calls back with."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.headers_done = False
        self.complete = False
        self.body: list[bytes] = []

    def on_message_begin(self) -> None:
        # An interim answer (100) may have come before, in the same piece even.
        self.headers, self.body = {}, []
        self.headers_done = self.complete = False

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

    def __init__(self, sock: Connection, peer: Peer) -> None:
        self._sock = sock
        self._peer = peer
        self.request_was_whole = True  # False: a part of the request was not sent
        self._collector = _Collector()
        self._parser = httptools.HttpResponseParser(self._collector)
        self._heard = False
        size = 0
        while not self._collector.headers_done:
            if not (came := self._feed()):
                raise _NoAnswerError
            size += came
            if size > _LARGEST_HEAD:
                raise DaemonUnreachable(f"what answers for {peer.name} does not come to an end")
        self.status = self._parser.get_status_code()
        self.headers: Mapping[str, str] = self._collector.headers

    @property
    def can_go_on(self) -> bool:
        """Whether the body has been read whole and the connection takes another request."""
        whole = self._collector.complete and not self._collector.body and self.request_was_whole
        # The parser itself forgets with the end of a message whether its length was told.
        told = self._has_length() or self.status == _NO_CONTENT
        ends = "close" in self.headers.get("connection", "").lower()
        return whole and told and not ends and self._parser.get_http_version() == "1.1"

    def _feed(self) -> int:
        """Read once from the socket; return how many bytes came, 0 at its end."""
        try:
            data = self._sock.recv(_CHUNK)
        except TimeoutError:
            raise TimedOut(
                f"{self._peer.name} did not answer within {self._sock.gettimeout():g} s"
            ) from None
        except OSError as error:
            if not self._heard:
                raise _NoAnswerError from error
            raise DaemonUnreachable(
                f"the connection to {self._peer.name} broke: {error}"
            ) from error
        if not data:
            return 0
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise DaemonUnreachable(
                f"what answers for {self._peer.name} does not speak HTTP: {error}"
            ) from error
        return len(data)

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
                    raise DaemonUnreachable(
                        f"{self._peer.name} went away before its answer was whole"
                    )
                return

    def _has_length(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    def lines(self) -> Iterator[bytes]:
        """Yield the body line by line, without the line ends."""
        rest = b""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > _SMALL:
                raise HanokError("a line of the daemon's answer is too large")
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
        except (ValueError, RecursionError) as error:
            raise HanokError("the daemon's answer is not JSON") from error


class Transport:
    """Sends requests; ``connect`` gives a connection for each, or with ``keep`` for several.

    ``headers`` go with every request, ``peer`` says who answers.
    """

    def __init__(
        self,
        connect: Connector,
        *,
        headers: Mapping[str, str] | None = None,
        keep: bool = False,
        peer: Peer | None = None,
    ) -> None:
        self.connect = connect
        self.headers = dict(headers or {})
        self.peer = peer or Peer()
        self._keep = keep
        self._kept: list[tuple[Connection, float]] = []  # with the time of the last answer

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
        """Send a request and give its answer, which is not read any more after the block.

        ``path`` is percent-encoded already.
        ``length`` is the size of a ``body`` that is a file. ``timeout`` bounds each wait for data,
        in seconds. Raises the error that the daemon answered with, DaemonUnreachable, TimedOut.
        """
        size = len(body) if isinstance(body, bytes) else length
        head = self._head(method, path, query, content_type, size, isinstance(body, bytes))
        # A daemon that just ended itself as idle may have taken the connection and no more. What
        # only asks is asked again, which starts a new one; what changes something is not.
        sock, response = self._exchange(head, body, timeout, again=method == "GET")
        try:
            if response.status >= 400:
                raise self.refusal(response.read(), response.status)
            yield response
        finally:
            self._finish(sock, response)

    def refusal(self, body: bytes, status: int) -> HanokError:
        """Return the error that an answer with ``status`` stands for."""
        return self.peer.explain(error_of(body, status, self.peer.name))

    def close(self) -> None:
        """Close what was kept."""
        while self._kept:
            self._kept.pop()[0].close()

    def _exchange(
        self, head: bytes, body: bytes | BinaryIO | None, timeout: float | None, *, again: bool
    ) -> tuple[Connection, Response]:
        sock = self._take_kept() or self.connect()
        try:
            sock.settimeout(timeout)
            return sock, self._ask(sock, head, body)
        except _NoAnswerError:
            sock.close()
            if not again:
                raise DaemonUnreachable(
                    f"{self.peer.name} closed the connection without an answer",
                    hint=self.peer.log_hint,
                ) from None
        except BaseException:
            sock.close()
            raise
        self.close()
        return self._exchange(head, body, timeout, again=False)

    def _ask(self, sock: Connection, head: bytes, body: bytes | BinaryIO | None) -> Response:
        if body is None or isinstance(body, bytes):
            self._send(sock, head + (body or b""))
            return Response(sock, self.peer)
        self._send(sock, head)
        if _EXPECT in head:
            # A remote may refuse: then it does not read the body, and its words could be lost
            # with the connection while that is still being sent.
            verdict = Response(sock, self.peer)
            if verdict.status != _CONTINUE:
                verdict.request_was_whole = False
                return verdict
        whole = True
        while whole and (chunk := body.read(_CHUNK)):
            whole = self._send(sock, chunk)
        response = Response(sock, self.peer)
        response.request_was_whole = whole
        return response

    def _send(self, sock: Connection, data: bytes) -> bool:
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False  # a server may refuse early: its answer says why, or reading it fails
        except TimeoutError:
            raise TimedOut(f"{self.peer.name} does not take the request") from None
        return True

    def _take_kept(self) -> Connection | None:
        """Return a connection that was kept and that the daemon has not ended."""
        now = time.monotonic()
        while self._kept:
            sock, answered = self._kept.pop()
            if now - answered < _KEEP_SECONDS and not _has_news(sock):
                return sock
            sock.close()
        return None

    def _finish(self, sock: Connection, response: Response) -> None:
        if self._keep and response.can_go_on:
            self._kept.append((sock, time.monotonic()))
        else:
            sock.close()

    def _head(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        content_type: str,
        size: int | None,
        at_once: bool,
    ) -> bytes:
        target = path + (f"?{urlencode(query)}" if query else "")
        lines = [f"{method} {target} HTTP/1.1", "Host: hanok"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if not self._keep:
            lines.append("Connection: close")
        elif size and not at_once:
            lines.append(_EXPECT.decode())
        if size is not None:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {size}"]
        elif method in ("POST", "PUT"):
            lines.append("Content-Length: 0")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _has_news(sock: Connection) -> bool:
    """Return whether a connection on which nothing was asked has something to read: its end."""
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return True


def error_of(body: bytes, status: int, who: str = "the daemon") -> HanokError:
    """Return the error that a problem+json ``body`` from ``who`` stands for; never raises."""
    try:
        problem = json.loads(body)
        kind = all_error_types().get(str(problem.get("code")), HanokError)
        told = {name: one for name, one in problem.items() if isinstance(one, str)}
    except (ValueError, RecursionError, AttributeError):
        return HanokError(f"{who} answered with status {status}")
    return kind(
        told.get("detail", f"{who} answered with status {status}"),
        field=told.get("field"),
        expected=told.get("expected"),
        hint=told.get("hint"),
    )
