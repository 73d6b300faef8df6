"""Identities: what is sent, what the helper takes and refuses, and how its answer is waited for."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hanok.images
from hanok.errors import AgentUnavailable, GuestError, InvalidInput, TimedOut
from hanok.guest.identity import (
    FIFO,
    RESULT,
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
NIC = IdentityNic(
    "52:54:00:12:34:56", "02:87:00:00:00:2a", "10.87.0.42", 24, "10.87.0.1", "10.87.0.1", "hanok"
)
PRIVATE = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"
    "-----END OPENSSH PRIVATE KEY-----\n"
)
WEB = Identity("web-1", "7d9f4b1e-8a52-4f0e-9a52-0f9b8f3d7a11", (NIC,))
KEYED = replace(WEB, host_key_private=PRIVATE, host_key_public="ssh-ed25519 AAAAC3Nz hanok")

MESSAGE = f"""\
nonce={NONCE}
time=1700000000.250000000
seed={SEED.hex()}
host_name=web-1
uuid=7d9f4b1e8a524f0e9a520f9b8f3d7a11
nic=525400123456,02870000002a,0a57002a,18,0a570001,0a570001,hanok
end
"""


def message(identity: Identity) -> bytes:
    """Return the message of an identity with fixed time, seed and nonce."""
    return build_message(identity, 1_700_000_000.25, SEED, NONCE)


def check(data: bytes) -> str:
    """Return what the helper says of a message; perl may have nothing to warn of."""
    argv = ["perl", "-Mstrict", "-Mwarnings", str(HELPER), "--check"]
    done = subprocess.run(argv, input=data, capture_output=True, timeout=30)
    assert done.stderr == b""
    return done.stdout.decode()


def test_message_is_what_the_helper_reads() -> None:
    assert message(WEB).decode() == MESSAGE
    assert check(message(WEB)) == f"ok {NONCE}\n"


def test_message_carries_host_keys_and_shows_none() -> None:
    sent = dict(line.split(b"=", 1) for line in message(KEYED).splitlines()[:-1])
    assert base64.b64decode(sent[b"host_key_private"]).decode() == PRIVATE
    assert base64.b64decode(sent[b"host_key_public"]) == b"ssh-ed25519 AAAAC3Nz hanok"
    assert check(message(KEYED)) == f"ok {NONCE}\n"
    assert "b3Blbn" not in repr(KEYED)


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


@given(
    st.sampled_from(["host_name", "uuid", "old_mac", "mac", "address", "gateway", "dns", "domain"]),
    st.text(max_size=80) | st.text(alphabet="aA0.:-/,=\n\0 ", max_size=20),
)
def test_every_text_becomes_one_line_or_is_refused(field: str, text: str) -> None:
    if field in ("host_name", "uuid"):
        identity = replace(WEB, **{field: text})  # type: ignore[arg-type]
    else:
        identity = replace(WEB, nics=(replace(NIC, **{field: text}),))  # type: ignore[arg-type]
    try:
        data = message(identity)
    except InvalidInput:
        return
    assert [line.partition(b"=")[0] for line in data.split(b"\n")] == [
        *(b"nonce", b"time", b"seed", b"host_name", b"uuid", b"nic", b"end", b"")
    ]


@given(st.text(max_size=200))
def test_no_text_reaches_the_helper_as_a_key(text: str) -> None:
    try:
        data = message(replace(KEYED, host_key_private=text, host_key_public=text))
    except InvalidInput:
        return
    assert data.count(b"\n") == MESSAGE.count("\n") + 2


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
    assert check(message(identity)) == f"ok {NONCE}\n"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("end\n", "", "the message has no end"),
        ("end\n", "end", "the message has no end"),
        ("end\n", "end\nend\n", "there is more after the end"),
        ("host_name=", "host=", "a key is unknown"),
        ("host_name=web-1\n", "", "host_name is missing"),
        ("host_name=web-1", "host_name=web-1\nhost_name=a", "host_name is there twice"),
        ("web-1", "web 1", "host_name is not right"),
        ("web-1", "-web", "host_name is not right"),
        ("web-1", "a" * 65, "host_name is not right"),
        ("uuid=7", "uuid=G", "uuid is not right"),
        ("time=1", "time=-1", "time is not right"),
        (".250000000", ".25", "time is not right"),
        (".250000000", "", "time is not right"),
        ("seed=00", "seed=", "seed is not right"),
        (",18,", ",21,", "nic has a wrong prefix"),
        (",18,", ",00,", "nic has a wrong prefix"),
        (",18,", ";18,", "nic is not right"),
        ("nic=52", "nic=", "nic is not right"),
        ("nic=52", "nic=53", "nic has a group's MAC"),
        ("18,0a570001", "18,0b570001", "nic has a gateway outside its subnet"),
        (",hanok", ",ha_nok", "nic has a wrong domain"),
        (",hanok", "", "nic is not right"),
        ("end\n", "host_key_public=QQ==\nend\n", "only one half of a host key"),
        ("end\n", "nonsense\nend\n", "a line is not key=value"),
        ("end\n", "\nend\n", "a line is not key=value"),
        ("end\n", "host_key_public=QQ==\nhost_key_private=QQ==\nend\n", "not a private key"),
    ],
)
def test_the_helper_refuses(old: str, new: str, reason: str) -> None:
    assert old in MESSAGE
    found = check(MESSAGE.replace(old, new, 1).encode())
    assert found.startswith("failed ")
    assert reason in found


def test_more_than_eight_nics_are_refused_by_the_helper() -> None:
    nic = next(line for line in MESSAGE.splitlines() if line.startswith("nic"))
    found = check(MESSAGE.replace(nic, "\n".join([nic] * 9)).encode())
    assert found == "failed more than 8 nics\n"


@settings(max_examples=40)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: MESSAGE + text))
def test_the_helper_survives_anything(data: bytes | str) -> None:
    found = check(data if isinstance(data, bytes) else data.encode("utf-8", "replace"))
    assert found.startswith("failed ") or data == MESSAGE


def test_the_helper_needs_no_module() -> None:
    source = HELPER.read_text()
    assert re.findall(r"^\s*(?:use|require|no)\s", source, re.M) == []
    # With an empty @INC nothing can be loaded behind its back either.
    program = f"BEGIN {{ @INC = () }} @ARGV = ('--check'); do '{HELPER}'; die $@ if $@"
    done = subprocess.run(
        ["perl", "-e", program], input=message(KEYED), capture_output=True, timeout=30
    )
    assert (done.stdout.decode(), done.stderr) == (f"ok {NONCE}\n", b"")


class Helper:
    """The files of a guest's helper, behind a fake agent; ``answers`` are read one after another
    (None: there is no such file)."""

    def __init__(self, fake: FakeAgent, answers: list[str | None]) -> None:
        self.answers = answers
        self.sent = b""
        self.told = asyncio.Event()
        self.opened: list[tuple[str, str]] = []
        fake.handlers |= {
            "guest-file-open": self.open,
            "guest-file-write": self.write,
            "guest-file-read": self.read,
        }

    async def open(self, fake: FakeAgent, request: Request) -> None:
        """Open the FIFO, or the result when there is one."""
        path, mode = request["arguments"]["path"], request["arguments"]["mode"]
        self.opened.append((path, mode))
        if path == RESULT and self.answers[0] is None:
            self.answers.pop(0)
            await fake.refuse(request, f"failed to open file '{path}': No such file")
        else:
            await fake.answer(request, 1000)

    async def write(self, fake: FakeAgent, request: Request) -> None:
        """Take the message."""
        self.sent += base64.b64decode(request["arguments"]["buf-b64"])
        await fake.answer(request, {"count": len(self.sent), "eof": False})
        self.told.set()

    async def read(self, fake: FakeAgent, request: Request) -> None:
        """Give the next answer; the last one stays. NONCE stands for the message's nonce."""
        text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        found = re.search(rb"^nonce=(\w+)$", self.sent, re.M)
        nonce = found[1].decode() if found else "-"
        data = base64.b64encode((text or "").replace("NONCE", nonce).encode()).decode()
        await fake.answer(request, {"count": len(text or ""), "buf-b64": data, "eof": True})


async def test_identity_is_given_and_its_own_answer_is_waited_for() -> None:
    async with connected() as (agent, fake):
        helper = Helper(fake, [None, f"ok {NONCE}\n", "", "ok NONCE\n"])
        await give_identity(agent, WEB, 5)
        assert check(helper.sent).startswith("ok ")
        assert helper.opened == [(FIFO, "r+"), *[(RESULT, "r")] * 4]
        assert len(fake.asked("guest-file-close")) == 4
        assert not fake.asked("guest-exec")


async def test_two_messages_differ_in_seed_and_nonce() -> None:
    async with connected() as (agent, fake):
        helper = Helper(fake, ["ok NONCE\n"])
        await give_identity(agent, WEB, 5)
        first, helper.sent = helper.sent, b""
        await give_identity(agent, WEB, 5)
        pairs = list(zip(first.splitlines(), helper.sent.splitlines(), strict=True))
        same = [one for one, other in pairs if one == other]
        assert [line.partition(b"=")[0] for line in same] == [b"host_name", b"uuid", b"nic", b"end"]


async def test_the_helpers_reason_is_told() -> None:
    async with connected() as (agent, fake):
        Helper(fake, ["failed NONCE the clock: Operation not\x1b permitted\n"])
        with pytest.raises(GuestError, match="the clock: Operation not permitted"):
            await give_identity(agent, WEB, 5)


async def test_an_answer_that_never_comes_ends_in_time() -> None:
    async with connected() as (agent, fake):
        Helper(fake, [f"ok {NONCE}\n"])
        with pytest.raises(TimedOut):
            await give_identity(agent, WEB, 0.2)
        await agent.ping()  # the channel is in step


async def test_a_guest_without_a_helper_is_told() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-file-open"] = refusing("failed to open file: No such file")
        assert not await has_helper(agent)
        with pytest.raises(GuestError):
            await give_identity(agent, WEB, 5)
        assert not fake.asked("guest-file-write")


async def test_a_fifo_that_takes_less_fails_and_is_closed() -> None:
    async with connected() as (agent, fake):
        helper = Helper(fake, ["ok NONCE\n"])

        async def short(fake: FakeAgent, request: Request) -> None:
            await fake.answer(request, {"count": 1, "eof": False})

        fake.handlers["guest-file-write"] = short
        with pytest.raises(GuestError, match="less"):
            await give_identity(agent, WEB, 5)
        assert len(fake.asked("guest-file-close")) == len(helper.opened) == 1


async def test_helper_is_there_when_its_ready_file_says_so() -> None:
    async with connected() as (agent, fake):
        helper = Helper(fake, ["identity 1\n"])
        assert await has_helper(agent)
        helper.answers = ["identity 9\n"]
        assert not await has_helper(agent)
        await agent.close()
        with pytest.raises(AgentUnavailable):
            await has_helper(agent)


async def test_a_cancelled_identity_leaves_the_channel_in_step() -> None:
    async with connected() as (agent, fake):
        helper = Helper(fake, [None] * 1000)
        task = asyncio.create_task(give_identity(agent, WEB, 30))
        await asyncio.wait_for(helper.told.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await agent.ping()
