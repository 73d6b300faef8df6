"""What a guest may not do: every frame is made by hand and sent through a real tap."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from hanok.network.keepers import KeeperNetworks
from tests.network.conftest import CLOSED, RECORD, Bench, make_port
from tests.network.forged import (
    FOREIGN_ADDRESS,
    FOREIGN_MAC,
    GATEWAY,
    MARK,
    check_nothing_forged_passes,
    marked,
)
from tests.network.frames import (
    ARP,
    BROADCAST,
    GATEWAY_MAC,
    IPV4,
    FrameGuest,
    arp,
    dhcp,
    dhcp_client_frame,
    dhcp_options,
    echo,
    ethernet,
    udp,
)

pytestmark = pytest.mark.vm

BAD, VICTIM, OTHER = make_port(2), make_port(3), make_port(4)
LINK_LOCAL = "01:80:c2:00:00:0e"


def bad_udp(source: str = BAD.address, target: str = VICTIM.address) -> bytes:
    return udp((source, 4000), (target, 4000), MARK)


def attempt(
    bench: Bench, body: Callable[[FrameGuest, FrameGuest, FrameGuest], Awaitable[None]]
) -> None:
    """Run ``body`` with a bad guest, its victim and a third one on one network."""

    async def main(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD.model_copy(update={"outward": False}), [])
        guests = [await bench.plug(networks, port) for port in (BAD, VICTIM, OTHER)]
        try:
            await body(*guests)
        finally:
            for guest in guests:
                guest.close()

    bench.run(main)


def test_no_forged_frame_reaches_another_port(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        check_nothing_forged_passes(bad, victim, other)

    attempt(bench, body)


def test_the_gateway_asks_nobody_where_a_guest_is(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        assert bad.ping(GATEWAY, GATEWAY_MAC)
        assert bad.resolve("vm3", GATEWAY) == VICTIM.address
        for guest in (bad, victim, other):
            assert list(guest.frames(0.2)) == []

    attempt(bench, body)


def test_the_bridge_never_learns_a_forged_address(bench: Bench) -> None:
    """Frames to 01:80:c2:00:00:0x pass the filters by, and a bridge learns from them."""

    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        for last in range(16):
            target = f"{LINK_LOCAL[:-1]}{last:x}"
            bad.send(ethernet(VICTIM.mac, target, 0x88CC, MARK))
            bad.send(ethernet(GATEWAY_MAC, target, 0x88CC, MARK))
        frame = udp((OTHER.address, 4000), (VICTIM.address, 4000), MARK)
        other.send(ethernet(OTHER.mac, VICTIM.mac, IPV4, frame))
        assert victim.find(marked) is not None
        assert bad.find(marked, 0.3) is None
        assert other.ping(GATEWAY, GATEWAY_MAC)

    attempt(bench, body)


def test_questions_go_to_who_can_answer_and_wake_nobody_else(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        for wanted in (VICTIM.address, GATEWAY, BAD.address, FOREIGN_ADDRESS):
            bad.send(arp(BAD.mac, BAD.address, wanted))
        bad.send(arp(BAD.mac, BAD.address, VICTIM.address, reply=True))
        assert bad.lease()["address"] == BAD.address
        everybody = udp((BAD.address, 4000), ("255.255.255.255", 4000), MARK)
        bad.send(ethernet(BAD.mac, BROADCAST, IPV4, everybody))
        for guest, arps in ((victim, 2), (other, 1)):
            seen: list[bytes] = []
            while not seen or not marked(seen[-1]):
                seen.append(next(guest.frames(5)))
            assert [frame[12:14] for frame in seen] == [b"\x08\x06"] * arps + [b"\x08\x00"]

    attempt(bench, body)


def test_frames_for_others_are_not_flooded(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        frame = udp((OTHER.address, 4000), (VICTIM.address, 4000), MARK)
        other.send(ethernet(OTHER.mac, FOREIGN_MAC, IPV4, frame))
        other.send(ethernet(OTHER.mac, VICTIM.mac, IPV4, frame))
        assert victim.find(marked) is not None
        assert bad.find(marked, 0.3) is None

    attempt(bench, body)


def test_a_guest_cannot_take_or_decline_the_lease_of_another(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        declined = bytes((50, 4)) + socket.inet_aton(VICTIM.address)
        declined += bytes((54, 4)) + socket.inet_aton(GATEWAY)
        for message in (
            dhcp(VICTIM.mac, 4, options=declined),
            dhcp(VICTIM.mac, 1),
            dhcp(FOREIGN_MAC, 1),
        ):
            bad.send(dhcp_client_frame(VICTIM.mac, message, frame_mac=BAD.mac))
        assert bad.lease()["address"] == BAD.address
        assert victim.lease()["address"] == VICTIM.address

    attempt(bench, body)


def test_the_keeper_itself_answers_dhcp_dns_and_echo_only(bench: Bench) -> None:
    """What is closed gives no answer at all; a refusal would be the keeper's own."""

    def call(kind: socket.SocketKind, port: int) -> None:
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.settimeout(0.5)
            sock.connect((GATEWAY, port))
            sock.send(MARK)
            if kind is socket.SOCK_DGRAM:
                sock.recv(100)

    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD.model_copy(update={"outward": False}), [])
        guest = await bench.plug_stack(networks, BAD)
        try:
            for kind, port in ((socket.SOCK_STREAM, 22), (socket.SOCK_DGRAM, 9)):
                with pytest.raises(TimeoutError):
                    await asyncio.to_thread(guest.namespace.run, partial(call, kind, port))
            stream = partial(call, socket.SOCK_STREAM, 53)
            await asyncio.to_thread(guest.namespace.run, stream)
        finally:
            guest.close()

    bench.run(body)


def test_frames_to_the_tap_itself_are_not_answered(bench: Bench) -> None:
    """Frames to link-local addresses come to the tap instead of the bridge."""

    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        for packet in (echo(BAD.address, GATEWAY), echo(VICTIM.address, GATEWAY)):
            bad.send(ethernet(BAD.mac, LINK_LOCAL, IPV4, packet))
        bad.send(ethernet(BAD.mac, LINK_LOCAL, ARP, arp(BAD.mac, BAD.address, GATEWAY)[14:]))
        assert list(bad.frames(0.5)) == []
        assert bad.ping(GATEWAY, GATEWAY_MAC)
        assert bad.resolve("vm3", GATEWAY) == VICTIM.address

    attempt(bench, body)


def test_leases_and_names(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        got = victim.lease()
        options = got["options"]
        assert got["address"] == VICTIM.address
        assert isinstance(options, dict)
        assert options[1] == b"\xff\xff\xfc\x00"
        assert options[3] == options[6] == socket.inet_aton(GATEWAY)
        assert options[12] == b"vm3"
        assert options[15] == b"hanok"
        assert victim.resolve("vm2", GATEWAY) == BAD.address
        assert victim.resolve("vm4.hanok", GATEWAY) == OTHER.address
        assert victim.resolve("vm5.hanok", GATEWAY) is None
        assert victim.resolve("example.com", GATEWAY) is None

    attempt(bench, body)


def test_a_name_in_a_dhcp_request_is_ignored(bench: Bench) -> None:
    async def body(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
        named = bytes((12, 8)) + b"database"
        bad.send(dhcp_client_frame(BAD.mac, dhcp(BAD.mac, 1, options=named)))
        wanted = bytes((50, 4)) + socket.inet_aton(BAD.address) + bytes((54, 4))
        wanted += socket.inet_aton(GATEWAY) + named
        bad.send(dhcp_client_frame(BAD.mac, dhcp(BAD.mac, 3, options=wanted)))

        def acknowledged(frame: bytes) -> bool:
            return frame[36:38] == b"\0\x44" and dhcp_options(frame[42:])[53] == b"\5"

        assert bad.find(acknowledged) is not None
        assert victim.resolve("database", GATEWAY) is None
        assert victim.resolve("database.hanok", GATEWAY) is None

    attempt(bench, body)


def test_two_networks_do_not_reach_each_other(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        other = make_port(9, network=CLOSED)
        await networks.ensure(RECORD, [])
        await networks.ensure(CLOSED, [])
        here = await bench.plug(networks, BAD)
        there = FrameGuest(await networks.attach(CLOSED.name, other), other.mac, other.address)
        await networks.settle(CLOSED.name)
        try:
            for target in (other.address, CLOSED.gateway):
                for mac in (GATEWAY_MAC, other.mac):
                    here.send(ethernet(BAD.mac, mac, IPV4, echo(BAD.address, target)))
            here.send(arp(BAD.mac, BAD.address, other.address))
            here.send(ethernet(BAD.mac, BROADCAST, IPV4, bad_udp(target=other.address)))
            assert here.ping(GATEWAY, GATEWAY_MAC)
            assert list(there.frames(0.5)) == []
            assert here.resolve(other.host_name, GATEWAY) is None
            assert there.resolve(BAD.host_name, CLOSED.gateway) is None
        finally:
            here.close()
            there.close()

    bench.run(body)
