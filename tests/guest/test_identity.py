"""Identities: what is sent, what cannot be said, and how the helper's answer is waited for."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hanok.images
from hanok.errors import AgentUnavailable, GuestError, InvalidInput, TimedOut
from hanok.guest.identity import (
    Identity,
    IdentityNic,
    build_message,
    give_identity,
    has_helper,
    machine_id,
)
from tests.guest.fake_agent import FakeAgent, Request, connected, refusing

HELPER = Path(hanok.images.__file__).parent / "files" / "identity"
NONCE = "0123456789abcdef" * 2
SEED = bytes(range(64))
BOOT = "0b9d3c54-9f0e-4c53-8f0e-2f0b9f8f3d7a"
NIC = IdentityNic(
    "52:54:00:12:34:56", "02:87:00:00:00:2a", "10.87.0.42", 24, "10.87.0.1", "10.87.0.1", "hanok"
)
PRIVATE = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"
    "-----END OPENSSH PRIVATE KEY-----\n"
)
WEB = Identity("web-1", "7d9f4b1e-8a52-4f0e-9a52-0f9b8f3d7a11", (NIC,))
KEYED = replace(WEB, host_key_private=PRIVATE, host_key_public="ssh-ed25519 AAAAC3Nz hanok")

# What the helper reads, in the words of its own unpack(): see ``sub parse`` there.
CARD = bytes.fromhex("525400123456 02870000002a 0a57002a ffffff00 0a570001 0a570001")
BODY = b"".join(
    (
        NONCE.encode(),
        struct.pack("<qq", 1_700_000_000, 250_000_000),
        struct.pack("<ii", 512, 64) + SEED,
        b"7d9f4b1e-8a52-4f0e-9a52-0f9b8f3d7a11",
        b"7d9f4b1e8a524f0e9a520f9b8f3d7a11",
        bytes.fromhex("1e4b9f7d528a0e4f9a520f9b8f3d7a11"),
        bytes.fromhex("7d9f4b1e8a524f0e9a520f9b8f3d7a11"),
        BOOT.encode(),
        b"\0\5web-1\0\0\0\0",
        b"\0\x3e" + CARD + b"search hanok\nnameserver 10.87.0.1\n",
    )
)
MESSAGE = b"HKI2" + struct.pack("<I", 8 + len(BODY)) + BODY
# Runs the helper's own parse() on standard input, and none of its life.
PARSE = r"""
    use strict; use warnings;
    open(my $file, '<', $ARGV[0]) or die; local $/; my $source = <$file>;
    my $start = index($source, "sub parse {"); my $end = index($source, "\n}\n", $start);
    eval(substr($source, $start, $end + 3 - $start) . '1') or die $@;
    my $said = eval { parse(scalar <STDIN>) };
    print $said ? "ok $said->{nonce} $said->{host_name} " . scalar(@{$said->{nics} // []}) . "\n"
        . $said->{host_key_private} . $said->{host_key_public} : "failed $@";
"""


def message(identity: Identity) -> bytes:
    """Return the message of an identity with fixed time, seed, nonce and boot id."""
    return build_message(identity, 1_700_000_000.25, SEED, NONCE, BOOT)


def parsed(data: bytes) -> str:
    """Return what the helper reads in a message; perl may have nothing to warn of."""
    argv = ["perl", "-e", PARSE, str(HELPER)]
    done = subprocess.run(argv, input=data, capture_output=True, timeout=30)
    assert done.stderr == b""
    return done.stdout.decode()


def test_message_is_what_the_helper_reads() -> None:
    assert message(WEB) == MESSAGE
    assert parsed(message(WEB)) == f"ok {NONCE} web-1 1\n"


def test_message_carries_host_keys_and_shows_none() -> None:
    assert parsed(message(KEYED)) == f"ok {NONCE} web-1 1\n{PRIVATE}ssh-ed25519 AAAAC3Nz hanok\n"
    assert "b3Blbn" not in repr(KEYED)


def test_boot_ids_differ() -> None:
    sent = {build_message(WEB, 1_700_000_000.25, SEED, NONCE) for _ in range(3)}
    assert len(sent) == 3


def test_machine_id_is_the_uuid() -> None:
    assert machine_id(WEB.uuid) == "7d9f4b1e8a524f0e9a520f9b8f3d7a11"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host_name": "two\nlines"}, "host_name"),
        ({"host_name": ""}, "host_name"),
        ({"host_name": "a" * 65}, "host_name"),
        ({"host_name": "-web"}, "host_name"),
        ({"uuid": "7D9F4B1E-8A52-4F0E-9A52-0F9B8F3D7A11"}, "uuid"),
        ({"nics": (NIC,) * 9}, "nics"),
        ({"nics": (replace(NIC, mac="03:87:00:00:00:2a"),)}, "nics.mac"),
        ({"nics": (replace(NIC, old_mac="52:54:00:12:34"),)}, "nics.old_mac"),
        ({"nics": (replace(NIC, address="10.87.0.256"),)}, "nics.address"),
        ({"nics": (replace(NIC, prefix=33),)}, "nics.prefix"),
        ({"nics": (replace(NIC, gateway="10.88.0.1"),)}, "nics.gateway"),
        ({"nics": (replace(NIC, dns="here"),)}, "nics.dns"),
        ({"nics": (replace(NIC, domain="a..b"),)}, "nics.domain"),
        ({"host_key_private": PRIVATE}, "host_key"),
        ({"host_key_private": "secret", "host_key_public": "ssh-ed25519 A"}, "host_key_private"),
        ({"host_key_private": PRIVATE, "host_key_public": "ssh-rsa A"}, "host_key_public"),
    ],
)
def test_what_cannot_be_said_is_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        message(replace(WEB, **changes))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["host_name", "uuid", "old_mac", "mac", "address", "gateway", "dns", "domain"]),
    st.text(max_size=80) | st.text(alphabet="aA0.:-/,=\n\0 ", max_size=20),
)
def test_every_text_is_one_field_or_is_refused(field: str, text: str) -> None:
    if field in ("host_name", "uuid"):
        identity = replace(WEB, **{field: text})  # type: ignore[arg-type]
    else:
        identity = replace(WEB, nics=(replace(NIC, **{field: text}),))  # type: ignore[arg-type]
    try:
        data = message(identity)
    except InvalidInput:
        return
    assert len(data) == struct.unpack("<I", data[4:8])[0]
    assert parsed(data) == f"ok {NONCE} {identity.host_name} 1\n"


@given(st.text(max_size=200))
def test_no_text_is_a_key(text: str) -> None:
    with pytest.raises(InvalidInput):
        message(replace(KEYED, host_key_private=text, host_key_public=text))


_names = st.from_regex(r"\A[a-z]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_addresses = st.ip_addresses(v=4).map(str)


@settings(max_examples=40)
@given(_names, st.uuids(), _addresses, st.integers(1, 32), _addresses, _names, st.booleans())
def test_the_helper_takes_every_message(
    name: str, uuid: object, address: str, prefix: int, dns: str, domain: str, keyed: bool
) -> None:
    nic = replace(NIC, address=address, prefix=prefix, gateway=None, dns=dns, domain=domain)
    identity = Identity(name, str(uuid), (nic, NIC))
    if keyed:
        identity = replace(
            identity, host_key_private=PRIVATE, host_key_public=KEYED.host_key_public
        )
    assert parsed(message(identity)).startswith(f"ok {NONCE} {name} 2\n")


@pytest.mark.parametrize("size", [0, 8, 200, len(MESSAGE) - 70, len(MESSAGE) - 40])
def test_the_helper_refuses_what_is_not_whole(size: int) -> None:
    assert parsed(MESSAGE[:size]).startswith("failed ")


def test_the_helper_needs_no_module() -> None:
    source = HELPER.read_text()
    assert re.findall(r"^\s*(?:use|require|no)\s", source, re.M) == []


Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def helper(
    answer: Answer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, list[bytes]]]:
    """Give the host's side of a port at which a helper gives ``answer`` to each message's nonce,
    and what it was told so far. It closes the port when the answer is empty."""
    ours, theirs = socket.socketpair()
    told: list[bytes] = []
    reader, writer = await asyncio.open_unix_connection(sock=theirs)

    async def serve() -> None:
        while head := await reader.read(8):
            length = struct.unpack("<I", head[4:])[0]
            told.append(head + await reader.readexactly(length - 8))
            said = answer(told[-1][8:40])
            if not said:
                break
            writer.write(said)
        writer.close()

    task = asyncio.create_task(serve())
    host = await asyncio.open_unix_connection(sock=ours)
    try:
        yield (*host, told)
    finally:
        host[1].close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_identity_is_given_and_its_own_answer_is_waited_for() -> None:
    late = f"ok {'f' * 32}\nrubbish\n\n".encode()
    async with helper(lambda nonce: late + b"ok " + nonce + b"\n") as (reader, writer, told):
        await give_identity(reader, writer, WEB, timeout=5)
    assert parsed(told[0]).startswith("ok ")


async def test_the_message_lies_there_before_the_guest_goes_on() -> None:
    arrived = asyncio.Event()

    def answer(nonce: bytes) -> bytes:
        arrived.set()
        return b"ok " + nonce + b"\n"

    async with helper(answer) as (reader, writer, _):
        went = asyncio.Event()

        async def go() -> None:
            await arrived.wait()
            went.set()

        await give_identity(reader, writer, WEB, timeout=5, go=go)
    assert went.is_set()


async def test_two_messages_differ_in_seed_and_nonce() -> None:
    async with helper(lambda nonce: b"ok " + nonce + b"\n") as (reader, writer, told):
        await give_identity(reader, writer, WEB, timeout=5)
        await give_identity(reader, writer, WEB, timeout=5)
    first, second = told
    assert first[8:40] != second[8:40]
    assert first[64:128] != second[64:128]
    assert first[128:228] == second[128:228]


async def test_after_a_long_way_the_time_is_told_again_and_nothing_else() -> None:
    async with helper(lambda nonce: b"ok " + nonce + b"\n") as (reader, writer, told):

        async def go() -> None:
            await asyncio.sleep(0.6)  # it is the long way itself

        before = time.time()
        await give_identity(reader, writer, WEB, timeout=5, go=go)
    assert [data[:4] for data in told] == [b"HKI2", b"HKT2"]
    first, again = (struct.unpack("<qq", data[40:56]) for data in told)
    assert first[0] + first[1] / 1e9 < before + 0.3
    assert before + 0.6 <= again[0] + again[1] / 1e9 <= time.time()


async def test_the_helpers_reason_is_told() -> None:
    reason = b" the clock: Operation not\x1b permitted\n"
    async with helper(lambda nonce: b"failed " + nonce + reason) as (reader, writer, _):
        with pytest.raises(GuestError, match="the clock: Operation not permitted"):
            await give_identity(reader, writer, WEB, timeout=5)


async def test_an_answer_that_never_comes_ends_in_time() -> None:
    async with helper(lambda nonce: b"ok nobody\n") as (reader, writer, _):
        with pytest.raises(TimedOut):
            await give_identity(reader, writer, WEB, timeout=0.2)


@pytest.mark.parametrize("line", [b"x" * 100_000, b"x" * 1000 + b"\n"])
async def test_an_endless_answer_is_no_answer(line: bytes) -> None:
    async with helper(lambda nonce: line) as (reader, writer, _):
        with pytest.raises(GuestError, match="endless"):
            await give_identity(reader, writer, WEB, timeout=5)


async def test_a_port_that_closes_is_told() -> None:
    async with helper(lambda nonce: b"") as (reader, writer, _):
        with pytest.raises(AgentUnavailable):
            await give_identity(reader, writer, WEB, timeout=5)


async def test_a_guest_without_a_helper_is_told() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-file-open"] = refusing("failed to open file: No such file")
        assert not await has_helper(agent)


class ReadyFile:
    """The file of a guest that says that its helper listens, behind a fake agent."""

    def __init__(self, fake: FakeAgent, text: str) -> None:
        self.text = text
        fake.handlers |= {"guest-file-open": self.open, "guest-file-read": self.read}

    async def open(self, fake: FakeAgent, request: Request) -> None:
        """Open it."""
        await fake.answer(request, 1000)

    async def read(self, fake: FakeAgent, request: Request) -> None:
        """Give all of it."""
        data = base64.b64encode(self.text.encode()).decode()
        await fake.answer(request, {"count": len(self.text), "buf-b64": data, "eof": True})


async def test_helper_is_there_when_its_ready_file_says_so() -> None:
    async with connected() as (agent, fake):
        file = ReadyFile(fake, "identity 2\n")
        assert await has_helper(agent)
        file.text = "identity 1\n"
        assert not await has_helper(agent)
        await agent.close()
        with pytest.raises(AgentUnavailable):
            await has_helper(agent)
