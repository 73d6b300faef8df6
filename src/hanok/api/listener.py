"""The listener on TCP: TLS for everyone, and an answer only to those who show a good token.

uvicorn speaks HTTP and WebSockets here as it does on the unix socket. What is added is what a
network asks for: limits on handshakes, on the size of headers and on how long they may take, and
silence towards whatever is no request with a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from hanok.api.auth import Guard, unauthorized
from hanok.api.common import problem_response

_log = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.requests")
_quiet.setLevel(logging.ERROR)  # what strangers send is no news

HANDSHAKE_LIMIT = 10.0  # seconds
HEAD_LIMIT = 10.0  # seconds until all headers of a request are there
HEAD_SIZE = 32 * 1024  # bytes of a request's line and headers
STRANGERS = 256  # connections that have not shown a good token; the oldest gives way
_SHUTDOWN_LIMIT = 5.0
_PAUSE = 0.5
_BACKLOG = 512
# A connection on which nothing comes is asked after a minute whether its other end is still there.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
_AROUND = 4  # bytes of a header beside its name and value


class Strangers:
    """The connections that have not shown a good token yet: a bounded number of them."""

    def __init__(self, most: int = STRANGERS) -> None:
        self._most = most
        self._enders: dict[object, Callable[[], object]] = {}

    def add(self, who: object, end: Callable[[], object]) -> None:
        """Count ``who``; the one that has been here longest is ended when there are too many."""
        self._enders[who] = end
        while len(self._enders) > self._most:
            oldest = next(iter(self._enders))
            self._enders.pop(oldest)()

    def discard(self, who: object) -> None:
        """Stop counting ``who``."""
        self._enders.pop(who, None)


class _HeadTooLargeError(Exception):
    """A request's line and headers are larger than HEAD_SIZE."""


class GuardedProtocol(HttpToolsProtocol):
    """A connection from the network."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        guard: Guard,
        strangers: Strangers,
    ) -> None:
        super().__init__(config, server_state, {})
        self.logger = _quiet
        self._guard = guard
        self._strangers = strangers
        self._head_done = False
        self._chunk = 0  # bytes that just came
        self._head_size = 0  # bytes that came while the head was not whole
        self._counted = 0  # bytes of the head that the parser has told of
        self._beside = 0  # bytes after a head that are no body: the parser keeps a trailer whole
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection among the strangers."""
        super().connection_made(transport)
        self._strangers.add(self, transport.abort)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._strangers.discard(self)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, as long as the head of the request is not too large."""
        if self.transport.is_closing():
            return
        self._chunk = len(data)
        if not self._head_done:
            self._head_size += self._chunk
        else:
            self._beside += self._chunk
        super().data_received(data)
        if self._beside > HEAD_SIZE or (not self._head_done and self._head_size > HEAD_SIZE):
            self.transport.abort()

    def _expect_head(self) -> None:
        self._head_done = False
        self._head_size = self._chunk
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_LIMIT, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # Called back by the parser

    def on_message_begin(self) -> None:
        """Expect a head within the limits."""
        super().on_message_begin()
        self._counted = 0
        if self._head_done:  # of the request before
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._count(len(name) + len(value) + _AROUND)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._counted += size
        if self._counted > HEAD_SIZE:
            raise _HeadTooLargeError

    def on_headers_complete(self) -> None:
        """Stop counting a connection with a good token as a stranger's; begin the request."""
        self._head_done = True
        self._beside = 0
        self._stop_timer()
        if self._guard.find(self.headers) is not None:
            self._strangers.discard(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._beside = 0
        super().on_body(body)

    def handle_websocket_upgrade(self) -> None:
        """Hand over to the WebSocket library, which would answer a bad handshake by itself."""
        if self._guard.find(self.headers) is not None:
            super().handle_websocket_upgrade()
            return
        self._guard.refused(self.client)
        self.transport.write(_refusal())
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Say nothing to whom does not speak HTTP."""
        self.transport.abort()


def _refusal() -> bytes:
    answer = problem_response(unauthorized())
    head = [
        b"HTTP/1.1 401 Unauthorized",
        b"connection: close",
        b"www-authenticate: Bearer",
        *(b"%s: %s" % header for header in answer.raw_headers),
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + bytes(answer.body)


class TlsServer(uvicorn.Server):
    """A uvicorn server whose connections are greeted here, within limits of time and number."""

    def __init__(self, guard: Guard, context: ssl.SSLContext) -> None:
        super().__init__(config_of(guard))
        self._guard = guard
        self._current = context
        self._strangers = Strangers()
        self._tasks: set[asyncio.Task[Any]] = set()

    def renew(self, context: ssl.SSLContext) -> None:
        """Show another certificate from now on; connections that are open stay."""
        self._current = context

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the server of the unix socket."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or []:
            self._spawn(self._accept(listener))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections and end those there are."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown(sockets)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # it went away before it was taken
            except OSError as error:
                _log.error("no connection is taken for a moment: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            task = self._spawn(self._greet(connection))
            self._strangers.add(task, task.cancel)
            task.add_done_callback(self._strangers.discard)

    async def _greet(self, connection: socket.socket) -> None:
        try:
            for level, option, value in _KEEPALIVE:
                connection.setsockopt(level, option, value)
        except OSError:  # it went away
            connection.close()
            return
        # From here on the socket is asyncio's, which closes it when the handshake fails.
        with contextlib.suppress(OSError):  # ssl's errors and time limits are among them
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: GuardedProtocol(
                    self.config, self.server_state, self._guard, self._strangers
                ),
                connection,
                ssl=self._current,
                ssl_handshake_timeout=HANDSHAKE_LIMIT,
                ssl_shutdown_timeout=_SHUTDOWN_LIMIT,
            )


def config_of(app: ASGIApp) -> uvicorn.Config:
    """Return how uvicorn serves ``app``, on the unix socket and on TCP."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        ws_max_size=16 * 1024 * 1024,
        proxy_headers=False,  # nobody may say that he is somebody else
        server_header=False,
        date_header=False,
    )


def bind(address: str, port: int) -> socket.socket:
    """Return a listening TCP socket; who connects waits until it is served. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # By name, since asyncio sends small answers at once (TCP_NODELAY) only where it is told so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
