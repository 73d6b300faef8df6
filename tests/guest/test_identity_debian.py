"""The helper in a booted Debian: networkd, sshd and journald go along with the new identity."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from hanok.guest.identity import Identity, IdentityNic, has_helper, machine_id
from hanok.guest.keys import HostKey, make_host_key
from hanok.guest.readiness import wait_ready
from hanok.guest.seed import SeedData, build_seed
from hanok.images.library import ImageLibrary
from hanok.model.image import Image
from hanok.model.vm import Mode, Ready
from hanok.proc import SystemRunner
from tests.guest.machine import Guest, boot
from tests.guest.test_identity_micro import look, run, wait_until
from tests.guest.test_readiness import Loopback

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1200),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="builds as another uid need root"),
]

TEMPLATE = uuid.UUID("11111111-2222-4333-8444-555555555555")
# What the helper leaves for a minute or three comes after ten to thirty seconds here.
SOONER = (
    "sed -i 's/PAUSE) = (0.1, 60)/PAUSE) = (0.1, 10)/' /usr/lib/hanok/identity &&"
    " grep -q 'PAUSE) = (0.1, 10)' /usr/lib/hanok/identity &&"
    " rm -f /run/hanok/ready && systemctl restart hanok-identity"
)
OLD_MAC = "52:54:00:12:34:56"


@pytest.fixture(scope="module")
def debian_image(micro_image: tuple[Image, Path]) -> tuple[Image, Path]:
    """The image debian:12 and its folder, built if there is none yet."""
    library = ImageLibrary(micro_image[1].parent, SystemRunner())

    def build() -> Image:
        return asyncio.run(library.ensure("debian:12", (), lambda *_: None))

    with ThreadPoolExecutor(1) as pool:
        image = pool.submit(build).result()
    return image, library.path(image)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys() -> AsyncIterator[tuple[HostKey, HostKey]]:
    """The host keys of the guest before and after."""
    work = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    yield (
        await make_host_key(SystemRunner(), work / "keys"),
        await make_host_key(SystemRunner(), work / "keys"),
    )
    shutil.rmtree(work)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(
    debian_image: tuple[Image, Path], keys: tuple[HostKey, HostKey]
) -> AsyncIterator[Guest]:
    """One guest for all tests here, ready with its first identity."""
    image, folder = debian_image
    work = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    seed = build_seed(
        SeedData(
            str(TEMPLATE),
            "first",
            host_key_private=keys[0].private,
            host_key_public=keys[0].public,
            ssh_user="debian",
        )
    )
    try:
        async with boot(
            image,
            folder,
            Mode.PARA,
            work,
            seed=seed,
            memory=384,
            network="net=10.0.2.0/24",
            more=["-uuid", str(TEMPLATE)],
        ) as running:
            await wait_ready(Ready(timeout=300), probe=Loopback(running.agent), cloud_init=True)
            await run(running.agent, SOONER)
            await wait_until(running.agent, "[ -e /run/hanok/ready ]")
            await wait_until(running.agent, "ip -4 addr show eth0 | grep -q dynamic")
            yield running
    finally:
        shutil.rmtree(work)


IDENTITY = Identity(
    "second",
    str(uuid.uuid4()),
    # QEMU's own network gives this address to the second MAC that asks.
    (IdentityNic(OLD_MAC, "02:87:00:00:00:10", "10.0.2.16", 24, "10.0.2.2", "10.0.2.3", "hanok"),),
)


async def test_debian_takes_all_of_its_identity(
    guest: Guest, keys: tuple[HostKey, HostKey]
) -> None:
    agent = guest.agent
    assert await has_helper(agent)
    before = await look(agent)
    assert before.product == str(TEMPLATE)
    assert OLD_MAC in before.links
    # Runs until networkd has its lease for the new card: the address may not be away meanwhile.
    watch = (
        "until ip -4 addr show eth0 | grep -q 'inet 10.0.2.16/24'; do :; done;"
        "until ip -4 addr show eth0 | grep -q 'inet 10.0.2.16/24.* dynamic'; do"
        " ip -4 addr show eth0 | grep -q 'inet 10.0.2.16/24' || exit 1; done"
    )
    given = Identity(
        IDENTITY.host_name, IDENTITY.uuid, IDENTITY.nics, keys[1].private, keys[1].public
    )
    await guest.become(given, 60)
    first = await look(agent)
    await run(agent, watch, limit=60)
    # Whether journald has moved or not, readers find its records.
    assert "first" in await run(agent, "journalctl | head -n 1")
    await wait_until(agent, "grep -q 10.0.2.3 /etc/resolv.conf")
    second = await look(agent)

    for after in (first, second):
        assert after.host_name == "second"
        assert after.files.split("\n", 1)[0] == "second"
        assert re.findall(r"127\.0\.1\.1.*", after.files) == ["127.0.1.1 second"]
        assert after.machine == machine_id(IDENTITY.uuid)
        assert "link/ether 02:87:00:00:00:10 " in after.links
        assert re.findall(r"inet ([0-9./]+)", after.addresses) == ["10.0.2.16/24"]
        assert "default via 10.0.2.2 dev eth0" in after.routes
        assert after.product == IDENTITY.uuid
        table = before.table.replace(TEMPLATE.bytes_le, uuid.UUID(IDENTITY.uuid).bytes_le)
        assert after.table == table
        assert uuid.UUID(after.boot).version == 4
        assert after.boot != before.boot
    assert "default via 10.0.2.2 dev eth0 proto dhcp src 10.0.2.16 metric 1024" in second.routes


async def test_link_local_address_follows_the_mac(guest: Guest) -> None:
    await wait_until(guest.agent, "ip -6 addr show eth0 | grep -q 'fe80::87:ff:fe00:10/64'")
    assert "fe80::5054" not in await run(guest.agent, "ip -6 addr show eth0")


async def test_sshd_has_the_new_key_and_no_other(
    guest: Guest, keys: tuple[HostKey, HostKey]
) -> None:
    wanted = " ".join(keys[1].public.split()[:2])
    scan = "ssh-keyscan 127.0.0.1 2>/dev/null"
    await wait_until(guest.agent, f"{scan} | grep -q 'ssh-ed25519 '")
    assert await run(guest.agent, scan) == f"127.0.0.1 {wanted}"
    modes = await run(guest.agent, "cd /etc/ssh && stat -c '%a %U %n' ssh_host_*")
    assert modes.splitlines() == [
        "600 root ssh_host_ed25519_key",
        "644 root ssh_host_ed25519_key.pub",
    ]
    assert await run(guest.agent, "cat /etc/ssh/ssh_host_ed25519_key.pub") == keys[1].public
    private = await run(guest.agent, "cat /etc/ssh/ssh_host_ed25519_key")
    assert private == keys[1].private.strip()


async def test_the_journal_goes_on_under_the_new_machine(guest: Guest) -> None:
    agent = guest.agent
    folder = f"/var/log/journal/{machine_id(IDENTITY.uuid)}"
    await wait_until(agent, f"[ -d {folder} ] && [ ! -L {folder} ]")
    assert "first" in await run(agent, "journalctl | head -n 1")
    await run(agent, "logger -t hanok-test it goes on")
    await wait_until(agent, "journalctl -b -t hanok-test | grep -q 'it goes on'")
    assert await run(agent, "ls /var/log/journal") == machine_id(IDENTITY.uuid)


async def test_no_unit_failed(guest: Guest) -> None:
    assert await run(guest.agent, "systemctl is-system-running") == "running"


async def test_the_agent_is_an_ordinary_process_again(guest: Guest) -> None:
    policy = "chrt -p $(cat /run/hanok-agent.pid)"
    assert "SCHED_OTHER" in await run(guest.agent, policy)
