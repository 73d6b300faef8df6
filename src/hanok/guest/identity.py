"""Gives a clone an identity of its own, through the helper that Hanok's images run from boot on.

A clone goes on from the memory of another machine: its name, MAC, addresses, machine-id, UUID,
keys, clock and randomness are that one's. The helper (``images/files/identity``) reads one message
from a FIFO and sets all of them without starting a process, since each costs an emulated CPU
tens of milliseconds. The message, in ASCII, lines ``key=value``, each key once but for ``nic``::

    nonce=32 hex digits                     the answer carries it
    time=SECONDS.NANOSECONDS                since the epoch
    seed=128 hex digits                     into the kernel's random number generator
    host_name=web-1
    uuid=32 hex digits                      of the machine, and its machine-id
    nic=OLD,NEW,ADDRESS,PREFIX,GATEWAY,DNS,DOMAIN
                                            two MACs (12 hex digits), an IPv4 address (8), the
                                            length of its prefix (2), two addresses (8; zero for
                                            none), and a name that may be empty
    host_key_private=base64                 OpenSSH's private key file, with the public one
    host_key_public=base64
    end

All is written as the helper needs it, and can be checked by counting characters. It answers in a
file: ``ok NONCE`` or ``failed NONCE REASON``. Told twice it does no harm.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import re
import secrets
import time as clock
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, retry_if_result, wait_exponential

from hanok.errors import AgentUnavailable, GuestError, InvalidInput, TimedOut
from hanok.guest.agent import AgentConnection
from hanok.guest.text import printable

FOLDER = "/run/hanok"
FIFO = f"{FOLDER}/identity"
RESULT = f"{FOLDER}/identity.result"
READY = f"{FOLDER}/ready"

MESSAGE_LIMIT = 65536
SEED_SIZE = 64
_VERSION = b"identity 1"
_SMALL = 4096
_NIC_LIMIT = 8

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.A)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.A)
_MAC = re.compile(r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}", re.A)
_NONCE = re.compile(r"[0-9a-f]{32}", re.A)
_PRIVATE = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END OPENSSH PRIVATE KEY-----\n",
    re.A,
)
_PUBLIC = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+(?: [!-~]+)?", re.A)
_KEY_LIMIT = 3000
_NONE = ipaddress.IPv4Address(0)

# The time in a message that was long under way is an old one: the guest is told again.
_QUICK = 0.5
_TRIES = 5


@dataclass(frozen=True)
class IdentityNic:
    """A network card: the MAC by which it is found, and what it becomes.

    ``gateway`` is inside the subnet; ``gateway``, ``dns`` and ``domain`` may be None.
    """

    old_mac: str
    mac: str
    address: str
    prefix: int
    gateway: str | None = None
    dns: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Identity:
    """What a machine becomes. The machine-id is its ``uuid`` without dashes; both halves of the
    SSH host key (ed25519) are given, or none."""

    host_name: str
    uuid: str
    nics: tuple[IdentityNic, ...] = ()
    host_key_private: str | None = field(default=None, repr=False)
    host_key_public: str | None = None


def machine_id(uuid: str) -> str:
    """Return the machine-id of the machine ``uuid``: 32 hexadecimal digits."""
    return uuid.replace("-", "")


async def has_helper(agent: AgentConnection) -> bool:
    """Return whether the guest has a helper that takes an identity, and it listens.

    Ask before a guest becomes a template: in a clone the answer costs as much as the identity.
    Raises AgentUnavailable.
    """
    try:
        return (await agent.read_file(READY, limit=_SMALL)).startswith(_VERSION)
    except AgentUnavailable:
        raise
    except GuestError:
        return False


async def give_identity(agent: AgentConnection, identity: Identity, timeout: float) -> None:
    """Make the guest into ``identity``; returns when it has it: the helper reads cards back.

    Safe to repeat. Raises InvalidInput (a field that cannot be said), GuestError (no helper, or
    the helper's reason), TimedOut after ``timeout`` seconds, AgentUnavailable.
    """
    try:
        async with asyncio.timeout(timeout):
            for _ in range(_TRIES):
                started = clock.monotonic()
                await _tell(agent, identity)
                if clock.monotonic() - started < _QUICK:
                    return
    except TimeoutError:
        raise TimedOut(
            f"the guest did not take its identity within {timeout:g} s",
            hint="delete the clone and make it again; a busy host needs a longer time limit",
        ) from None


async def _tell(agent: AgentConnection, identity: Identity) -> None:
    nonce = secrets.token_hex(16)
    seed = os.urandom(SEED_SIZE)
    await agent.send_to(FIFO, build_message(identity, clock.time(), seed, nonce))
    _judge(await _wait_answer(agent, nonce), nonce)


def build_message(identity: Identity, time: float, seed: bytes, nonce: str) -> bytes:
    """Return the message that makes a guest into ``identity``. Pure.

    ``time`` is in seconds since the epoch, ``seed`` 64 random bytes, ``nonce`` 32 hexadecimal
    digits. Raises InvalidInput for every field that is not exactly one line of its form.
    """
    if len(seed) != SEED_SIZE:
        raise InvalidInput("the seed has a wrong length", field="seed", expected="64 bytes")
    if not 100_000_000 <= time < 10**11:
        raise InvalidInput(f"{time} is no time of today", field="time", expected="seconds")
    lines = [
        f"nonce={_matching(_NONCE, nonce, 'nonce', '32 hexadecimal digits')}",
        f"time={time:.9f}",
        f"seed={seed.hex()}",
        f"host_name={_host_name(identity.host_name)}",
        f"uuid={machine_id(_matching(_UUID, identity.uuid, 'uuid', 'a UUID in lower case'))}",
        *(f"nic={_nic(nic)}" for nic in _few(identity.nics)),
        *_host_key(identity),
        "end",
    ]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _matching(pattern: re.Pattern[str], text: str, name: str, expected: str) -> str:
    if pattern.fullmatch(text) is None:
        raise InvalidInput(f"{printable(text, 60)!r} is not right", field=name, expected=expected)
    return text


def _host_name(name: str) -> str:
    expected = "at most 64 letters, digits and '-', with dots between"
    if len(name) > 64:
        raise InvalidInput("the host name is too long", field="host_name", expected=expected)
    return _matching(_DOMAIN, name, "host_name", expected)


def _few(nics: tuple[IdentityNic, ...]) -> tuple[IdentityNic, ...]:
    if len(nics) > _NIC_LIMIT:
        raise InvalidInput(f"{len(nics)} network cards", field="nics", expected="at most 8")
    return nics


def _nic(nic: IdentityNic) -> str:
    old, new = (
        _matching(_MAC, mac, f"nics.{name}", "the MAC of a card in lower case").replace(":", "")
        for mac, name in ((nic.old_mac, "old_mac"), (nic.mac, "mac"))
    )
    address = _ipv4(nic.address, "address")
    if not 1 <= nic.prefix <= 32:
        raise InvalidInput(f"{nic.prefix} is no prefix", field="nics.prefix", expected="1 to 32")
    subnet = ipaddress.IPv4Network((address, nic.prefix), strict=False)
    gateway = _ipv4(nic.gateway, "gateway") if nic.gateway else _NONE
    if nic.gateway and gateway not in subnet:
        raise InvalidInput(
            f"the gateway {gateway} is outside {subnet}",
            field="nics.gateway",
            expected=f"an address of {subnet}",
        )
    dns = _ipv4(nic.dns, "dns") if nic.dns else _NONE
    domain = _domain(nic.domain) if nic.domain else ""
    numbers = f"{int(address):08x},{nic.prefix:02x},{int(gateway):08x},{int(dns):08x}"
    return f"{old},{new},{numbers},{domain}"


def _domain(name: str) -> str:
    expected = "a domain name"
    if len(name) > 253:
        raise InvalidInput("the domain is too long", field="nics.domain", expected=expected)
    return _matching(_DOMAIN, name, "nics.domain", expected)


def _ipv4(text: str, name: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise InvalidInput(
            f"{printable(text, 60)!r} is not an IPv4 address",
            field=f"nics.{name}",
            expected="an IPv4 address such as 10.87.0.2",
        ) from None


def _host_key(identity: Identity) -> list[str]:
    private, public = identity.host_key_private, identity.host_key_public
    if private is None and public is None:
        return []
    if private is None or public is None:
        raise InvalidInput("half a host key", field="host_key", expected="both halves, or none")
    private = private if private.endswith("\n") else f"{private}\n"
    # What is wrong with a private key is never quoted.
    if len(private) > _KEY_LIMIT or _PRIVATE.fullmatch(private) is None:
        raise InvalidInput(
            "the private host key is not one",
            field="host_key_private",
            expected="a key file of OpenSSH",
        )
    if len(public) > _KEY_LIMIT:
        raise InvalidInput("the public host key is too long", field="host_key_public")
    public = _matching(_PUBLIC, public.strip(), "host_key_public", "the line of an ed25519 key")
    return [
        f"host_key_private={base64.b64encode(private.encode()).decode()}",
        f"host_key_public={base64.b64encode(public.encode()).decode()}",
    ]


async def _wait_answer(agent: AgentConnection, nonce: str) -> str:
    """Poll for the answer that carries ``nonce``, and return it."""
    retrying = AsyncRetrying(
        wait=wait_exponential(multiplier=0.003, exp_base=1.5, max=0.1),
        retry=retry_if_result(lambda answer: answer is None),
    )
    answer: str = await retrying(_read_answer, agent, nonce)
    return answer


async def _read_answer(agent: AgentConnection, nonce: str) -> str | None:
    """Return the answer to this message; None while there is none, or another message's."""
    try:
        answer = (await agent.read_file(RESULT, limit=_SMALL)).decode("utf-8", "replace")
    except AgentUnavailable:
        raise
    except GuestError:
        return None
    return answer if answer.split()[1:2] == [nonce] else None


def _judge(answer: str, nonce: str) -> None:
    verdict, _, reason = answer.strip().partition(f" {nonce}")
    if verdict != "ok":
        raise GuestError(
            f"the guest did not take its identity: {printable(reason, 200) or 'no reason given'}",
            hint="delete the clone; when it happens again, make a new template",
        )
