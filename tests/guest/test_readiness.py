"""Readiness over real TCP servers on the loopback, which fail first in every way we know of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from pydantic import ValidationError

from hanok.errors import GuestError, InvalidInput
from hanok.guest import readiness
from hanok.guest.agent import AgentConnection
from hanok.guest.readiness import last_words, wait_ready
from hanok.model.vm import Ready
from tests.guest.fake_agent import FakeAgent, Request, answering, connected, refusing
from tests.guest.test_agent import encoded

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SHORT = 0.8


@dataclass
class Loopback:
    """A probe whose guest is this machine's loopback; ``on_connect`` injects what happens."""

    connection: AgentConnection | None = None
    on_connect: Callable[[int], None] = lambda _tries: None
    lives: Callable[[int], bool] = lambda _tries: True
    tries: int = 0
    asked: int = 0
    console: bytes = b""
    panicked: str | None = None
    ports: list[int] = field(default_factory=list)

    async def agent(self) -> AgentConnection | None:
        """See GuestProbe."""
        self.asked += 1
        return self.connection

    async def connect(self, port: int, timeout: float) -> socket.socket:
        """See GuestProbe."""
        self.ports.append(port)
        self.on_connect(len(self.ports))
        return await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port), timeout)

    def said(self, place: int) -> tuple[bytes, int]:
        """See GuestProbe."""
        return self.console[place:], len(self.console)

    def panic(self) -> str | None:
        """See GuestProbe."""
        return self.panicked

    async def alive(self) -> bool:
        """See GuestProbe."""
        self.tries += 1
        return self.lives(self.tries)


@contextlib.asynccontextmanager
async def serving(*behaviours: Serve) -> AsyncIterator[int]:
    """Yield the port of a server: each connection gets the next behaviour, the last one stays."""
    left = list(behaviours)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await (left.pop(0) if len(left) > 1 else left[0])(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def stays(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Keep the connection until the client goes."""
    await reader.read()


async def hangs_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Close at once."""


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, as SSH does."""
    writer.write(b"SSH-2.0-x\r\n")
    await reader.read()


async def resets(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Abort the connection, so that the client gets a reset."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def says(answer: bytes) -> Serve:
    """Return a behaviour: read a request's head and send ``answer``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return serve


def status(code: int, more: str = "") -> Serve:
    """Return a behaviour: answer with an HTTP status."""
    return says(f"HTTP/1.1 {code} Some\r\nContent-Length: 0\r\n{more}\r\n".encode())


def unused_port() -> int:
    """Return a port of the loopback where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("behaviour", [stays, greets])
async def test_a_port_is_ready_when_it_accepts_and_stays_open(behaviour: Serve) -> None:
    async with serving(behaviour) as port:
        assert await wait_ready(Ready(port=port, timeout=20), probe=Loopback()) >= 0


async def test_a_port_that_opens_later_is_waited_for() -> None:
    async with serving(hangs_up, resets, hangs_up, stays) as port:
        probe = Loopback()
        await wait_ready(Ready(port=port, timeout=20), probe=probe)
        assert len(probe.ports) == 4


@pytest.mark.parametrize(
    ("behaviour", "seen"),
    [(hangs_up, "closes the connection at once"), (resets, "connection reset")],
)
async def test_a_port_that_never_stays_open_is_told(behaviour: Serve, seen: str) -> None:
    async with serving(behaviour) as port:
        with pytest.raises(GuestError, match=f"port {port}: .*({seen}), [0-9]+ tries in") as caught:
            await wait_ready(Ready(port=port, timeout=SHORT), probe=Loopback())
        assert caught.value.hint


async def test_a_closed_port_is_told_with_the_number_of_tries() -> None:
    port, probe = unused_port(), Loopback()
    with pytest.raises(GuestError, match=f"port {port}: connection refused, [0-9]+ tries in 1 s"):
        await wait_ready(Ready(port=port, timeout=SHORT), probe=probe)
    assert 2 <= len(probe.ports) <= 12  # the pauses grow


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (TimeoutError(), "no answer"),
        (OSError(113, "No route to host"), "no route to host"),
        (ConnectionError("the keeper is gone\x1b[0m"), "the keeper is gone"),
    ],
)
async def test_other_failures_to_connect_are_told(error: OSError, seen: str) -> None:
    def fail(_tries: int) -> None:
        raise error

    with pytest.raises(GuestError, match=seen):
        await wait_ready(Ready(port=1, timeout=0.3), probe=Loopback(on_connect=fail))


async def test_a_connection_that_hangs_ends_at_the_time_limit() -> None:
    class Hanging(Loopback):
        async def connect(self, port: int, timeout: float) -> socket.socket:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(GuestError, match="1 try in 0 s"):
        await wait_ready(Ready(port=1, timeout=0.2), probe=Hanging())


async def test_the_deadline_of_the_caller_counts() -> None:
    now = asyncio.get_running_loop().time()
    with pytest.raises(GuestError, match=r"tr(y|ies) in 0 s"):
        await wait_ready(Ready(port=unused_port()), probe=Loopback(), deadline=now + 0.2)


async def test_a_guest_that_answers_is_not_asked_whether_it_lives() -> None:
    async with serving(stays) as port:
        probe = Loopback()
        await wait_ready(Ready(port=port, timeout=10), probe=probe)
    assert probe.tries == 0


async def test_a_vm_that_stops_ends_the_wait_at_once() -> None:
    probe = Loopback(lives=lambda tries: tries < 3)
    with pytest.raises(GuestError, match=r"the VM stopped before that.*connection refused"):
        await wait_ready(Ready(port=unused_port(), timeout=3600), probe=probe)


@pytest.mark.parametrize("code", [200, 204, 301, 302])
async def test_a_url_is_ready_with_a_good_status(code: int) -> None:
    async with serving(status(503), hangs_up, status(code, "Location: /x\r\n")) as port:
        probe = Loopback()
        await wait_ready(Ready(url=f"http://web:{port}/a", timeout=20), probe=probe)
        assert probe.ports == [port] * 3


async def test_a_url_is_asked_for_as_it_is_written() -> None:
    asked = asyncio.get_running_loop().create_future()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nbody")

    async with serving(note) as port:
        url = f"http://me@shop.example:{port}/a/b?c=d#e"
        await wait_ready(Ready(url=url, timeout=20), probe=Loopback())
    lines = (await asked).decode().split("\r\n")
    assert lines[0] == "GET /a/b?c=d HTTP/1.1"
    assert f"Host: shop.example:{port}" in lines


@pytest.mark.parametrize(
    ("behaviour", "seen"),
    [
        (status(404), "HTTP status 404"),
        (says(b"SSH-2.0-OpenSSH\r\n\r\n"), "not HTTP"),
        (says(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000), "not HTTP"),
        (says(b"\0" * 100_000), "not HTTP"),
        (hangs_up, "without an answer|not HTTP|connection reset"),
    ],
)
async def test_a_url_that_never_answers_well_is_told(behaviour: Serve, seen: str) -> None:
    async with serving(behaviour) as port:
        with pytest.raises(GuestError, match=f"({seen}).*, [0-9]+ tries") as caught:
            await wait_ready(Ready(url=f"http://x:{port}/", timeout=SHORT), probe=Loopback())
        assert caught.value.message.isprintable()


async def test_a_server_that_says_nothing_costs_one_try_at_a_time() -> None:
    async with serving(stays) as port:
        probe = Loopback()
        with pytest.raises(GuestError):
            await wait_ready(Ready(url=f"http://x:{port}/", timeout=SHORT), probe=probe)
        assert len(probe.ports) == 1


@pytest.mark.parametrize(
    "url", ["http://x:99999/", "http://x/\x01", "http://x/größe", "http://[x/"]
)
async def test_a_url_that_cannot_be_asked_for_is_invalid_input(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await wait_ready(Ready(url=url), probe=Loopback())
    assert caught.value.field == "ready.url"


async def test_without_a_check_the_agent_must_answer() -> None:
    with pytest.raises(GuestError, match="no connection to the guest agent") as caught:
        await wait_ready(Ready(timeout=0.3), probe=Loopback())
    assert caught.value.hint
    async with connected() as (agent, _fake):
        await wait_ready(Ready(timeout=20), probe=Loopback(agent))


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[tuple[AgentConnection, FakeAgent]]:
    """Yield a connection to an agent that hears nothing."""
    async with connected() as (agent, fake):
        fake.deaf.set()
        yield agent, fake


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_LOOK", 0.01)


async def test_a_silent_agent_is_told() -> None:
    async with silent() as (agent, _fake):
        with pytest.raises(GuestError, match="guest agent: "):
            await wait_ready(Ready(timeout=0.3), probe=Loopback(agent))


@pytest.mark.usefixtures("_looks_often")
async def test_a_vm_that_stops_ends_the_wait_for_its_agent() -> None:
    async with silent() as (agent, _fake):
        probe = Loopback(agent, lives=lambda tries: tries < 3)
        with pytest.raises(GuestError, match=r"the VM stopped before that.*no answer yet"):
            await wait_ready(Ready(timeout=3600), probe=probe)
    assert probe.tries == 3


@pytest.mark.usefixtures("_looks_often")
async def test_a_panic_ends_the_wait_for_an_agent() -> None:
    async with silent() as (agent, _fake):
        with pytest.raises(GuestError, match=r"panicked before that: not syncing"):
            await wait_ready(Ready(timeout=3600), probe=Loopback(agent, panicked="not syncing"))


@pytest.mark.usefixtures("_looks_often")
async def test_a_look_at_the_vm_does_not_break_off_what_its_agent_was_asked() -> None:
    async with silent() as (agent, fake):

        def hears_at_last(tries: int) -> bool:
            if tries == 3:
                fake.deaf.clear()
            return True

        probe = Loopback(agent, lives=hears_at_last)
        await wait_ready(Ready(timeout=3600), probe=probe)
        assert probe.tries >= 3
        assert probe.asked == 1


async def test_an_agent_whose_channel_breaks_may_come_back() -> None:
    async with connected() as (first, fake), connected() as (second, _other):
        fake.writer.close()
        probe = Loopback(first)

        def replace(tries: int) -> bool:
            if tries == 3:
                probe.connection = second
            return True

        probe.lives = replace
        await wait_ready(Ready(timeout=20), probe=probe)
        assert probe.tries == 3


async def test_a_command_must_end_with_status_0() -> None:
    async with connected() as (agent, fake):
        codes = [1, 2, 0]

        async def status_of(fake: FakeAgent, request: Request) -> None:
            await fake.answer(request, {"exited": True, "exitcode": codes.pop(0)})

        fake.handlers["guest-exec"] = answering({"pid": 1})
        fake.handlers["guest-exec-status"] = status_of
        await wait_ready(Ready(command="pg_isready", timeout=20), probe=Loopback(agent))
        assert codes == []
        assert fake.asked("guest-exec")[0]["arguments"]["arg"] == ["-c", "pg_isready"]


async def test_a_command_that_never_succeeds_is_told_with_what_it_said() -> None:
    async with connected() as (agent, fake):
        done = {"exited": True, "exitcode": 2, "err-data": encoded(b"no\x1b[1m response\n")}
        fake.handlers["guest-exec"] = answering({"pid": 1})
        fake.handlers["guest-exec-status"] = answering(done)
        with pytest.raises(GuestError, match=r"command 'pg': exit status 2 \(no .*response\), "):
            await wait_ready(Ready(command="pg", timeout=0.3), probe=Loopback(agent))


async def test_a_command_that_is_blocked_ends_the_wait_at_once() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = refusing("has been disabled", "CommandNotFound")
        with pytest.raises(GuestError, match="blocked"):
            await wait_ready(Ready(command="pg", timeout=3600), probe=Loopback(agent))


def with_files(fake: FakeAgent, files: dict[str, bytes]) -> None:
    """Script a guest that has ``files``, which may change, and no other."""
    opened: list[str] = []

    async def open_file(fake: FakeAgent, request: Request) -> None:
        path = request["arguments"]["path"]
        if path in files:
            opened.append(path)
            await fake.answer(request, len(opened) - 1)
        else:
            await fake.refuse(request, f"failed to open file '{path}': No such file or directory")

    async def read(fake: FakeAgent, request: Request) -> None:
        content = files[opened[request["arguments"]["handle"]]]
        answer = {"count": len(content), "buf-b64": encoded(content), "eof": True}
        await fake.answer(request, answer)

    fake.handlers["guest-file-open"] = open_file
    fake.handlers["guest-file-read"] = read


RESULT = "/run/cloud-init/result.json"
GOOD = json.dumps({"v1": {"datasource": "DataSourceNoCloud", "errors": []}}).encode()


async def test_cloud_init_has_to_finish() -> None:
    async with connected() as (agent, fake):
        files: dict[str, bytes] = {}
        with_files(fake, files)
        probe = Loopback(agent)

        def finish(tries: int) -> bool:
            if tries == 4:
                files[RESULT] = GOOD
            return True

        probe.lives = finish
        await wait_ready(Ready(timeout=20), probe=probe, cloud_init=True)
        assert probe.tries == 4


async def test_cloud_init_that_is_switched_off_is_not_waited_for() -> None:
    async with connected() as (agent, fake):
        with_files(fake, {"/run/cloud-init/disabled": b""})
        await wait_ready(Ready(timeout=20), probe=Loopback(agent), cloud_init=True)


async def test_cloud_init_that_never_finishes_is_told() -> None:
    async with connected() as (agent, fake):
        with_files(fake, {})
        with pytest.raises(GuestError, match="guest agent: cloud-init has not finished"):
            await wait_ready(Ready(timeout=0.3), probe=Loopback(agent), cloud_init=True)


# Recorded: cloud-init 22.4.2 after a script with a program that is not there.
OUTPUT_LOG = b"""\
2026-11-24 15:01:16,305 - subp.py[DEBUG]: Running command ['/var/lib/cloud/instance/scripts/user']
/var/lib/cloud/instance/scripts/user: 3: nginxx: not found
2026-11-24 15:01:16,438 - subp.py[DEBUG]: Unexpected error while running command.
Command: ['/var/lib/cloud/instance/scripts/user']
Exit code: 127
Reason: -
Stdout: -
Stderr: -
2026-11-24 15:01:16,449 - cc_scripts_user.py[WARNING]: Failed to run module scripts_user
Traceback (most recent call last):
RuntimeError: Runparts: 1 failures (user) in 1 attempted commands
Cloud-init v. 22.4.2 finished at Tue, 24 Nov 2026 15:01:16 +0000. Up 59.33 seconds
2026-11-24 15:01:17,333 - handlers.py[DEBUG]: finish: modules-final: FAIL: running modules
"""


async def test_an_error_of_cloud_init_is_the_reason_with_what_its_log_says() -> None:
    async with connected() as (agent, fake):
        errors = ["('scripts_user', RuntimeError('Runparts: 1 failures'))"]
        files = {
            RESULT: json.dumps({"v1": {"errors": errors}}).encode(),
            "/var/log/cloud-init-output.log": OUTPUT_LOG,
        }
        with_files(fake, files)
        with pytest.raises(
            GuestError, match=r"scripts_user.*its log says: .*nginxx: not found"
        ) as e:
            await wait_ready(Ready(timeout=3600), probe=Loopback(agent), cloud_init=True)
        assert e.value.hint
        assert "cloud-init-output.log" in e.value.hint


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"E: no such package\nx - cc_apt.py[ERROR]: it failed\nlater\n", "E: no such package"),
        (b"x - a.py[WARNING]: deprecated\nreason\nx - b.py[WARNING]: Failed to run\n", "reason"),
        (b"one\ntwo\n", "two"),
        (b"x - a.py[DEBUG]: only records\n", "x - a.py[DEBUG]: only records"),
    ],
)
def test_the_last_words_are_those_before_the_failure(log: bytes, said: str) -> None:
    assert last_words(log) == said


@pytest.mark.parametrize("result", [b"", b"{", b"[]", b'{"v1": 5}', b"[" * 60_000])
async def test_a_result_of_cloud_init_that_cannot_be_read_is_an_error(result: bytes) -> None:
    async with connected() as (agent, fake):
        with_files(fake, {RESULT: result})
        with pytest.raises(GuestError, match="its result cannot be read"):
            await wait_ready(Ready(timeout=3600), probe=Loopback(agent), cloud_init=True)


async def test_a_port_that_stays_closed_is_told_with_cloud_inits_error() -> None:
    async with connected() as (agent, fake):
        with_files(fake, {RESULT: json.dumps({"v1": {"errors": ["apt failed"]}}).encode()})
        check = Ready(port=unused_port(), timeout=0.3)
        with pytest.raises(GuestError, match=r"connection refused, .* s; cloud-init failed: .*apt"):
            await wait_ready(check, probe=Loopback(agent), cloud_init=True)


async def test_a_panic_ends_the_wait() -> None:
    probe = Loopback(panicked="Kernel panic - not syncing: no init")
    with pytest.raises(GuestError, match=r"'login:' on the console: .*panicked.*no init"):
        await wait_ready(Ready(console="login:", timeout=60), probe=probe)
    assert probe.tries == 1


async def test_a_text_on_the_console_makes_it_ready() -> None:
    probe = Loopback(console=b"booting\r\ndebian log")

    def lives(tries: int) -> bool:
        if tries == 3:  # the text comes in two pieces
            probe.console += b"in: "
        return True

    probe.lives = lives
    await wait_ready(Ready(console="debian login:", timeout=60), probe=probe)
    assert probe.tries == 3


async def test_a_text_that_does_not_come_is_told_with_what_was_said() -> None:
    probe = Loopback(console=b"grub rescue>\r\n\x1b[2J \n")
    with pytest.raises(GuestError, match=r"'login:' on the console: .*said last") as caught:
        await wait_ready(Ready(console="login:", timeout=0.3), probe=probe)
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp:22", Ready(port=22)),
        ("console:login: ", Ready(console="login: ")),
        ("http://web/x", Ready(url="http://web/x")),
    ],
)
def test_a_check_is_said_in_one_text(text: str, expected: Ready) -> None:
    assert Ready.model_validate(text) == expected
    assert not expected.by_agent


@pytest.mark.parametrize("text", ["", "22", "tcp:", "tcp:x", "tcp:70000", "udp:53", "console:"])
def test_other_texts_are_no_check(text: str) -> None:
    with pytest.raises(ValidationError):
        Ready.model_validate(text)
