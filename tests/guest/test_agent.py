"""Commands and files by an agent that fails in the ways that a real one can."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hanok.errors import AgentRefused, AgentUnavailable, GuestError, InvalidInput, TimedOut
from hanok.guest.agent import INPUT_LIMIT, PIECE
from tests.guest.fake_agent import FakeAgent, Request, answering, connected, refusing, silent

KILLER = 99


def encoded(data: bytes) -> str:
    """Return ``data`` as the agent sends it."""
    return base64.b64encode(data).decode()


def runs(*statuses: dict[str, Any]) -> Callable[[FakeAgent], None]:
    """Return a script: one process, whose polls give ``statuses``, the last one for ever."""

    def prepare(fake: FakeAgent) -> None:
        left = list(statuses)
        killed = asyncio.Event()

        async def status(fake: FakeAgent, request: Request) -> None:
            if killed.is_set() or request["arguments"]["pid"] == KILLER:
                await fake.answer(request, {"exited": True, "signal": 9})
            else:
                await fake.answer(request, left.pop(0) if len(left) > 1 else left[0])

        async def start(fake: FakeAgent, request: Request) -> None:
            script = request["arguments"]["arg"][1:2]
            if script and "kill -KILL" in script[0]:
                killed.set()
            await fake.answer(request, {"pid": KILLER if killed.is_set() else 7})

        fake.handlers["guest-exec"] = start
        fake.handlers["guest-exec-status"] = status

    return prepare


async def test_exec_returns_status_and_both_streams() -> None:
    async with connected() as (agent, fake):
        out, err = encoded(b"out\xff"), encoded(b"err")
        done = {"exited": True, "exitcode": 3, "out-data": out, "err-data": err}
        runs({"exited": False}, {"exited": False}, done)(fake)
        result = await agent.exec(["ls", "-l"], input=b"\0in", env={"A": "b=c"})
        assert (result.exit_status, result.stdout, result.stderr) == (3, b"out\xff", b"err")
        assert not result.truncated
        sent = fake.asked("guest-exec")[0]["arguments"]
        assert sent["path"] == "ls"
        assert sent["arg"] == ["-l"]
        assert sent["input-data"] == encoded(b"\0in")
        assert sent["env"][1] == "A=b=c"
        assert sent["env"][0].startswith("PATH=/")


async def test_a_signal_is_told_as_shells_do_and_truncation_is_told() -> None:
    async with connected() as (agent, fake):
        runs({"exited": True, "signal": 9, "out-truncated": True})(fake)
        result = await agent.exec(["x"])
        assert result.exit_status == 137
        assert result.truncated


@pytest.mark.parametrize(
    "status",
    [
        5,
        [],
        {"exited": True},
        {"exited": True, "exitcode": "0"},
        {"exited": True, "exitcode": True},
        {"exited": True, "signal": None},
        {"exited": True, "exitcode": 0, "out-data": "not base64!"},
        {"exited": True, "exitcode": 0, "err-data": "QQ"},
        {"exited": True, "exitcode": 0, "out-data": 7},
        {"exited": True, "exitcode": 0, "out-data": "größer"},
    ],
)
async def test_malformed_statuses_are_guest_errors(status: Any) -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = answering({"pid": 7})
        fake.handlers["guest-exec-status"] = answering(status)
        with pytest.raises(GuestError, match="guest-exec-status"):
            await agent.exec(["x"], timeout=20)


@pytest.mark.parametrize("answer", [None, {}, {"pid": "7"}, {"pid": True}, [7]])
async def test_malformed_starts_are_guest_errors(answer: Any) -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = answering(answer)
        with pytest.raises(GuestError, match="malformed"):
            await agent.exec(["x"])


@pytest.mark.parametrize(
    ("argv", "extra"),
    [
        ([], {}),
        ([""], {}),
        (["a\0b"], {}),
        (["a", "\udc80"], {}),
        (["a"], {"env": {"X": "\0"}}),
        (["a"], {"input": b"x" * (INPUT_LIMIT + 1)}),
    ],
)
async def test_what_the_agent_cannot_take_is_invalid_input(
    argv: list[str], extra: dict[str, Any]
) -> None:
    async with connected() as (agent, fake):
        with pytest.raises(InvalidInput) as caught:
            await agent.exec(argv, **extra)
        assert caught.value.field in ("command", "input")
        assert fake.requests == []


async def test_polls_become_seldom() -> None:
    async with connected() as (agent, fake):
        runs({"exited": False})(fake)
        with pytest.raises(TimedOut):
            await agent.exec(["sleep", "9"], timeout=1.5)
        polls = [r for r in fake.asked("guest-exec-status") if r["arguments"]["pid"] == 7]
        assert len(polls) < 30  # 5 ms each would be 300


async def test_a_command_that_does_not_end_is_killed_in_the_guest() -> None:
    async with connected() as (agent, fake):
        runs({"exited": False})(fake)
        with pytest.raises(TimedOut, match="sleep did not end") as caught:
            await agent.exec(["sleep", "9"], timeout=0.2)
        assert caught.value.hint
        _, kill = fake.asked("guest-exec")
        assert kill["arguments"]["arg"][-1] == "7"


async def test_a_cancelled_command_is_killed_in_the_guest() -> None:
    async with connected() as (agent, fake):
        runs({"exited": False})(fake)
        polled = asyncio.Event()
        answer = fake.handlers["guest-exec-status"]

        async def note(fake: FakeAgent, request: Request) -> None:
            await answer(fake, request)
            polled.set()

        fake.handlers["guest-exec-status"] = note
        task = asyncio.create_task(agent.exec(["sleep", "9"], timeout=100))
        await polled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(fake.asked("guest-exec")) == 2


async def test_an_agent_that_dies_meanwhile_is_told() -> None:
    async with connected() as (agent, fake):

        async def die(fake: FakeAgent, _request: Request) -> None:
            fake.writer.close()

        fake.handlers["guest-exec"] = answering({"pid": 7})
        fake.handlers["guest-exec-status"] = die
        with pytest.raises(AgentUnavailable):
            await agent.exec(["reboot"], timeout=3600)


async def test_blocked_exec_says_what_to_do() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = refusing(
            "Command guest-exec has been disabled", "CommandNotFound"
        )
        with pytest.raises(AgentRefused, match="blocked") as caught:
            await agent.write_file("/x", b"")
        assert caught.value.hint
        assert "restart qemu-guest-agent" in caught.value.hint


def holds(content: bytes, **changes: Any) -> Callable[[FakeAgent], None]:
    """Return a script: one file with ``content``, answers changed as asked."""

    def prepare(fake: FakeAgent) -> None:
        at = 0

        async def read(fake: FakeAgent, request: Request) -> None:
            nonlocal at
            piece = content[at : at + request["arguments"]["count"]]
            at += len(piece)
            answer = {"count": len(piece), "buf-b64": encoded(piece), "eof": at >= len(content)}
            await fake.answer(request, answer | changes)

        fake.handlers["guest-file-open"] = answering(1000)
        fake.handlers["guest-file-read"] = read

    return prepare


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
async def test_files_are_read_in_small_pieces_and_closed(size: int) -> None:
    async with connected() as (agent, fake):
        content = bytes(index % 251 for index in range(size))
        holds(content)(fake)
        assert await agent.read_file("/x") == content
        assert all(r["arguments"]["count"] == PIECE for r in fake.asked("guest-file-read"))
        assert len(fake.asked("guest-file-close")) == 1


async def test_a_file_without_end_is_cut_and_closed() -> None:
    async with connected() as (agent, fake):
        holds(b"x" * 100, eof=False, **{"buf-b64": encoded(b"y" * PIECE)})(fake)
        with pytest.raises(GuestError, match="longer than"):
            await agent.read_file("/dev/zero", limit=10 * PIECE)
        assert len(fake.asked("guest-file-close")) == 1


async def test_an_empty_piece_ends_a_file_that_never_says_so() -> None:
    async with connected() as (agent, fake):
        holds(b"x" * 100, eof=False)(fake)
        async with asyncio.timeout(10):
            assert await agent.read_file("/x") == b"x" * 100


@pytest.mark.parametrize("piece", [encoded(b"x" * (PIECE + 1)), "?", 5, None])
async def test_malformed_pieces_are_guest_errors_and_the_file_is_closed(piece: Any) -> None:
    async with connected() as (agent, fake):
        holds(b"x", **{"buf-b64": piece})(fake)
        with pytest.raises(GuestError, match="guest-file-read"):
            await agent.read_file("/x")
        assert len(fake.asked("guest-file-close")) == 1


def writes(fake: FakeAgent, **handlers: Any) -> None:
    """Script a guest in which writing a file works, but for ``handlers``."""
    names = encoded(b"/etc/.hanok-1\n/etc/x\n")
    runs({"exited": True, "exitcode": 0, "out-data": names})(fake)
    fake.handlers["guest-file-open"] = answering(1000)

    async def write(fake: FakeAgent, request: Request) -> None:
        await fake.answer(
            request, {"count": len(base64.b64decode(request["arguments"]["buf-b64"]))}
        )

    fake.handlers["guest-file-write"] = write
    for name, handler in handlers.items():
        fake.handlers[name.replace("_", "-")] = handler


async def test_files_are_written_in_small_pieces_beside_the_target() -> None:
    async with connected() as (agent, fake):
        writes(fake)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"a" * (2 * PIECE + 1)
            yield b""
            yield b"b"

        await agent.write_file("/etc/x", pieces(), 0o640)
        sent = [base64.b64decode(r["arguments"]["buf-b64"]) for r in fake.asked("guest-file-write")]
        assert b"".join(sent) == b"a" * (2 * PIECE + 1) + b"b"
        assert max(map(len, sent)) <= PIECE
        assert fake.asked("guest-file-open")[0]["arguments"]["path"] == "/etc/.hanok-1"
        assert fake.asked("guest-exec")[-1]["arguments"]["arg"][-3:] == [
            "/etc/.hanok-1",
            "/etc/x",
            "640",
        ]


async def test_a_pipe_is_written_into_as_it_is() -> None:
    async with connected() as (agent, fake):
        writes(fake)
        await agent.write_into("/run/pipe", b"a line\n")
        (opened,) = fake.asked("guest-file-open")
        assert opened["arguments"] == {"path": "/run/pipe", "mode": "w"}
        (sent,) = fake.asked("guest-file-write")
        assert base64.b64decode(sent["arguments"]["buf-b64"]) == b"a line\n"
        assert len(fake.asked("guest-file-close")) == 1
        assert fake.asked("guest-exec") == []


@pytest.mark.parametrize(
    "broken",
    [
        {"guest_file_write": refusing("No space left on device")},
        {"guest_file_write": answering({"count": 0})},
        {"guest_file_write": answering(None)},
        {"guest_file_flush": refusing("No space left on device")},
        {"guest_file_open": answering("handle")},
    ],
    ids=["write-refused", "write-short", "write-malformed", "flush-refused", "open-malformed"],
)
async def test_a_write_that_fails_leaves_nothing(broken: dict[str, Any]) -> None:
    async with connected() as (agent, fake):
        writes(fake, **broken)
        with pytest.raises(GuestError):
            await agent.write_file("/etc/x", b"data")
        last = fake.asked("guest-exec")[-1]["arguments"]
        assert (last["path"], last["arg"]) == ("rm", ["-f", "--", "/etc/.hanok-1"])


async def test_a_source_that_fails_leaves_nothing() -> None:
    async with connected() as (agent, fake):
        writes(fake)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            raise ConnectionResetError("the client went away")

        with pytest.raises(ConnectionResetError):
            await agent.write_file("/etc/x", pieces())
        assert fake.asked("guest-exec")[-1]["arguments"]["path"] == "rm"
        assert len(fake.asked("guest-file-close")) == 1


async def test_an_agent_that_goes_silent_while_closing_does_not_hide_the_error() -> None:
    async with connected() as (agent, fake):
        holds(b"x", **{"buf-b64": "?"})(fake)
        fake.handlers["guest-file-close"] = silent
        with pytest.raises(GuestError, match="not base64"):
            await agent.read_file("/x")
