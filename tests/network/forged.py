"""Frames that no guest may get through to another, and the proof that none does."""

from __future__ import annotations

import socket
import struct

from tests.network.conftest import RECORD
from tests.network.frames import (
    BROADCAST,
    GATEWAY_MAC,
    IPV4,
    IPV6,
    VLAN,
    FrameGuest,
    arp,
    dhcp,
    ethernet,
    ipv4_fragment,
    udp,
)

GATEWAY = RECORD.gateway
FOREIGN_MAC = "52:54:99:99:99:99"
FOREIGN_ADDRESS = "10.87.0.66"
MARK = b"hanok-test-mark"


def marked(frame: bytes) -> bool:
    """Return whether this is one of ours."""
    return MARK in frame


def _tagged(frame: bytes, kind: int = VLAN, number: int = 0) -> bytes:
    return frame[:12] + struct.pack(">HH", kind, number) + frame[12:]


def _router_advertisement(mac: str) -> bytes:
    body = bytes((134, 0, 0, 0, 64, 0)) + struct.pack(">HII", 1800, 0, 0) + MARK
    head = struct.pack(">IHBB", 6 << 28, len(body), 58, 255)
    source = socket.inet_pton(socket.AF_INET6, "fe80::1")
    target = socket.inet_pton(socket.AF_INET6, "ff02::1")
    return ethernet(mac, "33:33:00:00:00:01", IPV6, head + source + target + body)


def _offers(bad: FrameGuest, victim: FrameGuest) -> dict[str, bytes]:
    """Return answers that only a DHCP server gives."""
    message = dhcp(victim.mac, 2, operation=2, offered=FOREIGN_ADDRESS) + MARK

    def offer(source: str) -> bytes:
        return udp((source, 67), ("255.255.255.255", 68), message)

    return {
        "DHCP offer": ethernet(bad.mac, BROADCAST, IPV4, offer(bad.address)),
        "DHCP offer as the gateway": ethernet(bad.mac, BROADCAST, IPV4, offer(GATEWAY)),
        "DHCP offer in a fragment": ethernet(
            bad.mac, BROADCAST, IPV4, ipv4_fragment(offer(bad.address))
        ),
    }


def forged_frames(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> dict[str, bytes]:
    """Return what ``bad`` sends to fool ``victim`` or ``other``, by what is wrong with it."""

    def packet(source: str = bad.address) -> bytes:
        return udp((source, 4000), (victim.address, 4000), MARK)

    def frame(packet: bytes, *, mac: str = bad.mac, kind: int = IPV4) -> bytes:
        return ethernet(mac, victim.mac, kind, packet)

    bootp = udp(("0.0.0.0", 68), (victim.address, 67), MARK)
    from_victim = udp((victim.address, 4000), (victim.address, 4000), MARK)
    inside = arp(victim.mac, bad.address, other.address, reply=True, frame_mac=bad.mac)
    honest = frame(packet())
    return {
        "another MAC": frame(packet(), mac=FOREIGN_MAC),
        "the victim's MAC": ethernet(victim.mac, other.mac, IPV4, from_victim),
        "the gateway's MAC": frame(packet(), mac=GATEWAY_MAC),
        "another address": frame(packet(FOREIGN_ADDRESS)),
        "the gateway's address": frame(packet(GATEWAY)),
        "the other's address": frame(packet(other.address)),
        "an address of the outside": frame(packet("8.8.8.8")),
        "no address": frame(packet("0.0.0.0")),
        "no address, as a DHCP client to one guest": frame(bootp),
        "ARP as the gateway": arp(bad.mac, GATEWAY, victim.address, reply=True) + MARK,
        "ARP as the victim": arp(bad.mac, victim.address, other.address, reply=True) + MARK,
        "ARP with another MAC inside": inside + MARK,
        "ARP without an address": arp(bad.mac, "0.0.0.0", victim.address) + MARK,
        "IPv6 router advertisement": _router_advertisement(bad.mac),
        "VLAN tag 0": _tagged(honest),
        "VLAN tag 1": _tagged(honest, number=1),
        "VLAN tag 7": _tagged(honest, number=7),
        "provider VLAN tag": _tagged(honest, kind=0x88A8, number=7),
        "two VLAN tags": _tagged(_tagged(honest, number=1), number=2),
        "tagged ARP": _tagged(arp(bad.mac, bad.address, victim.address)) + MARK,
        "802.3 frame": ethernet(bad.mac, BROADCAST, 40, b"\xaa\xaa\x03" + MARK),
        "unknown protocol": frame(MARK, kind=0x88B5),
        "jumbo of another protocol": frame(MARK, kind=0x8870),
        **_offers(bad, victim),
    }


def check_nothing_forged_passes(bad: FrameGuest, victim: FrameGuest, other: FrameGuest) -> None:
    """Send all of it, and an honest frame behind each, which shows that it has had its turn."""
    for name, frame in forged_frames(bad, victim, other).items():
        bad.send(frame)
        after = b"after " + name.encode()
        for guest in (victim, other):
            honest = udp((bad.address, 4000), (guest.address, 4000), after)
            bad.send(ethernet(bad.mac, guest.mac, IPV4, honest))
            seen = guest.find(lambda f, a=after: marked(f) or a in f)  # type: ignore[misc]
            assert seen is not None, f"{name}: an honest frame was lost"
            assert not marked(seen), f"{name} went through"
