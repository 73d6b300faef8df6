"""An interface of the host in place of a VM's tap, as Xen's back ends make them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

import pytest

from hanok.errors import GuestError, HostError, NotFound
from hanok.model.network import NetworkPort
from hanok.network.keepers import KeeperNetworks
from tests.network.conftest import RECORD, Bench, make_port
from tests.network.namespaces import StackGuest
from tests.network.test_keepers import serve

pytestmark = pytest.mark.vm

LINK = "vif7.0"
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI_VNET_HDR = 0x5002


def make_link() -> int:
    """Make an interface in the host's namespace; its other end is a descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH22x", LINK.encode(), _IFF_TAP_NO_PI_VNET_HDR)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


async def answers(networks: KeeperNetworks, guest: StackGuest, port: NetworkPort) -> bool:
    """Whether a service in the guest answers through the network."""
    service = await serve(guest, 80, b"here")
    try:
        sock = await networks.connect(RECORD.name, port.address, 80, 3)
    except GuestError:
        return False
    finally:
        service.close()
    sock.close()
    return True


def test_a_link_takes_the_place_of_the_tap_with_its_filters(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        port = make_port(2)
        await bench.ensure(networks)
        os.close(await networks.attach(RECORD.name, port))
        link = make_link()
        await networks.plug_link(RECORD.name, port.vm, LINK)
        with pytest.raises(OSError):
            socket.if_nametoindex(LINK)
        assert f"t{port.vm.replace('-', '')[-14:]}" in bench.inside("ip", "-br", "link")
        guest = StackGuest(link, port.mac, port.address, RECORD.gateway)
        try:
            assert await answers(networks, guest, port)
            guest.namespace.ip("link set eth0 address 52:54:00:00:00:99")
            assert not await answers(networks, guest, port)
        finally:
            guest.close()
        await networks.detach(RECORD.name, port.vm)
        assert LINK not in bench.inside("ip", "-br", "link")

    bench.run(body)


def test_a_tap_is_made_anew(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        port = make_port(2)
        await bench.ensure(networks)
        os.close(await networks.attach(RECORD.name, port))
        tap = await networks.renew_tap(RECORD.name, port.vm)
        guest = StackGuest(tap, port.mac, port.address, RECORD.gateway)
        try:
            assert await answers(networks, guest, port)
        finally:
            guest.close()

    bench.run(body)


def test_what_is_not_there_cannot_be_plugged_in(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        port = make_port(2)
        with pytest.raises(HostError, match="not running"):
            await networks.plug_link(RECORD.name, port.vm, LINK)
        await bench.ensure(networks)
        with pytest.raises(HostError, match="gone"):
            await networks.plug_link(RECORD.name, port.vm, LINK)
        link = make_link()
        try:
            with pytest.raises(NotFound):
                await networks.plug_link(RECORD.name, port.vm, LINK)
        finally:
            os.close(link)

    bench.run(body)
