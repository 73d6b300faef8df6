"""Gives a clone an identity of its own, through the helper that Hanok's images run from boot on.

A clone goes on from the memory of another machine: its name, MAC, addresses, machine-id, UUID,
keys, clock and randomness are that one's. The helper (``images/files/identity``) waits at a port of
its own. The message is written before the clone goes on, so it is the first thing that it sees, and
sets all of them without starting a process. Each piece of code that runs in a clone has to be
translated first by an emulator, so all that can be worked out here is: the message is what the
guest hands to its kernel, and nothing in it has to be parsed or checked there.

The message is binary, texts are ASCII::

    "HKI2", u32 length of all               little-endian
    32 hex digits                           the nonce; the answer carries it
    struct timespec                         the time since the epoch
    struct rand_pool_info                   64 random bytes, all of them counted (random(4))
    36, 32 characters                       the UUID with its dashes; the machine-id
    16, 16 bytes                            the UUID as in SMBIOS since 2.6, and before
    36 characters                           a boot id
    text, text, text                        host name, private and public SSH host key or nothing
    record, for each network card           u16 length (big-endian, as of each text), two MACs,
                                            address, mask, gateway, DNS server (zeros: none), and
                                            the lines of its resolv.conf

The helper answers by a line, ``ok NONCE`` or ``failed NONCE REASON``. Told twice it does no harm.

A second kind, ``"HKT2"``, u32 length, nonce and timespec, sets the clock alone: where the way was
long the time that came with the identity is an old one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import secrets
import struct
import time as clock
import uuid as uuids
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from hanok.errors import AgentUnavailable, GuestError, InvalidInput, TimedOut
from hanok.guest.agent import AgentConnection
from hanok.guest.text import printable

READY = "/run/hanok/ready"

SEED_SIZE = 64
_MAGIC, _TIME_MAGIC = b"HKI2", b"HKT2"
_HEAD = struct.Struct("<4sI")
_TIMESPEC = struct.Struct("<qq")
_ENTROPY = struct.Struct(f"<ii{SEED_SIZE}s")
_VERSION = b"identity 2"
_ANSWER_LIMIT = 512
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

# The time in a message that was long under way is an old one: the guest is told the time again.
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


async def give_identity(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    identity: Identity,
    *,
    timeout: float,
    go: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Make the guest into ``identity``; returns when it has it: the helper reads cards back.

    ``reader`` and ``writer`` are the guest's port for that; ``go`` lets the guest go on, which is
    awaited once the message lies there. Safe to repeat. Raises InvalidInput (a field that cannot
    be said), GuestError (the helper's reason), TimedOut after ``timeout`` seconds,
    AgentUnavailable (the port was closed), and whatever ``go`` raises.
    """
    try:
        async with asyncio.timeout(timeout):
            started, nonce = clock.monotonic(), secrets.token_hex(16)
            writer.write(build_message(identity, clock.time(), os.urandom(SEED_SIZE), nonce))
            if go is not None:
                await go()
            _judge(await _wait_answer(reader, nonce), nonce)
            for _ in range(_TRIES):
                if clock.monotonic() - started < _QUICK:
                    return
                started, nonce = clock.monotonic(), secrets.token_hex(16)
                writer.write(build_time(clock.time(), nonce))
                _judge(await _wait_answer(reader, nonce), nonce)
    except TimeoutError:
        raise TimedOut(
            f"the guest did not take its identity within {timeout:g} s",
            hint="delete the clone and make it again; a busy host needs a longer time limit",
        ) from None


def build_message(
    identity: Identity, time: float, seed: bytes, nonce: str, boot_id: str | None = None
) -> bytes:
    """Return the message that makes a guest into ``identity``. Pure when ``boot_id`` is given.

    ``time`` is in seconds since the epoch, ``seed`` 64 random bytes, ``nonce`` 32 hexadecimal
    digits, ``boot_id`` a random UUID. Raises InvalidInput for every field that is not of its form.
    """
    if len(seed) != SEED_SIZE:
        raise InvalidInput("the seed has a wrong length", field="seed", expected="64 bytes")
    uuid = uuids.UUID(_matching(_UUID, identity.uuid, "uuid", "a UUID in lower case"))
    private, public = _host_key(identity)
    body = b"".join(
        (
            _time(time, nonce),
            _ENTROPY.pack(8 * SEED_SIZE, SEED_SIZE, seed),
            *(str(uuid).encode(), uuid.hex.encode(), uuid.bytes_le, uuid.bytes),
            str(uuids.uuid4() if boot_id is None else uuids.UUID(boot_id)).encode(),
            _counted(_host_name(identity.host_name).encode()),
            *(_counted(private), _counted(public)),
            *(_counted(_nic(nic)) for nic in _few(identity.nics)),
        )
    )
    return _HEAD.pack(_MAGIC, _HEAD.size + len(body)) + body


def build_time(time: float, nonce: str) -> bytes:
    """Return the message that sets a guest's clock alone. Pure. Raises InvalidInput."""
    body = _time(time, nonce)
    return _HEAD.pack(_TIME_MAGIC, _HEAD.size + len(body)) + body


def _time(time: float, nonce: str) -> bytes:
    if not 100_000_000 <= time < 10**11:
        raise InvalidInput(f"{time} is no time of today", field="time", expected="seconds")
    head = _matching(_NONCE, nonce, "nonce", "32 hexadecimal digits").encode()
    return head + _TIMESPEC.pack(int(time), int(time % 1 * 1_000_000_000))


def _counted(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


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


def _nic(nic: IdentityNic) -> bytes:
    macs = [
        bytes.fromhex(
            _matching(_MAC, mac, f"nics.{name}", "the MAC of a card in lower case").replace(":", "")
        )
        for mac, name in ((nic.old_mac, "old_mac"), (nic.mac, "mac"))
    ]
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
    resolvers = f"search {_domain(nic.domain)}\n" if nic.domain else ""
    if nic.dns:
        resolvers += f"nameserver {dns}\n"
    numbers = (address.packed, subnet.netmask.packed, gateway.packed, dns.packed)
    return b"".join((*macs, *numbers, resolvers.encode()))


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


def _host_key(identity: Identity) -> tuple[bytes, bytes]:
    private, public = identity.host_key_private, identity.host_key_public
    if private is None and public is None:
        return b"", b""
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
    return private.encode(), f"{public}\n".encode()


async def _wait_answer(reader: asyncio.StreamReader, nonce: str) -> str:
    """Return the answer that carries ``nonce``: what answers another message is dropped."""
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise AgentUnavailable("the guest's port for its identity was closed") from None
        except asyncio.LimitOverrunError:
            line = b""
        if not line or len(line) > _ANSWER_LIMIT:
            raise GuestError("the guest's answer to its identity is endless")
        answer = line.decode("utf-8", "replace")
        if answer.split()[1:2] == [nonce]:
            return answer


def _judge(answer: str, nonce: str) -> None:
    verdict, _, reason = answer.strip().partition(f" {nonce}")
    if verdict != "ok":
        raise GuestError(
            f"the guest did not take its identity: {printable(reason, 200) or 'no reason given'}",
            hint="delete the clone; when it happens again, make a new template",
        )
