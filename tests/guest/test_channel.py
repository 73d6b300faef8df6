"""The agent's channel with an agent that misbehaves in every way we know of."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.errors import AgentRefused, AgentUnavailable, GuestError
from hanok.guest.channel import _SLOW, _USUAL, _Pace, _Syncs
from hanok.guest.wire import LINE_LIMIT, WireReader, parse_reply
from hanok.units import MIB
from tests.guest.fake_agent import (
    FakeAgent,
    Request,
    answering,
    connected,
    line,
    refusing,
    sending,
    silent,
)

SOON = 0.3


async def test_ping_and_call() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-get-time"] = answering(42)
        await agent.ping()
        assert await agent.call("guest-get-time") == 42
        assert len(fake.asked("guest-sync-delimited")) == 1


@pytest.mark.parametrize(
    ("text", "kind", "expected", "hint"),
    [
        ("Command guest-exec has been disabled", "CommandNotFound", AgentRefused, "block list"),
        ("The command guest-exec has been disabled for this instance", "X", AgentRefused, "SSH"),
        ("The command guest-x has not been found", "CommandNotFound", AgentRefused, "update"),
        ("no\x1b[31m such\nfile" + "!" * 1000, "GenericError", GuestError, None),
    ],
)
async def test_error_replies_become_typed_errors(
    text: str, kind: str, expected: type[GuestError], hint: str | None
) -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = refusing(text, kind)
        with pytest.raises(GuestError) as caught:
            await agent.call("guest-exec")
        assert type(caught.value) is expected
        assert (hint is None) or (caught.value.hint and hint in caught.value.hint)
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 500
        await agent.ping(SOON)  # an error reply leaves both sides in step
        assert len(fake.asked("guest-sync-delimited")) == 1


async def test_silence_costs_the_time_limit_and_the_next_call_works() -> None:
    async with connected() as (agent, fake):
        fake.deaf.set()
        with pytest.raises(AgentUnavailable, match="did not answer guest-ping within"):
            await agent.ping(SOON)
        with pytest.raises(AgentUnavailable):
            await agent.sync(SOON)
        fake.deaf.clear()
        await agent.ping()


async def test_a_sync_that_gets_lost_is_sent_again() -> None:
    async with connected() as (agent, fake):
        lost = 2

        async def lossy(fake: FakeAgent, request: Request) -> None:
            if len(fake.asked("guest-sync-delimited")) > lost:
                await fake.answer(request, request["arguments"]["id"], prefix=b"\xff")

        fake.handlers["guest-sync-delimited"] = lossy
        await agent.sync(5)
        assert len(fake.asked("guest-sync-delimited")) == lost + 1


RUBBISH = [
    b"\n",
    b"hello\n",
    b"\x00\x01\x02\xfe\n",
    b"null\n",
    b"[1, 2]\n",
    b'{"return": \n',
    b'{"neither": 1}\n',
    b'{"return": ' + b"9" * 5000 + b"}\n",
    b'{"return": "\xc3\x28"}\n',
    b"[" * 200_000 + b"\n",
    b'{"return": ' + b"[" * 50_000 + b"\n",
    b'{"return": [' + b"[]," * 500_000 + b"[]]}\n",
    b"\xff\xff\xff\n",
    b'\xff{"return": 5}\n',
    b'{"event": "x", "return": {}, "id": 0}\n',
]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=range(len(RUBBISH)))
async def test_rubbish_before_an_answer_is_passed_over(rubbish: bytes) -> None:
    async with connected() as (agent, fake):

        async def handle(fake: FakeAgent, request: Request) -> None:
            await fake.send(rubbish)
            await fake.answer(request, 42)

        fake.handlers["guest-get-time"] = handle
        assert await agent.call("guest-get-time", timeout=10) == 42


@pytest.mark.parametrize("rubbish", RUBBISH, ids=range(len(RUBBISH)))
async def test_rubbish_instead_of_an_answer_costs_the_time_limit(rubbish: bytes) -> None:
    async with connected() as (agent, fake):
        await agent.ping()
        fake.handlers["guest-get-time"] = sending(rubbish.rstrip(b"\n"))
        with pytest.raises(AgentUnavailable):
            await agent.call("guest-get-time", timeout=SOON)
        await agent.ping()


async def test_answers_that_come_twice_are_not_taken_for_the_next() -> None:
    async with connected() as (agent, fake):

        async def twice(fake: FakeAgent, request: Request) -> None:
            for _ in range(2):
                await fake.answer(request, request["arguments"]["n"])

        fake.handlers["guest-echo"] = twice
        for number in range(20):
            assert await agent.call("guest-echo", {"n": number}) == number


@pytest.mark.parametrize("echoes", [True, False])
async def test_a_late_answer_is_not_taken_for_the_next(echoes: bool) -> None:
    async with connected() as (agent, fake):
        fake.echoes = echoes
        late: list[Request] = []

        async def keep(_fake: FakeAgent, request: Request) -> None:
            late.append(request)

        fake.handlers["guest-late"] = keep
        fake.handlers["guest-get-time"] = answering(42)
        with pytest.raises(AgentUnavailable):
            await agent.call("guest-late", timeout=SOON)
        await fake.answer(late[0], "late")
        assert await agent.call("guest-get-time") == 42


async def test_answers_out_of_order_find_their_requests() -> None:
    async with connected() as (agent, fake):

        async def others_first(fake: FakeAgent, request: Request) -> None:
            for shift in (2, 1, -1, 0):
                await fake.answer(request | {"id": request["id"] + shift}, shift)

        fake.handlers["guest-get-time"] = others_first
        for _ in range(3):
            assert await agent.call("guest-get-time") == 0


async def test_an_agent_that_echoes_no_ids_is_understood() -> None:
    async with connected() as (agent, fake):
        fake.echoes = False
        fake.handlers["guest-get-time"] = answering(42)
        for _ in range(3):
            assert await agent.call("guest-get-time") == 42


async def test_a_line_without_end_is_cut_off_and_the_connection_closed() -> None:
    sent = 0
    async with connected() as (agent, fake):

        async def endless(fake: FakeAgent, _request: Request) -> None:
            nonlocal sent
            await fake.send(b'{"return": "')
            while sent < 1024 * MIB:
                await fake.send(b"A" * MIB)
                sent += MIB

        fake.handlers["guest-exec-status"] = endless
        with pytest.raises(GuestError, match="line of more than") as caught:
            await agent.call("guest-exec-status", timeout=60)
        assert not isinstance(caught.value, AgentUnavailable)
        assert caught.value.hint
        assert agent.closed
        with pytest.raises(AgentUnavailable, match="gone"):
            await agent.ping()
    assert sent < LINE_LIMIT + 4 * MIB  # what sockets hold


async def test_rubbish_without_end_closes_the_connection() -> None:
    async with connected() as (agent, fake):

        async def endless(fake: FakeAgent, _request: Request) -> None:
            while True:
                await fake.send(b"A" * MIB)

        fake.handlers["guest-sync-delimited"] = endless
        with pytest.raises(GuestError, match="rubbish"):
            await agent.sync(60)
        assert agent.closed


async def test_sentinels_without_end_close_the_connection() -> None:
    async with connected() as (agent, fake):
        block = (b"\xff" + b"A" * 2000) * 500

        async def endless(fake: FakeAgent, _request: Request) -> None:
            while True:
                await fake.send(block)

        fake.handlers["guest-sync-delimited"] = endless
        with pytest.raises(GuestError, match="rubbish"):
            await agent.sync(60)


async def test_the_longest_real_answer_is_taken() -> None:
    async with connected() as (agent, fake):
        content = base64.b64encode(b"\0" * 16 * MIB).decode()
        fake.handlers["guest-exec"] = answering({"pid": 7})
        fake.handlers["guest-exec-status"] = answering(
            {"exited": True, "exitcode": 0, "out-data": content}
        )
        done = await agent.exec(["true"], timeout=60, much=True)
        assert done.stdout == b"\0" * 16 * MIB


async def test_a_channel_that_the_other_side_closed_is_of_no_use_before_anybody_asks() -> None:
    async with connected() as (agent, fake):
        await agent.ping()
        assert not agent.closed
        fake.writer.close()
        await fake.writer.wait_closed()
        for _ in range(10):  # until the loop has heard of it
            await asyncio.sleep(0)
        assert agent.closed


async def test_a_closed_channel_is_told_at_once() -> None:
    async with connected() as (agent, fake):

        async def hang_up(fake: FakeAgent, _request: Request) -> None:
            fake.writer.close()

        fake.handlers["guest-ping"] = hang_up
        with pytest.raises(AgentUnavailable, match="closed"):
            await agent.ping(60)
        assert agent.closed


async def test_a_cancelled_call_leaves_the_channel_usable() -> None:
    async with connected() as (agent, fake):
        asked = asyncio.Event()

        async def note(_fake: FakeAgent, _request: Request) -> None:
            asked.set()

        fake.handlers["guest-late"] = note
        task = asyncio.create_task(agent.call("guest-late"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await agent.ping()


async def test_calls_at_once_take_turns_and_get_their_own_answers() -> None:
    async with connected() as (agent, fake):

        async def echo(fake: FakeAgent, request: Request) -> None:
            await fake.answer(request, request["arguments"]["n"])

        fake.handlers["guest-echo"] = echo
        calls = [agent.call("guest-echo", {"n": number}) for number in range(50)]
        assert await asyncio.gather(*calls) == list(range(50))


async def test_a_guest_that_never_reads_costs_the_time_limit() -> None:
    async with connected() as (agent, fake):
        await agent.ping()

        async def stop_reading(_fake: FakeAgent, _request: Request) -> None:
            await asyncio.Event().wait()

        fake.handlers["guest-late"] = stop_reading
        for _ in range(3):
            with pytest.raises(AgentUnavailable):
                await agent.call("guest-late", {"x": "y" * MIB}, timeout=SOON)


async def test_supported_leaves_out_what_is_blocked() -> None:
    async with connected() as (agent, fake):
        commands = [
            {"name": "guest-ping", "enabled": True},
            {"name": "guest-exec", "enabled": False},
            "rubbish",
        ]
        fake.handlers["guest-info"] = answering({"supported_commands": commands})
        assert await agent.supported() == {"guest-ping"}
        fake.handlers["guest-info"] = answering({"supported_commands": 5})
        with pytest.raises(GuestError, match="malformed"):
            await agent.supported()


async def test_shutdown_is_taken_when_only_the_sync_is_answered() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-shutdown"] = silent
        await agent.shutdown()
        (request,) = fake.asked("guest-shutdown")
        assert request["arguments"] == {"mode": "powerdown"}
        await agent.ping()


async def test_shutdown_tells_a_refusal() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-shutdown"] = refusing("has been disabled", "CommandNotFound")
        with pytest.raises(AgentRefused):
            await agent.shutdown()


async def test_shutdown_is_taken_by_a_guest_that_goes_at_once() -> None:
    async with connected() as (agent, fake):

        async def go(fake: FakeAgent, _request: Request) -> None:
            fake.writer.close()

        fake.handlers["guest-shutdown"] = go
        await agent.shutdown()


async def test_the_clock_is_set_in_nanoseconds_and_needs_no_hardware_clock() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-set-time"] = refusing("hwclock failed to set hardware clock")
        await agent.set_time(1.5)
        assert fake.asked("guest-set-time")[0]["arguments"] == {"time": 1_500_000_000}
        fake.handlers["guest-set-time"] = refusing("Failed to set time to guest")
        with pytest.raises(GuestError, match="Failed to set time"):
            await agent.set_time(1.5)


def test_a_line_of_structure_is_not_even_parsed() -> None:
    assert parse_reply(line({"return": [[]] * 1000})) is not None
    assert parse_reply(line({"return": [[]] * 100_000})) is None
    assert parse_reply(line({"return": "A" * MIB})) is not None


def _cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [piece for piece in [*pieces, data[at:]] if piece]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"")), max_size=8),
    sizes=st.lists(st.integers(1, 40), max_size=30),
)
def test_lines_are_the_same_however_they_are_split(lines: list[bytes], sizes: list[int]) -> None:
    async def read_all() -> list[bytes]:
        reader = asyncio.StreamReader()
        wire = WireReader(reader)
        found: list[bytes] = []

        async def consume() -> None:
            with contextlib.suppress(AgentUnavailable):
                while True:
                    found.append(await wire.read_line())

        task = asyncio.create_task(consume())
        for piece in _cut(b"".join(text + b"\n" for text in lines), sizes):
            reader.feed_data(piece)
            await asyncio.sleep(0)
        reader.feed_eof()
        await task
        return found

    assert asyncio.run(read_all()) == lines


@settings(max_examples=60, deadline=None)
@given(rubbish=st.binary(max_size=3000), sizes=st.lists(st.integers(1, 500), max_size=20))
def test_any_rubbish_before_a_sync_is_dropped(rubbish: bytes, sizes: list[int]) -> None:
    async def find() -> bool:
        reader = asyncio.StreamReader()
        wire = WireReader(reader)
        for piece in _cut(rubbish + b"\xff" + line({"return": 7}), sizes):
            reader.feed_data(piece)
        reader.feed_eof()
        while True:
            reply = parse_reply(await wire.read_after_sentinel())
            if reply is not None and reply["return"] == 7:
                return wire.buffered == 0

    assert asyncio.run(find())


async def test_the_answer_to_a_sync_that_an_earlier_caller_gave_up_counts() -> None:
    async with connected() as (agent, fake):
        held: list[Request] = []

        async def hold(fake: FakeAgent, request: Request) -> None:
            held.append(request)

        fake.handlers["guest-sync-delimited"] = hold
        with pytest.raises(AgentUnavailable):
            await agent.sync(SOON)
        next_caller = asyncio.create_task(agent.ping())
        first = held[0]
        await fake.answer(first, first["arguments"]["id"], prefix=b"\xff")
        await next_caller


@pytest.mark.parametrize(("pace", "most"), [(_USUAL, 120), (_SLOW, 30)])
def test_a_guest_that_is_silent_for_long_finds_few_syncs_when_it_wakes(
    pace: _Pace, most: int
) -> None:
    syncs, now = _Syncs(pace), 0.0
    times: list[float] = []
    while now < 120:
        syncs.sent(len(times), now)
        times.append(now)
        now = syncs.due
    assert len([time for time in times if time < 2]) >= 5
    assert len(times) < most
    # What was sent too early to be heard delays by that part of the silence at most.
    pairs = itertools.pairwise(times)
    for before, after in pairs:
        assert after - before <= max(pace.wait, pace.part_of_silence * before) + 1e-9
