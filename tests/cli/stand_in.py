"""Stands in for the daemon: a real HTTP server on a unix socket that replays recorded answers.

The command line is what is tested; the server only says what it was told to say, and remembers
what it was asked.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

PROBLEM = "application/problem+json"


@dataclass
class Asked:
    """A request as it came."""

    method: str
    target: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Answer:
    """What to reply: a body at once, or pieces as they come."""

    status: int = 200
    body: bytes = b""
    pieces: Callable[[], Iterator[bytes]] | None = None
    content_type: str = "application/json"
    truncate: bool = False


@dataclass
class StandIn:
    """The answers by method and target, and what was asked so far."""

    home: Path
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def on(self, method: str, target: str, value: object = None, *, status: int = 200) -> None:
        """Answer ``target`` with ``value`` as JSON; repeated, the last answer stays."""
        kind = PROBLEM if status >= 400 else "application/json"
        body = b"" if value is None else json.dumps(value).encode()
        self.add(method, target, Answer(status, body, content_type=kind))

    def stream(self, method: str, target: str, pieces: Callable[[], Iterator[bytes]]) -> None:
        """Answer ``target`` with chunks as ``pieces`` gives them."""
        self.add(method, target, Answer(pieces=pieces, content_type="application/x-ndjson"))

    def add(self, method: str, target: str, answer: Answer) -> None:
        """Queue one answer."""
        self.answers.setdefault((method, f"/v1/{target}"), []).append(answer)

    def next_answer(self, method: str, target: str) -> Answer:
        """Return what to say now."""
        found = self.answers.get((method, target))
        if not found:
            problem = {"status": 404, "code": "not-found", "detail": f"no {method} {target}"}
            return Answer(404, json.dumps(problem).encode(), content_type=PROBLEM)
        return found.pop(0) if len(found) > 1 else found[0]

    def only(self, method: str, target: str) -> Asked:
        """Return the one request of that kind."""
        found = [a for a in self.asked if (a.method, a.target) == (method, f"/v1/{target}")]
        assert len(found) == 1, self.asked
        return found[0]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    stand_in: StandIn


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        stand_in = self.server.stand_in
        stand_in.asked.append(Asked(self.command, self.path, body))
        answer = stand_in.next_answer(self.command, self.path)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.close_connection = True
        if answer.pieces is None:
            length = len(answer.body) + (10 if answer.truncate else 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(answer.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may leave
            for piece in answer.pieces():
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if not answer.truncate:
                self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """A unix socket has no peer address."""
        return "unix"


@contextmanager
def serve(home: Path) -> Iterator[StandIn]:
    """Serve the socket of the data directory ``home``."""
    stand_in = StandIn(home)
    with _Server(str(home / "hanokd.sock"), _Handler) as server:
        server.stand_in = stand_in
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()


def ndjson(*values: object) -> Callable[[], Iterator[bytes]]:
    """Return pieces that are ``values``, one JSON document a line."""

    def pieces() -> Iterator[bytes]:
        for value in values:
            yield json.dumps(value).encode() + b"\n"

    return pieces
