"""Hundreds of ports on one network."""

from __future__ import annotations

import asyncio

import pytest

from hanok.network.keepers import KeeperNetworks
from tests.network.conftest import RECORD, Bench, make_port
from tests.network.forged import GATEWAY, check_nothing_forged_passes
from tests.network.frames import GATEWAY_MAC, FrameGuest

pytestmark = pytest.mark.vm

COUNT = 300
PORTS = [make_port(number) for number in range(2, 2 + COUNT)]


async def attach_all(networks: KeeperNetworks) -> list[FrameGuest]:
    """Attach all, some at the same time, as the daemon does."""
    several = asyncio.Semaphore(4)

    async def attach(number: int) -> FrameGuest:
        async with several:
            port = PORTS[number]
            tap = await networks.attach(RECORD.name, port)
            return FrameGuest(tap, port.mac, port.address)

    guests = await asyncio.gather(*(attach(number) for number in range(COUNT)))
    await networks.settle(RECORD.name)
    return guests


def left_of_ports(bench: Bench) -> list[str]:
    """Return all that the namespace knows of ports."""
    shown = bench.inside("nft", "list", "table", "bridge", "hanok")
    for argv in (("ip", "link"), ("bridge", "fdb"), ("ip", "neighbour")):
        shown += bench.inside(*argv)
    return [line for line in shown.splitlines() if "52:54" in line or "master br0 state" in line]


def test_three_hundred_ports_are_as_safe_as_three(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD.model_copy(update={"outward": False}), [])
        guests = await attach_all(networks)
        first, middle, last = guests[0], guests[COUNT // 2], guests[-1]
        for guest in (first, middle, last):
            assert guest.ping(GATEWAY, GATEWAY_MAC)
            assert guest.lease()["address"] == guest.address
        for trio in ((first, middle, last), (middle, last, first), (last, first, middle)):
            check_nothing_forged_passes(*trio)
        for port in PORTS:
            assert middle.resolve(port.host_name, GATEWAY) == port.address
        assert len(left_of_ports(bench)) >= 6 * COUNT
        for guest in guests[: COUNT // 2]:
            guest.close()
        for port in PORTS:
            await networks.detach(RECORD.name, port.vm)
        assert left_of_ports(bench) == []
        for guest in guests[COUNT // 2 :]:
            guest.close()
        again = await bench.plug(networks, PORTS[0])
        for port in PORTS[1:]:
            assert again.resolve(port.host_name, GATEWAY) is None
        again.close()

    bench.run(body)
