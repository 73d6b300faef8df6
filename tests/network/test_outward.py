"""The way out of a network, and where it must not lead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from hanok.errors import HostError
from hanok.network.keepers import KeeperNetworks
from hanok.network.outward import host_routes
from hanok.proc import Owner, SystemRunner
from tests.network.conftest import CLOSED, RECORD, Bench, eventually, make_port
from tests.network.namespaces import HOST, OUTSIDE, UPLINK, Namespace, StackGuest

pytestmark = pytest.mark.vm


@contextlib.asynccontextmanager
async def service(namespace: Namespace, port: int) -> AsyncIterator[None]:
    """A service on all addresses of ``namespace`` that says from where it is called."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(writer.get_extra_info("peername")[0]).encode())
        writer.close()

    listener = namespace.run(lambda: socket.create_server(("0.0.0.0", port)))
    async with await asyncio.start_server(answer, sock=listener):
        yield


def call(namespace: Namespace, address: str, port: int, timeout: float = 5) -> str:
    """Return what a service says to a caller in ``namespace``; raises OSError."""

    def body() -> str:
        with socket.create_connection((address, port), timeout) as sock:
            return sock.recv(100).decode()

    return namespace.run(body)


async def reach(guest: StackGuest, address: str, port: int, timeout: float = 5) -> str:
    """Call from a guest."""
    return await asyncio.to_thread(call, guest.namespace, address, port, timeout)


def test_a_guest_gets_out_but_not_to_the_host(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        status = await bench.ensure(networks)
        assert status.outward, status.reason
        guest = await bench.plug_stack(networks, make_port(2))
        async with service(bench.world.outside, 80), service(bench.world.host, 8000):
            assert await reach(guest, OUTSIDE, 80) == HOST
            assert await asyncio.to_thread(call, bench.world.outside, HOST, 8000) == UPLINK
            for address in (HOST, "169.254.77.1", "169.254.77.2", "169.254.77.53"):
                with pytest.raises(OSError):
                    await reach(guest, address, 8000, 1)
            # What the host sends to itself leaves through the loopback: not for a guest either.
            guest.namespace.ip("link set lo down", f"route add 127.0.0.2/32 via {RECORD.gateway}")
            with pytest.raises(OSError):
                await reach(guest, "127.0.0.2", 8000, 1)
        guest.close()

    bench.run(body)


def test_an_address_that_the_host_gets_later_is_closed_too(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD, [])
        guest = await bench.plug_stack(networks, make_port(2))
        await networks.close()  # no daemon looks after it any more
        late = "198.18.7.7"

        def forbidden() -> bool:
            return late in bench.inside("nft", "list", "set", "inet", "hanok", "never")

        assert not forbidden()
        bench.world.host.ip(f"address add {late}/32 dev lo")
        await eventually(forbidden)
        async with service(bench.world.host, 8000):
            with pytest.raises(OSError):
                await reach(guest, late, 8000, 1)
        bench.world.host.ip(f"address delete {late}/32 dev lo")
        await eventually(lambda: not forbidden())
        assert HOST in bench.inside("nft", "list", "set", "inet", "hanok", "never")
        guest.close()

    bench.run(body)


def test_published_ports_are_no_way_between_networks(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        other = CLOSED.model_copy(update={"outward": True})
        await networks.ensure(RECORD, [])
        await networks.ensure(other, [])
        port = make_port(2, "0.0.0.0:8080:80")
        one = await bench.plug_stack(networks, port)
        two = await bench.plug_stack(networks, make_port(3, network=CLOSED), other)
        async with service(one.namespace, 80), service(bench.world.outside, 80):
            assert await asyncio.to_thread(call, bench.world.outside, HOST, 8080) == RECORD.gateway
            assert await reach(two, OUTSIDE, 80) == HOST
            for guest in (one, two):
                with pytest.raises(OSError):
                    await reach(guest, HOST, 8080, 1)
            for address in (port.address, RECORD.gateway):
                with pytest.raises(OSError):
                    await reach(two, address, 80, 1)
        one.close()
        two.close()

    bench.run(body)


def resolver() -> str:
    """Return the host's first IPv4 name server, which pasta asks."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and ":" not in words[1]:
            return words[1]
    pytest.skip("this machine has no IPv4 name server")


class Names(asyncio.DatagramProtocol):
    """A name server that gives the same address for every name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + data[12 : data.index(b"\0", 12) + 5]
        answer += b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\x04" + socket.inet_aton(OUTSIDE)
        self._transport.sendto(answer, addr)


def test_names_of_the_outside_resolve_by_the_hosts_resolver(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        address = resolver()
        place = bench.world.host if address.startswith("127.") else bench.world.outside
        if place is bench.world.outside:
            place.ip(f"address add {address}/32 dev lo")
        sock = place.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((address, 53))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Names, sock=sock)
        await networks.ensure(RECORD, [])
        port = make_port(2)
        guest = await bench.plug(networks, port)
        assert await asyncio.to_thread(guest.resolve, "example.com", RECORD.gateway) == OUTSIDE
        assert await asyncio.to_thread(guest.resolve, "vm2", RECORD.gateway) == port.address
        assert await asyncio.to_thread(guest.resolve, "vm9.hanok", RECORD.gateway) is None
        guest.close()
        transport.close()

    bench.run(body)


def test_a_dead_pasta_is_started_again(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD, [])
        guest = await bench.plug_stack(networks, make_port(2))
        (pasta,) = bench.pids("pasta")
        os.kill(pasta, signal.SIGKILL)
        await eventually(lambda: bench.pids("pasta") not in ([], [pasta]))
        await eventually(lambda: "out0" in bench.inside("ip", "route", "show", "default"))
        async with service(bench.world.outside, 80):
            assert await reach(guest, OUTSIDE, 80) == HOST
        assert (await networks.status(RECORD.name)).outward
        guest.close()

    bench.run(body)


class WithoutPasta(SystemRunner):
    """A runner on a machine where pasta does not work."""

    async def spawn(self, argv, *, owner: Owner, **rest) -> int:  # type: ignore[no-untyped-def]
        if owner.kind == "pasta":
            argv = ["sh", "-c", "echo 'it does not work here' >&2; exit 1"]
        return await super().spawn(argv, owner=owner, **rest)


@pytest.mark.parametrize("trouble", ["no route", "no pasta", "not wanted"])
def test_without_a_way_out_the_network_works_all_the_same(bench: Bench, trouble: str) -> None:
    async def body(networks: KeeperNetworks) -> None:
        record, runner, reason = RECORD, SystemRunner(), "created without a way out"
        if trouble == "no route":
            bench.world.host.ip("route delete default")
            reason = "this host has no default route"
        elif trouble == "no pasta":
            runner, reason = WithoutPasta(), "pasta did not start: it does not work here"
        else:
            record = record.model_copy(update={"outward": False})
        mine = KeeperNetworks(bench.folder, bench.home, runner)
        status = await bench.ensure(mine, record)
        assert (status.running, status.outward) == (True, False)
        assert reason in (status.reason or "")
        assert bench.pids("pasta") == []
        guest = await bench.plug_stack(mine, make_port(2, "8080:80"))
        async with service(guest.namespace, 80):
            with await mine.connect(RECORD.name, make_port(2).address, 80, 5) as sock:
                got = await asyncio.get_running_loop().sock_recv(sock, 100)
            assert got.decode() == RECORD.gateway
            assert await asyncio.to_thread(call, bench.world.host, "127.0.0.1", 8080)
        with pytest.raises(OSError):
            await reach(guest, OUTSIDE, 80, 1)
        if trouble == "no route":
            bench.world.host.ip(f"route add default via {UPLINK}")
            assert (await bench.ensure(mine, record, [make_port(2)])).outward
        guest.close()
        await mine.close()

    bench.run(body)


def test_the_hosts_routes_are_known(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.sweep(())
        bench.folder.mkdir()
        routes = await host_routes(SystemRunner())
        assert "198.51.100.0/24" in routes
        assert "default" not in routes
        with pytest.raises(HostError):
            await networks.attach("none", make_port(2))

    bench.run(body)
