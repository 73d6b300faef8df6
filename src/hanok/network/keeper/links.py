"""The bridge and the taps of a network."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

from hanok.errors import HostError
from hanok.network.keeper import commands
from hanok.network.keeper.config import BRIDGE, GATEWAY_MAC, Config, Port

_MTU = 1500
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000

_SYSCTLS = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "1",
    "ipv4/conf/all/arp_ignore": "1",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    # Frames between two ports of the bridge are no business of the inet family.
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-ip6tables": "0",
    "bridge/bridge-nf-call-arptables": "0",
}


async def make_bridge(config: Config) -> None:
    """Set up the namespace's own switches, the loopback and the bridge with the gateway."""
    for name, value in _SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError):  # no IPv6 or no br_netfilter here
            Path("/proc/sys/net", name).write_text(value)
    await commands.ip(
        "link set lo up",
        f"link add {BRIDGE} address {GATEWAY_MAC} mtu {_MTU} type bridge mcast_snooping 0",
        f"address add {config.gateway}/{config.network.prefixlen} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )


async def make_tap(port: Port) -> int:
    """Return the descriptor of a new tap in the bridge; one of the same name is replaced.

    The bridge learns no addresses from it and floods no unknown ones to it: the filters do not
    see frames to 01:80:c2:00:00:0x, from which it would learn (br_handle_frame in Linux).
    """
    await remove_tap(port)
    descriptor = _open_tap(port.tap)
    try:
        await commands.ip(
            f"link set {port.tap} mtu {_MTU} arp off master {BRIDGE}",
            f"link set {port.tap} type bridge_slave learning off flood off",
            f"link set {port.tap} up",
        )
        await commands.bridge(f"fdb replace {port.mac} dev {port.tap} master static")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def remove_tap(port: Port) -> None:
    """Remove the tap of ``port`` if there is one, even when a hypervisor still holds it."""
    if has_link(port.tap):
        await commands.run("ip", "link", "delete", port.tap)


def has_link(name: str) -> bool:
    """Return whether the namespace has an interface of this name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _open_tap(name: str) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"/dev/net/tun cannot be opened: {error.strerror}",
            hint="load the kernel module tun ('modprobe tun'), or run the daemon as root",
        ) from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        raise HostError(f"the tap {name} cannot be made: {error.strerror}") from error
    return descriptor
