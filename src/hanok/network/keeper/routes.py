"""The host's own addresses, as its kernel tells them: rtnetlink(7).

The netlink socket was made by the daemon in the host's network namespace and goes on speaking
for that one, so the keeper notices a new address of the host even when no daemon runs.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

# linux/rtnetlink.h, linux/netlink.h, linux/if_addr.h
_NLMSG_DONE = 3
_RTMGRP_IPV4_IFADDR = 0x10
_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_RTM_GETADDR = 22
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")


def open_routes() -> socket.socket:
    """Return a socket that hears of changed addresses in the caller's network namespace."""
    routes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    routes.bind((0, _RTMGRP_IPV4_IFADDR))
    routes.setblocking(False)
    return routes


def address_request() -> bytes:
    """Return the message that asks for all IPv4 addresses."""
    size = _HEADER.size + _IFADDRMSG.size
    header = _HEADER.pack(size, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    return header + _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)


@dataclass(frozen=True)
class Heard:
    """What one datagram told: addresses that are there, whether one went, whether a dump ended."""

    there: frozenset[str]
    gone: bool
    done: bool


def parse_addresses(data: bytes) -> Heard:
    """Return what ``data``, netlink messages, tells of IPv4 addresses."""
    there = set()
    gone = done = False
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        body = data[offset + _HEADER.size : offset + length]
        done |= kind == _NLMSG_DONE
        gone |= kind == _RTM_DELADDR
        if kind == _RTM_NEWADDR and body[0] == socket.AF_INET:
            found = _attributes(body[_IFADDRMSG.size :])
            address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
            if address is not None and len(address) == 4:
                there.add(socket.inet_ntoa(address))
        offset += (length + 3) & ~3
    return Heard(frozenset(there), gone, done)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found
