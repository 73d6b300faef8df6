"""Links, addresses and bridge entries by rtnetlink(7): what ip(8) and bridge(8) do, without a
process for each change.

Only the few messages that a network needs. A library for all of rtnetlink (pyroute2) would take
more memory than the rest of the keeper and more time than the rest of its start.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from hanok.errors import CommandFailed

# linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_REPLACE = 0x100
_NLM_F_EXCL = 0x200
_NLM_F_CREATE = 0x400
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR = 2
_NLMSGERR_ATTR_MSG = 1
_NLA_F_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# linux/rtnetlink.h
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_SETLINK = 19
_RTM_NEWADDR = 20
_RTM_NEWNEIGH = 28
_RTM_DELNEIGH = 29
# linux/if_link.h, linux/if.h
_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_MASTER = 10
_IFLA_PROTINFO = 12
_IFLA_LINKINFO = 18
_IFLA_NET_NS_PID = 19
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_BR_MCAST_SNOOPING = 23
_IFLA_BRPORT_LEARNING = 8
_IFLA_BRPORT_UNICAST_FLOOD = 9
_IFF_UP = 0x1
_IFF_NOARP = 0x80
_IFINFOMSG = struct.Struct("=BxHiII")
# linux/if_addr.h
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFADDRMSG = struct.Struct("=BBBBI")
# linux/neighbour.h
_NDA_DST = 1
_NDA_LLADDR = 2
_NTF_MASTER = 0x04
_NUD_NOARP = 0x40
_NUD_PERMANENT = 0x80
_NDMSG = struct.Struct("=B3xiHBB")
_TIMEOUT = 20


@dataclass(frozen=True)
class Change:
    """One message that changes something: its type, flags and body."""

    kind: int
    body: bytes
    flags: int = 0


def _attribute(kind: int, data: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(size, kind) + data + bytes(-size % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _link(index: int, *, family: int = socket.AF_UNSPEC, flags: int = 0) -> bytes:
    return _IFINFOMSG.pack(family, 0, index, flags, flags)


def add_bridge(name: str, mac: str, mtu: int) -> Change:
    """Make a bridge that does not snoop on multicast."""
    data = _attribute(_IFLA_BR_MCAST_SNOOPING, b"\0")
    info = _attribute(_IFLA_INFO_KIND, b"bridge") + _attribute(_IFLA_INFO_DATA, data)
    body = _link(0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    body += _attribute(_IFLA_ADDRESS, _mac(mac)) + _number(_IFLA_MTU, mtu)
    body += _attribute(_IFLA_LINKINFO, info)
    return Change(_RTM_NEWLINK, body, _NLM_F_CREATE | _NLM_F_EXCL)


def add_address(index: int, address: str, prefix: int) -> Change:
    """Give the interface an IPv4 address."""
    packed = socket.inet_aton(address)
    body = _IFADDRMSG.pack(socket.AF_INET, prefix, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    return Change(_RTM_NEWADDR, body, _NLM_F_CREATE | _NLM_F_EXCL)


def set_up(index: int) -> Change:
    """Bring the interface up."""
    return Change(_RTM_SETLINK, _link(index, flags=_IFF_UP))


def enslave(index: int, bridge: int, mtu: int) -> Change:
    """Put the interface, which is to answer no ARP of its own, into the bridge."""
    body = _link(index, flags=_IFF_NOARP) + _number(_IFLA_MTU, mtu)
    return Change(_RTM_SETLINK, body + _number(_IFLA_MASTER, bridge))


def rename(index: int, name: str) -> Change:
    """Give the interface, which must be down, another name."""
    return Change(_RTM_SETLINK, _link(index) + _attribute(_IFLA_IFNAME, name.encode() + b"\0"))


def move(index: int, pid: int) -> Change:
    """Move the interface into the network namespace of a process."""
    return Change(_RTM_SETLINK, _link(index) + _number(_IFLA_NET_NS_PID, pid))


def release(index: int) -> Change:
    """Take the interface out of its bridge and bring it down."""
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, _IFF_UP) + _number(_IFLA_MASTER, 0)
    return Change(_RTM_SETLINK, body)


def isolate_learning(index: int) -> Change:
    """Let the bridge learn nothing from this port and flood nothing unknown to it."""
    flags = _attribute(_IFLA_BRPORT_LEARNING, b"\0") + _attribute(_IFLA_BRPORT_UNICAST_FLOOD, b"\0")
    body = _link(index, family=socket.AF_BRIDGE)
    return Change(_RTM_SETLINK, body + _attribute(_IFLA_PROTINFO | _NLA_F_NESTED, flags))


def pin(index: int, mac: str) -> Change:
    """Let the bridge send frames for ``mac`` to this port, for ever."""
    body = _NDMSG.pack(socket.AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0)
    return Change(
        _RTM_NEWNEIGH, body + _attribute(_NDA_LLADDR, _mac(mac)), _NLM_F_CREATE | _NLM_F_REPLACE
    )


def add_neighbour(index: int, address: str, mac: str) -> Change:
    """Let the IPv4 address be known to be at ``mac`` behind the interface, without ARP."""
    body = _NDMSG.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    body += _attribute(_NDA_DST, socket.inet_aton(address)) + _attribute(_NDA_LLADDR, _mac(mac))
    return Change(_RTM_NEWNEIGH, body, _NLM_F_CREATE | _NLM_F_REPLACE)


def delete_neighbour(index: int, address: str) -> Change:
    """Forget where the IPv4 address is."""
    body = _NDMSG.pack(socket.AF_INET, index, 0, 0, 0)
    return Change(_RTM_DELNEIGH, body + _attribute(_NDA_DST, socket.inet_aton(address)))


def delete_link(index: int) -> Change:
    """Remove the interface."""
    return Change(_RTM_DELLINK, _link(index))


class Rtnetlink:
    """Changes the network namespace in which this object is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT)  # the kernel answers within send: never seen
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, *changes: Change) -> None:
        """Make ``changes`` in this order.

        A failure does not keep the later ones from being tried. Raises CommandFailed with what
        the kernel said to the first that failed.
        """
        first = self._sequence + 1
        self._sequence += len(changes)
        self._socket.send(b"".join(_packed(c, n) for n, c in enumerate(changes, first)))
        answers: dict[int, bytes] = {}
        while len(answers) < len(changes):
            answers |= {n: a for n, a in _answers(self._socket.recv(65536)).items() if n >= first}
        for _, answer in sorted(answers.items()):
            if problem := _problem(answer):
                raise CommandFailed(f"the kernel refused a change of links: {problem}")


def _packed(change: Change, sequence: int) -> bytes:
    size = _HEADER.size + len(change.body)
    flags = change.flags | _NLM_F_REQUEST | _NLM_F_ACK
    return _HEADER.pack(size, change.kind, flags, sequence, 0) + change.body + bytes(-size % 4)


def _answers(data: bytes) -> dict[int, bytes]:
    """Return the acknowledgements in a datagram, whole messages by sequence number."""
    found = {}
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        if kind == _NLMSG_ERROR:
            found[sequence] = data[offset : offset + length]
        offset += (length + 3) & ~3
    return found


def _problem(answer: bytes) -> str | None:
    """Return what an acknowledgement says went wrong (netlink(7), NLMSG_ERROR)."""
    number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    if number == 0:
        return None
    text = f"{errno.errorcode.get(number, number)}, {os.strerror(number)}"
    flags = _HEADER.unpack_from(answer)[2]
    offset = _HEADER.size + 4 + _HEADER.size  # behind the code and our own header
    while flags & _NLM_F_ACK_TLVS and offset + _ATTRIBUTE.size <= len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, offset)
        if size < _ATTRIBUTE.size:
            break
        if kind == _NLMSGERR_ATTR_MSG:
            said = answer[offset + _ATTRIBUTE.size : offset + size].rstrip(b"\0")
            return f"{text} ({said.decode('utf-8', 'replace')})"
        offset += (size + 3) & ~3
    return text
