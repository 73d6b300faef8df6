"""Agents that want to fill the daemon's memory, and replies that no agent would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import GuestError, HanokError, InvalidInput
from hanok.guest.agent import AgentConnection, ExecResult
from hanok.guest.evidence import collect_evidence
from hanok.guest.wire import LINE_LIMIT, OUTPUT_LIMIT, WireReader, parse_reply
from hanok.model.vm import Mode
from hanok.units import GIB, KIB, MIB
from tests.fuzz import bounded
from tests.guest.fake_agent import FakeAgent, Handler, Request, answering, connected, line

MOST = 16 * MIB
_PIECE = 256 * KIB


@contextlib.contextmanager
def costing_at_most(size: int) -> Iterator[None]:
    """See that Python's memory never grows by more than ``size`` bytes meanwhile."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= size


def endless(start: bytes, filler: bytes, most: int = GIB) -> Handler:
    """Return a handler that answers by a line of ``most`` bytes that does not end."""

    async def handle(fake: FakeAgent, _request: Request) -> None:
        await fake.send(start)
        block = filler * (_PIECE // len(filler))
        with contextlib.suppress(ConnectionError):
            for _ in range(most // len(block)):
                await fake.send(block)

    return handle


@pytest.mark.parametrize("much", [False, True], ids=["ours", "a user's"])
@pytest.mark.parametrize("filler", [b"A", b"[", b"\\u0041", "😀".encode()], ids=range(4))
async def test_a_line_of_a_gigabyte_costs_little_memory(much: bool, filler: bytes) -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = answering({"pid": 7})
        start = b'{"return": {"exited": true, "out-data": "'
        fake.handlers["guest-exec-status"] = endless(start, filler)
        await agent.ping()
        with costing_at_most(MOST), pytest.raises(GuestError, match="line of more than"):
            await agent.exec(["true"], much=much)
        assert agent.closed


@pytest.mark.parametrize("filler", ["😀", "é"])
async def test_a_long_line_of_wide_characters_is_no_reply(filler: str) -> None:
    size = OUTPUT_LIMIT - MIB
    data = filler.encode() * (size // len(filler.encode()))
    whole = b'{"return": {"exited": true, "exitcode": 0, "out-data": "' + data + b'"}}'
    with costing_at_most(MOST):
        assert parse_reply(whole) is None


async def test_much_output_comes_whole_and_little_is_no_matter() -> None:
    async with connected() as (agent, fake):
        text = "QUJD" * (4 * MIB)
        fake.handlers["guest-exec"] = answering({"pid": 7})
        fake.handlers["guest-exec-status"] = answering(
            {"exited": True, "exitcode": 0, "out-data": text}
        )
        done = await agent.exec(["true"], much=True)
        assert done.stdout == b"ABC" * (4 * MIB)
        with pytest.raises(GuestError, match=f"more than {LINE_LIMIT} bytes"):
            await agent.exec(["true"])


async def test_what_is_in_step_after_a_long_line_stays_in_step() -> None:
    """A long answer and the next one in the same piece: not a byte is lost or doubled."""
    reader = asyncio.StreamReader()
    wire = WireReader(reader)
    first = b"A" * (3 * LINE_LIMIT + 5)
    reader.feed_data(first + b"\nsecond\nthird")
    assert await wire.read_line(1, OUTPUT_LIMIT) == first
    assert await wire.read_line(1, OUTPUT_LIMIT) == b"second"
    assert wire.buffered == 5


async def test_a_long_line_that_was_given_up_leaves_nothing_behind() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = answering({"pid": 7})
        sent, late = asyncio.Event(), asyncio.Event()

        async def never_ends(fake: FakeAgent, _request: Request) -> None:
            await fake.send(b"A" * (3 * LINE_LIMIT))
            sent.set()
            await late.wait()
            await fake.send(b'BBB"}}\n')

        fake.handlers["guest-exec-status"] = never_ends
        task = asyncio.create_task(agent.exec(["true"], timeout=60, much=True))
        await sent.wait()
        task.cancel()
        late.set()
        fake.handlers["guest-exec-status"] = answering({"exited": True, "exitcode": 3})
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await agent.exec(["true"]) == ExecResult(3, b"", b"")


# --- replies ------------------------------------------------------------------------------

SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
FIELDS = (
    "return", "error", "id", "pid", "exited", "exitcode", "signal", "out-data", "err-data", "class",
    "desc", "buf-b64", "eof", "count", "supported_commands", "name", "enabled",
)  # fmt: skip
REPLIES = st.dictionaries(st.sampled_from(FIELDS), JSON | st.dictionaries(
    st.sampled_from(FIELDS), JSON, max_size=6
), max_size=5)  # fmt: skip


@bounded(400)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_reply_or_none(data: bytes) -> None:
    found = parse_reply(data)
    assert found is None or "return" in found or "error" in found


async def _talk(reply: bytes, is_in_step: bool) -> None:
    """Do all that the daemon does with an agent, which answers everything with ``reply``."""
    async with connected() as (agent, fake):

        async def answer(fake: FakeAgent, request: Request) -> None:
            with contextlib.suppress(ConnectionError):
                await fake.send(reply.replace(b'"ID"', str(request["id"]).encode()) + b"\n")

        for command in (
            "guest-exec", "guest-exec-status", "guest-info", "guest-file-open", "guest-file-read",
            "guest-file-write", "guest-file-close", "guest-set-time", "guest-ping",
        ):  # fmt: skip
            fake.handlers[command] = answer
        if not is_in_step:
            fake.handlers["guest-sync-delimited"] = answer
        await _each(agent)


async def _each(agent: AgentConnection) -> None:
    limit = 0.02
    for work in (
        lambda: agent.exec(["true"], timeout=limit),
        lambda: agent.call("guest-get-osinfo", timeout=limit),
        lambda: collect_evidence(agent, Mode.PARA),
    ):
        with contextlib.suppress(HanokError, TimeoutError):
            async with asyncio.timeout(4 * limit):
                await work()


@bounded(40, 5000)
@given(
    st.binary(max_size=120)
    | st.fixed_dictionaries({"id": st.just("ID"), "return": JSON | REPLIES}).map(
        lambda reply: json.dumps(reply).encode()
    )
    | st.fixed_dictionaries({"id": st.just("ID"), "error": JSON | REPLIES}).map(
        lambda reply: json.dumps(reply).encode()
    ),
    st.booleans(),
)
def test_an_agent_that_answers_anything_gets_an_error_or_an_answer(
    reply: bytes, is_in_step: bool
) -> None:
    asyncio.run(_talk(reply, is_in_step))


@bounded(300)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_a_command_is_refused_or_arrives_word_by_word(words: list[str]) -> None:
    from hanok.guest.agent import _exec_arguments

    try:
        told = json.loads(json.dumps(_exec_arguments(words)))
    except InvalidInput:
        return
    assert [told["path"], *told["arg"]] == words


def test_the_answer_of_fields_that_real_agents_send_is_taken() -> None:
    reply = line({"return": {"exited": True, "exitcode": 0, "out-data": "QQ=="}, "id": 3})
    assert parse_reply(reply) is not None
