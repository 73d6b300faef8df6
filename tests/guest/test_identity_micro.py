"""The helper of the image micro, in a booted guest: all that it sets is read back inside."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from hanok.guest.agent import AgentConnection
from hanok.guest.identity import (
    Identity,
    IdentityNic,
    build_message,
    build_time,
    has_helper,
    machine_id,
)
from hanok.guest.readiness import wait_ready
from hanok.model.image import Image
from hanok.model.vm import Mode, Ready
from tests.guest.machine import IDENTITY_PORT, Guest, boot
from tests.guest.test_readiness import Loopback

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]

TEMPLATE = uuid.UUID("11111111-2222-4333-8444-555555555555")
WORDS = ("-uuid", str(TEMPLATE), "-rtc", "base=2020-01-01")
# QEMU's own network gives the first MAC that asks .15, the next one .16.
NETWORK = "net=10.0.2.0/24"
CURRENT = "cat /sys/class/net/eth0/address"


async def run(agent: AgentConnection, script: str, *, limit: float = 60) -> str:
    """Return what a script in the guest prints; it must succeed."""
    done = await agent.exec(["/bin/sh", "-c", script], timeout=limit)
    assert done.exit_status == 0, (script, done.stdout, done.stderr)
    return done.stdout.decode().strip()


async def wait_until(agent: AgentConnection, command: str) -> None:
    """Wait until ``command`` succeeds in the guest."""
    await wait_ready(Ready(command=command, timeout=60), probe=Loopback(agent))


def identity_of(number: int, old_mac: str) -> Identity:
    """Return one of many identities."""
    nic = IdentityNic(
        old_mac,
        f"02:87:00:00:00:{number:02x}",
        f"10.0.2.{number}",
        24,
        "10.0.2.2",
        "10.0.2.3",
        "hanok",
    )
    return Identity(f"web-{number}", str(uuid.uuid4()), (nic,))


@dataclass(frozen=True)
class Seen:
    """What identifies the guest, as it says itself."""

    host_name: str
    files: str
    machine: str
    links: str
    addresses: str
    routes: str
    resolvers: str
    product: str
    table: bytes
    boot: str
    mounts: str


async def look(agent: AgentConnection) -> Seen:
    """Read the guest's identity inside it."""
    table = await run(agent, "od -A n -v -t x1 /sys/firmware/dmi/tables/DMI | tr -d ' \\n'")
    return Seen(
        host_name=await run(agent, "hostname"),
        files=await run(agent, "sed 's/ *$//' /etc/hostname /etc/hosts"),
        machine=await run(agent, "cat /etc/machine-id"),
        links=await run(agent, "ip link show eth0"),
        addresses=await run(agent, "ip addr show eth0 | grep inet"),
        routes=await run(agent, "ip route"),
        resolvers=await run(agent, "cat /etc/resolv.conf"),
        product=await run(agent, "cat /sys/class/dmi/id/product_uuid"),
        table=bytes.fromhex(table),
        boot=await run(agent, "cat /proc/sys/kernel/random/boot_id"),
        mounts=await run(agent, "mount | grep -c -e dmi -e boot_id"),
    )


async def ready(agent: AgentConnection) -> None:
    """Return when the helper listens and the guest has its address."""
    await wait_ready(Ready(timeout=120), probe=Loopback(agent))
    await wait_until(agent, "[ -e /run/hanok/ready ] && ip -4 addr show eth0 | grep -q 'inet '")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(micro_image: tuple[Image, Path]) -> AsyncIterator[Guest]:
    """One guest for all tests here; each may give it another identity."""
    image, folder = micro_image
    work = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    try:
        async with boot(image, folder, Mode.PARA, work, network=NETWORK, more=WORDS) as running:
            await ready(running.agent)
            yield running
    finally:
        shutil.rmtree(work)


async def test_the_guest_takes_all_of_its_identity(guest: Guest) -> None:
    agent = guest.agent
    assert await has_helper(agent)
    before = await look(agent)
    assert before.product == str(TEMPLATE)
    assert TEMPLATE.bytes_le in before.table
    assert await run(agent, "date +%Y") == "2020"

    identity = identity_of(50, await run(agent, CURRENT))
    await guest.become(identity)

    told = time.time()
    assert told - 1 <= int(await run(agent, "date +%s")) <= time.time() + 1
    after = await look(agent)
    assert after.host_name == "web-50"
    assert after.files.splitlines() == [
        *("web-50", "127.0.0.1 localhost", "127.0.1.1 web-50", "::1 localhost")
    ]
    assert after.machine == machine_id(identity.uuid)
    assert "link/ether 02:87:00:00:00:32 " in after.links
    assert "UP" in after.links
    assert after.addresses.split() == [
        *("inet", "10.0.2.50/24", "brd", "10.0.2.255", "scope", "global", "eth0")
    ]
    assert [line.split() for line in after.routes.splitlines()] == [
        ["default", "via", "10.0.2.2", "dev", "eth0"],
        ["10.0.2.0/24", "dev", "eth0", "scope", "link", "src", "10.0.2.50"],
    ]
    assert after.resolvers.splitlines() == ["search hanok", "nameserver 10.0.2.3"]
    assert after.product == identity.uuid
    assert after.table == before.table.replace(TEMPLATE.bytes_le, uuid.UUID(identity.uuid).bytes_le)
    assert uuid.UUID(after.boot).version == 4
    assert after.boot != before.boot
    assert after.mounts == before.mounts == "3"


async def test_told_twice_nothing_but_boot_id_changes(guest: Guest) -> None:
    identity = identity_of(51, await run(guest.agent, CURRENT))
    await guest.become(identity)
    first = await look(guest.agent)
    await guest.become(identity)
    second = await look(guest.agent)
    assert first.boot != second.boot
    assert replace(first, boot="") == replace(second, boot="")


async def test_randomness_follows_the_seed(guest: Guest) -> None:
    read = "head -c 32 /dev/urandom | od -A n -t x1"
    found = {await run(guest.agent, read)}
    for number in (52, 53):
        await guest.become(identity_of(number, await run(guest.agent, CURRENT)))
        found |= {await run(guest.agent, read), await run(guest.agent, read)}
    assert len(found) == 5


async def answer_to(guest: Guest, *messages: bytes) -> list[str]:
    """Send messages as they are, and return the lines that answer them."""
    reader, writer = guest.identity
    writer.write(b"".join(messages))
    async with asyncio.timeout(30):
        return [(await reader.readline()).decode() for _ in messages]


async def test_a_refused_message_changes_nothing(guest: Guest) -> None:
    identity = identity_of(54, await run(guest.agent, CURRENT))
    stranger = replace(identity.nics[0], old_mac="02:ff:ff:ff:ff:ff", mac="02:ff:ff:ff:ff:fe")
    before = await look(guest.agent)
    nonce = os.urandom(16).hex()
    sent = build_message(
        replace(identity, nics=(stranger, *identity.nics)), 1_000_000_000, bytes(64), nonce
    )
    (answer,) = await answer_to(guest, sent)
    assert answer.startswith(f"failed {nonce} no network card has the MAC 02:ff:ff:ff:ff:ff")
    assert await look(guest.agent) == before
    assert int(await run(guest.agent, "date +%s")) > 1_500_000_000


async def test_what_is_no_message_is_refused_and_the_next_taken(guest: Guest) -> None:
    (answer,) = await answer_to(guest, b"nonsense" * 20)
    assert answer == "failed - this is no message\n"
    identity = identity_of(55, await run(guest.agent, CURRENT))
    await guest.become(identity)
    assert await run(guest.agent, "hostname") == "web-55"


async def test_the_clock_alone_can_be_set(guest: Guest) -> None:
    before = await look(guest.agent)
    nonce = os.urandom(16).hex()
    assert await answer_to(guest, build_time(2_000_000_000, nonce)) == [f"ok {nonce}\n"]
    assert 2_000_000_000 <= int(await run(guest.agent, "date +%s")) < 2_000_000_100
    (answer,) = await answer_to(guest, build_time(time.time(), nonce))
    assert answer == f"ok {nonce}\n"
    assert abs(int(await run(guest.agent, "date +%s")) - time.time()) < 30
    assert await look(guest.agent) == before


async def test_messages_in_a_row_are_taken_in_order(guest: Guest) -> None:
    old = await run(guest.agent, CURRENT)
    first, second = identity_of(56, old), identity_of(57, "02:87:00:00:00:38")
    nonces = [os.urandom(16).hex() for _ in range(2)]
    both = [
        build_message(identity, time.time(), os.urandom(64), nonce)
        for identity, nonce in zip((first, second), nonces, strict=True)
    ]
    assert await answer_to(guest, *both) == [f"ok {nonce}\n" for nonce in nonces]
    seen = await look(guest.agent)
    assert (seen.host_name, seen.product) == ("web-57", second.uuid)
    assert seen.addresses.split()[1] == "10.0.2.57/24"


async def test_all_addresses_of_a_card_go(guest: Guest) -> None:
    await run(
        guest.agent,
        "ip addr add 192.0.2.7/24 dev eth0; ip addr add 10.0.2.99/24 dev eth0;"
        "ip addr add 192.0.2.8/32 dev eth0 label eth0:1; ip route add 198.51.100.0/24 via 10.0.2.2",
    )
    identity = identity_of(58, await run(guest.agent, CURRENT))
    await guest.become(identity)
    seen = await look(guest.agent)
    assert seen.addresses.split()[:2] == ["inet", "10.0.2.58/24"]
    assert seen.addresses.count("inet") == 1
    assert "198.51.100" not in seen.routes


async def test_the_waiting_helper_is_never_woken(guest: Guest) -> None:
    await run(guest.agent, "rm -f /run/hanok/kept.eth0")
    await guest.become(identity_of(59, await run(guest.agent, CURRENT)))
    await wait_until(guest.agent, "[ -e /run/hanok/kept.eth0 ]")  # its last step
    account = "cd /proc/$(pidof perl) && cat schedstat && grep ctxt status"
    before = await run(guest.agent, account)
    await run(guest.agent, "head -c 3000000 /dev/urandom | sha256sum")
    assert await run(guest.agent, account) == before


async def test_a_killed_helper_comes_back_and_goes_on(guest: Guest) -> None:
    before = await look(guest.agent)
    await run(guest.agent, "rm /run/hanok/ready; kill -9 $(pidof perl)")
    await wait_until(guest.agent, "[ -e /run/hanok/ready ]")
    assert await look(guest.agent) == before
    identity = identity_of(60, await run(guest.agent, CURRENT))
    await guest.become(identity)
    assert (await look(guest.agent)).product == identity.uuid


async def test_a_lease_is_renewed_by_the_new_machine_without_a_gap(guest: Guest) -> None:
    # The address that QEMU's DHCP server gives to the next card that asks.
    identity = identity_of(16, await run(guest.agent, CURRENT))
    await run(guest.agent, "echo 2 > /run/lease.eth0")
    await guest.become(identity)
    await wait_until(guest.agent, "[ -e /run/hanok/kept.eth0 ]")
    watch = (
        "while [ -e /run/hanok/kept.eth0 ]; do"
        " ip -4 addr show eth0 | grep -q 'inet 10.0.2.16/24' || exit 1; done"
    )
    await run(guest.agent, watch)
    await wait_until(guest.agent, "grep -qx 86400 /run/lease.eth0")
    assert await run(guest.agent, "ps | grep -c '[u]dhcpc -i eth0.*hostname:web-16 '") == "1"
    assert "10.0.2.16/24" in (await look(guest.agent)).addresses


async def test_the_kernel_command_line_names_the_machine(
    micro_image: tuple[Image, Path], short_tmp: Path
) -> None:
    image, folder = micro_image
    wanted = machine_id(str(uuid.uuid4()))
    kernels = tuple(
        kernel.model_copy(update={"cmdline": f"{kernel.cmdline} systemd.machine_id={wanted} x=y"})
        for kernel in image.kernels
    )
    named = image.model_copy(update={"kernels": kernels})
    async with boot(named, folder, Mode.PARA, short_tmp, network=NETWORK) as running:
        await ready(running.agent)
        assert await run(running.agent, "cat /etc/machine-id") == wanted
        # Without a UUID in the firmware there is none to replace.
        identity = identity_of(61, await run(running.agent, CURRENT))
        await running.become(identity)
        assert await run(running.agent, "cat /etc/machine-id") == machine_id(identity.uuid)


async def test_an_emulated_card_takes_its_mac_too(
    micro_image: tuple[Image, Path], short_tmp: Path
) -> None:
    image, folder = micro_image
    # Mode full has no port for it: one is lent to the machine, beside the card to be tested.
    port = f"-device virtio-serial-pci {IDENTITY_PORT}".split()
    words = [*WORDS, "-smbios", f"type=1,serial={TEMPLATE}", *port]
    async with boot(image, folder, Mode.FULL, short_tmp, network=NETWORK, more=words) as running:
        await ready(running.agent)
        assert len(await run(running.agent, "cat /etc/machine-id")) == 32
        identity = identity_of(62, await run(running.agent, CURRENT))
        await running.become(identity)
        assert await run(running.agent, CURRENT) == "02:87:00:00:00:3e"
        serial = await run(running.agent, "cat /sys/class/dmi/id/product_serial")
        assert serial == identity.uuid
        async with asyncio.timeout(30):
            await running.agent.ping()
