"""Ethernet frames made by hand, and a guest that sends and receives them through its tap."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

VNET_HEADER = bytes(10)
BROADCAST = "ff:ff:ff:ff:ff:ff"
GATEWAY_MAC = "02:68:61:6e:6f:6b"
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
_MAGIC = bytes((99, 130, 83, 99))


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of a MAC."""
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    """Return a frame, padded to the smallest size."""
    frame = mac_bytes(target) + mac_bytes(source) + struct.pack(">H", kind) + payload
    return frame.ljust(60, b"\0")


def arp(mac: str, address: str, wanted: str, *, reply: bool = False, frame_mac: str = "") -> bytes:
    """Return an ARP request by (mac, address) for ``wanted``, or a reply to everybody."""
    body = struct.pack(">HHBBH", 1, IPV4, 6, 4, 2 if reply else 1)
    body += mac_bytes(mac) + socket.inet_aton(address) + bytes(6) + socket.inet_aton(wanted)
    return ethernet(frame_mac or mac, BROADCAST, ARP, body)


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """Return an IPv4 packet."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = head[:10] + struct.pack(">H", checksum(head + addresses)) + addresses
    return head + payload


def ipv4_fragment(packet: bytes) -> bytes:
    """Return the packet as a first fragment, more to come."""
    return packet[:6] + struct.pack(">H", 0x2000) + packet[8:]


def udp(source: tuple[str, int], target: tuple[str, int], payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram (its checksum left out, as RFC 768 allows)."""
    datagram = struct.pack(">HHHH", source[1], target[1], 8 + len(payload), 0) + payload
    return ipv4(source[0], target[0], 17, datagram)


def echo(source: str, target: str, number: int = 1) -> bytes:
    """Return an IPv4 packet with an ICMP echo request."""
    body = struct.pack(">BBHHH", 8, 0, 0, 7, number)
    body = struct.pack(">BBHHH", 8, 0, checksum(body), 7, number)
    return ipv4(source, target, 1, body)


def dhcp(
    mac: str, kind: int, *, operation: int = 1, offered: str = "0.0.0.0", options: bytes = b""
) -> bytes:
    """Return a DHCP message (RFC 2131) of ``kind`` (1 discover, 2 offer, 3 request, 4 decline)."""
    head = struct.pack(">BBBBIHH", operation, 1, 6, 0, 0x1234, 0, 0x8000)
    addresses = bytes(4) + socket.inet_aton(offered) + bytes(8)
    message = head + addresses + mac_bytes(mac).ljust(16, b"\0") + bytes(192) + _MAGIC
    return message + bytes((53, 1, kind)) + options + b"\xff"


def dhcp_client_frame(
    mac: str, message: bytes, *, source: str = "0.0.0.0", frame_mac: str = ""
) -> bytes:
    """Return the frame of a DHCP client's message to everybody."""
    return ethernet(
        frame_mac or mac, BROADCAST, IPV4, udp((source, 68), ("255.255.255.255", 67), message)
    )


def dhcp_options(message: bytes) -> dict[int, bytes]:
    """Return the options of a DHCP message."""
    found = {}
    offset = message.index(_MAGIC) + 4
    while message[offset] != 255:
        kind, size = message[offset], message[offset + 1]
        found[kind] = message[offset + 2 : offset + 2 + size]
        offset += 2 + size
    return found


def dns_query(name: str) -> bytes:
    """Return a DNS question for the IPv4 address of ``name`` (RFC 1035)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


class FrameGuest:
    """A guest that is only its tap: it sends what it likes and sees all that reaches it."""

    def __init__(self, tap: int, mac: str, address: str) -> None:
        self._tap = tap
        self.mac = mac
        self.address = address

    def close(self) -> None:
        """Unplug it: the tap vanishes."""
        os.close(self._tap)

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        os.write(self._tap, VNET_HEADER + frame)

    def frames(self, timeout: float) -> Iterator[bytes]:
        """Yield what arrives within ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            if select.select([self._tap], [], [], left)[0]:
                yield os.read(self._tap, 70000)[len(VNET_HEADER) :]

    def find(self, wanted: Callable[[bytes], bool], timeout: float = 5) -> bytes | None:
        """Return the first frame that is ``wanted``, None when none comes in time."""
        return next((frame for frame in self.frames(timeout) if wanted(frame)), None)

    def lease(self) -> dict[str, object]:
        """Get an address by DHCP, as a guest does, and return what the server said."""
        self.send(dhcp_client_frame(self.mac, dhcp(self.mac, 1)))
        offer = self._dhcp_answer(2)
        chosen = bytes((50, 4)) + offer[16:20] + bytes((54, 4)) + dhcp_options(offer)[54]
        self.send(dhcp_client_frame(self.mac, dhcp(self.mac, 3, options=chosen)))
        answer = self._dhcp_answer(5)
        return {"address": socket.inet_ntoa(answer[16:20]), "options": dhcp_options(answer)}

    def _dhcp_answer(self, kind: int) -> bytes:
        def wanted(frame: bytes) -> bool:
            mine = frame[36:38] == b"\0\x44" and frame[70:76] == mac_bytes(self.mac)
            return mine and dhcp_options(frame[42:])[53] == bytes([kind])

        frame = self.find(wanted)
        assert frame is not None, "no DHCP server answered"
        return frame[42:]

    def resolve(self, name: str, gateway: str) -> str | None:
        """Ask the gateway for the address of ``name``; None when it has none.

        UDP may be lost, so it asks three times, as resolv.conf(5) has every resolver do.
        """
        packet = udp((self.address, 5353), (gateway, 53), dns_query(name))
        for _ in range(3):
            self.send(ethernet(self.mac, GATEWAY_MAC, IPV4, packet))
            frame = self._converse(lambda f: f[12:14] == b"\x08\x00" and f[34:36] == b"\0\x35")
            if frame is not None:
                break
        assert frame is not None, "no DNS server answered"
        answer = frame[42:]
        return socket.inet_ntoa(answer[-4:]) if answer[7] else None

    def ping(self, target: str, target_mac: str) -> bool:
        """Return whether ``target`` answers one of three echo requests.

        The first may be lost: the kernel tells a bridge a little later that it has a port again.
        """
        source = socket.inet_aton(target)

        def answered(frame: bytes) -> bool:
            return frame[23] == 1 and frame[26:30] == source and frame[34] == 0

        for _ in range(3):
            self.send(ethernet(self.mac, target_mac, IPV4, echo(self.address, target)))
            if self._converse(answered, 2) is not None:
                return True
        return False

    def _converse(self, wanted: Callable[[bytes], bool], timeout: float = 5) -> bytes | None:
        """Like find, but answer the ARP requests for our own address meanwhile."""
        mine = socket.inet_aton(self.address)
        for frame in self.frames(timeout):
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == mine:
                asker = socket.inet_ntoa(frame[28:32])
                self.send(arp(self.mac, self.address, asker, reply=True))
            elif wanted(frame):
                return frame
        return None
