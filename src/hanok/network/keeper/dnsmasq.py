"""What dnsmasq is told: options, files, and messages of DNS and DHCP."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Iterable

from hanok.network.keeper.config import BRIDGE, DOMAIN, Config, Port

VERSION_NAME = f"_generation.{DOMAIN}"
# RFC 2131 and RFC 2132
_BOOTP = struct.Struct(">BBBBIHH4s12x16s192x4s")
_BOOTREQUEST = 1
_ETHERNET = 1
_MAGIC = bytes((99, 130, 83, 99))
_MESSAGE_TYPE = 53
_RELEASE = 7
_SERVER = 54
_END = 255
# RFC 1035
_HEADER = struct.Struct(">6H")
_RECURSION_DESIRED = 0x0100
_A_IN = struct.pack(">2H", 1, 1)


def options(config: Config, hosts: str, names: str, servers: str) -> list[str]:
    """Return dnsmasq's options; the three are paths of files that SIGHUP reads again.

    An empty user and group keep dnsmasq from changing either, which a user namespace forbids.
    """
    network = config.network
    return [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=",
        "--group=",
        "--pid-file=",
        "--log-facility=-",
        "--quiet-dhcp",
        f"--interface={BRIDGE}",
        "--except-interface=lo",
        "--bind-interfaces",
        "--no-hosts",
        "--no-resolv",
        "--domain-needed",
        f"--addn-hosts={names}",
        f"--servers-file={servers}",
        f"--domain={DOMAIN}",
        f"--local=/{DOMAIN}/",
        "--local-ttl=5",
        f"--dhcp-range={network[0]},static,{network.netmask},infinite",
        f"--dhcp-hostsfile={hosts}",
        f"--dhcp-option=option:domain-search,{DOMAIN}",
        "--dhcp-authoritative",
        "--dhcp-ignore-names",
        "--leasefile-ro",
        "--no-ping",
    ]


def hosts_text(ports: Iterable[Port]) -> str:
    """Return the static leases."""
    return "".join(f"{p.mac},{p.address},{p.host_name},infinite\n" for p in ports)


def names_text(ports: Iterable[Port], version: int) -> str:
    """Return the names, and the number of these files as the address of VERSION_NAME."""
    lines = [f"{version_address(version)} {VERSION_NAME}\n"]
    lines += [f"{p.address} {p.host_name} {full_name(p)}\n" for p in ports]
    return "".join(lines)


def version_address(version: int) -> str:
    """Return the address that stands for a version of the files."""
    return str(ipaddress.IPv4Address((127 << 24) | version & 0xFFFFFF))


def full_name(port: Port) -> str:
    """Return the name of a VM with its domain."""
    return f"{port.host_name}.{DOMAIN}"


def release_message(port: Port, server: str) -> bytes:
    """Return the DHCP message by which a client gives its lease back."""
    card = bytes.fromhex(port.mac.replace(":", ""))
    head = (_BOOTREQUEST, _ETHERNET, len(card), 0, 0, 0, 0, socket.inet_aton(port.address))
    chosen = bytes((_MESSAGE_TYPE, 1, _RELEASE, _SERVER, 4)) + socket.inet_aton(server)
    return _BOOTP.pack(*head, card, _MAGIC) + chosen + bytes((_END,))


def send_release(port: Port, server: str) -> None:
    """Give the lease of ``port`` back in its place, as dhcp_release(1) does.

    A packet to oneself counts as received by the interface that the sender is bound to, which is
    the one that dnsmasq listens to.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, BRIDGE.encode())
        sock.sendto(release_message(port, server), (server, 67))


async def ask(server: str, name: str, timeout: float) -> str | None:
    """Return the IPv4 address of ``name``, "" when it has none; None when nobody answers."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = _HEADER.pack(1, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\0" + _A_IN
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect((server, 53))
            sock.send(query)
            async with asyncio.timeout(timeout):
                answer = await loop.sock_recv(sock, 512)
        except (OSError, TimeoutError):
            return None
    if len(answer) < len(query):
        return None
    return socket.inet_ntoa(answer[-4:]) if _HEADER.unpack_from(answer)[3] else ""
