"""The bridge and the taps of a network."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - to_thread's; later we may not read it
import contextlib
import fcntl
import os
import socket
import struct

from hanok.errors import CommandFailed, HostError
from hanok.network.keeper import rtnetlink
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


class Links:
    """The bridge and the taps of the network namespace in which this object is made."""

    def __init__(self) -> None:
        self._netlink = rtnetlink.Rtnetlink()
        self._bridge = 0

    def make_bridge(self, config: Config) -> None:
        """Set up the namespace's own switches, the loopback and the bridge with the gateway."""
        for name, value in _SYSCTLS.items():
            with (
                contextlib.suppress(FileNotFoundError),  # no IPv6 or no br_netfilter here
                open(f"/proc/sys/net/{name}", "w") as switch,
            ):
                switch.write(value)
        self._netlink.run(
            rtnetlink.set_up(socket.if_nametoindex("lo")),
            rtnetlink.add_bridge(BRIDGE, GATEWAY_MAC, _MTU),
        )
        self._bridge = socket.if_nametoindex(BRIDGE)
        self._netlink.run(
            rtnetlink.add_address(self._bridge, config.gateway, config.network.prefixlen),
            rtnetlink.set_up(self._bridge),
        )

    async def make_tap(self, port: Port) -> int:
        """Return the descriptor of a new tap in the bridge; one of the same name is replaced.

        The bridge learns no addresses from it and floods no unknown ones to it: the filters do
        not see frames to 01:80:c2:00:00:0x, from which it would learn (br_handle_frame in Linux).
        The gateway knows where the VM is and never asks: a question would wake every guest, and
        who has the address now is not who had it a moment ago.
        """
        await self.remove_tap(port)
        descriptor = _open_tap(port.tap)
        try:
            self._plug(port)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def take_link(self, port: Port, link: str) -> None:
        """Put ``link``, which was moved into this namespace, in place of the tap of ``port``.

        It takes the name by which the filters know the port. Raises HostError, CommandFailed.
        """
        if not has_link(link):
            raise HostError(f"the interface {link} is not in the namespace of its network")
        await self.remove_tap(port)
        self._netlink.run(rtnetlink.rename(socket.if_nametoindex(link), port.tap))
        self._plug(port)

    def _plug(self, port: Port) -> None:
        """Put the interface with the name of the port's tap into the bridge."""
        index = socket.if_nametoindex(port.tap)
        try:
            self._netlink.run(
                rtnetlink.enslave(index, self._bridge, _MTU),
                rtnetlink.isolate_learning(index),
                rtnetlink.pin(index, port.mac),
                rtnetlink.add_neighbour(self._bridge, port.address, port.mac),
                rtnetlink.set_up(index),
            )
        except BaseException:
            self._forget(port)
            raise

    async def remove_tap(self, port: Port) -> None:
        """Remove the tap of ``port`` if there is one, even when a hypervisor still holds it.

        The kernel waits for its readers then (16 ms), so that happens in a thread.
        """
        self._forget(port)
        if has_link(port.tap):
            await asyncio.to_thread(self._delete, port.tap)

    def _forget(self, port: Port) -> None:
        with contextlib.suppress(CommandFailed):  # the address is not known
            self._netlink.run(rtnetlink.delete_neighbour(self._bridge, port.address))

    def _delete(self, name: str) -> None:
        try:
            index = socket.if_nametoindex(name)
            self._netlink.run(rtnetlink.delete_link(index))
        except (OSError, CommandFailed):
            if has_link(name):  # else its last descriptor was closed meanwhile
                # A link that was taken is its maker's to delete (Xen's netback): unplug it.
                self._netlink.run(rtnetlink.release(index))


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
