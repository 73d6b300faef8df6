"""Console and proxy against a real WebSocket server that echoes."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import termios
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, unix_serve

from tests.cli import recorded
from tests.cli.conftest import LIMIT, Hanok


def answer(connection: ServerConnection, request: Request) -> Response | None:
    """Answer plain requests, refuse streams to other VMs, let the rest become WebSockets."""
    if request.path == "/v1/vms/web":
        body = json.dumps(recorded.vm_detail()).encode()
        return Response(200, "OK", Headers({"Content-Length": str(len(body))}), body)
    if request.path.startswith("/v1/vms/web/"):
        return None
    problem = recorded.problem("not-found", 404, "there is no VM 'gone'", hint="hanok list")
    refused = connection.respond(HTTPStatus.NOT_FOUND, json.dumps(problem))
    refused.headers["Content-Type"] = "application/problem+json"
    return refused


def echo(connection: ServerConnection) -> None:
    """Greet, then send back in capitals what comes; ``bye`` ends the console."""
    assert connection.request is not None
    is_console = connection.request.path.endswith("/console")
    if is_console:
        connection.send(b"login: ")
    try:
        for message in connection:
            assert isinstance(message, bytes)
            if not message:  # the end of the input of a TCP stream
                connection.send(b"[end]")
                return
            connection.send(message.upper())
            if b"bye" in message:
                return
            if b"break" in message:
                connection.close(1011, "the guest is gone")
    except ConnectionClosed:
        pass


@pytest.fixture(autouse=True)
def server(home: Path) -> Iterator[None]:
    with unix_serve(echo, str(home / "hanokd.sock"), process_request=answer) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield
        found.shutdown()
        thread.join()


def test_proxy_carries_bytes_both_ways_and_the_end_of_input(hanok: Hanok) -> None:
    data = b"abc\x1d\x00" * 50_000
    process = hanok.popen("proxy", "web", "80")
    found, said = process.communicate(data, timeout=LIMIT)
    assert process.returncode == 0, said
    assert found == data.upper() + b"[end]"


def test_console_with_piped_input(hanok: Hanok) -> None:
    done = hanok("console", "--linger", "0.5", "web", stdin=b"root\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "login: ROOT\n"
    assert done.stderr == ""


def test_console_ends_when_the_guest_ends_it(hanok: Hanok) -> None:
    assert hanok("console", "web", stdin=b"bye").stdout == "login: BYE"


def test_console_tells_why_it_broke(hanok: Hanok) -> None:
    done = hanok("console", "web", stdin=b"break")
    assert done.returncode == 1
    assert "error: the guest is gone" in done.stderr


@pytest.mark.parametrize("words", [("console", "gone"), ("proxy", "gone", "80")])
def test_an_unknown_vm_is_not_found(hanok: Hanok, words: tuple[str, ...]) -> None:
    done = hanok(*words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: there is no VM 'gone'"


class Terminal:
    """A pseudo-terminal with a command on it."""

    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            argv, env=environ, stdin=self.theirs, stdout=self.theirs, stderr=self.theirs
        )
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        while text not in self.seen:
            assert select.select([self.ours], [], [], LIMIT)[0], self.seen
            self.seen += os.read(self.ours, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(hanok: Hanok) -> Iterator[Terminal]:
    found = Terminal(hanok.argv("console", "web"), hanok.environment())
    yield found
    found.close()


def test_console_gives_every_key_to_the_guest_until_detached(terminal: Terminal) -> None:
    terminal.wait_for(b"Ctrl-] leaves it")
    terminal.wait_for(b"login: ")
    assert not terminal.is_as_before()
    terminal.type(b"ab\x03\x04")  # Ctrl-C and Ctrl-D are the guest's
    terminal.wait_for(b"AB\x03\x04")
    terminal.type(b"last\x1d")
    terminal.wait_for(b"Left the console of web.")
    assert terminal.process.wait(LIMIT) == 0
    assert terminal.is_as_before()


@pytest.mark.parametrize("end", ["bye", "break", "SIGTERM", "SIGHUP"])
def test_console_always_restores_the_terminal(terminal: Terminal, end: str) -> None:
    import signal

    terminal.wait_for(b"login: ")
    if end.startswith("SIG"):
        terminal.process.send_signal(signal.Signals[end])
    else:
        terminal.type(end.encode())
    status = terminal.process.wait(LIMIT)
    assert status == {"bye": 0, "break": 1, "SIGTERM": 143, "SIGHUP": 129}[end]
    assert terminal.is_as_before()
