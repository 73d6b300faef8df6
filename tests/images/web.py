"""A web server on the loopback that does to each request what it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the behaviour whose turn it is; the last one stays."""

    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        """Answer."""
        self.web.requests.append((self.path, self.headers.get("Range")))
        left = self.web.answers
        answer = left.pop(0) if len(left) > 1 else left[0]
        self.close_connection = True
        with contextlib.suppress(OSError):
            answer(self, self.web.content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def begin(self, status: int, **headers: object) -> None:
        """Send the head of an answer; ``_`` in names stands for ``-``."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    @property
    def start(self) -> int:
        """Where the part that is asked for begins."""
        return int((self.headers.get("Range") or "bytes=0-")[6:-1])


@dataclass
class Web:
    """What is served and how, and what was asked for: path and range of each request."""

    content: bytes
    answers: list[Answer]
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serving(content: bytes, *answers: Answer) -> Iterator[Web]:
    """Give a server of ``content``."""
    web = Web(content, list(answers))
    handler = type("Bound", (Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}/disk.img"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def whole(handler: Handler, content: bytes) -> None:
    """Serve as servers do: ranges too."""
    start = handler.start
    if start >= len(content):
        handler.begin(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
    elif start:
        told = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.begin(206, Content_Range=told, Content_Length=len(content) - start)
        handler.wfile.write(content[start:])
    else:
        handler.begin(200, Content_Length=len(content))
        handler.wfile.write(content)


def no_ranges(handler: Handler, content: bytes) -> None:
    """Serve all of it, whatever was asked for."""
    handler.begin(200, Content_Length=len(content))
    handler.wfile.write(content)


def breaks(after: int) -> Answer:
    """Return a behaviour: break off ``after`` bytes of what was asked for."""

    def answer(handler: Handler, content: bytes) -> None:
        start = handler.start
        told = f"bytes {start}-{len(content) - 1}/{len(content)}"
        more = {"Content_Range": told} if start else {}
        handler.begin(206 if start else 200, Content_Length=len(content) - start, **more)
        handler.wfile.write(content[start : start + after])

    return answer


def status(code: int, **headers: object) -> Answer:
    """Return a behaviour: a status without content."""
    return lambda handler, content: handler.begin(code, Content_Length=0, **headers)


def raw(data: bytes) -> Answer:
    """Return a behaviour: these bytes instead of HTTP."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.wfile.write(data)

    return answer
