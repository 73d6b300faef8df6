"""The life of a network: start, ports, published ports, adoption, deaths, end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hanok.errors import Conflict, GuestError, HanokError, HostError, InvalidInput, NotFound
from hanok.network.keepers import KeeperNetworks
from hanok.proc import SystemRunner, find_owned, wait_for_exit
from tests.network.conftest import CLOSED, RECORD, UID, Bench, eventually, make_port
from tests.network.frames import GATEWAY_MAC
from tests.network.namespaces import HOST, Namespace, StackGuest, make_world

pytestmark = pytest.mark.vm

ISOLATED = RECORD.model_copy(update={"outward": False})


async def fetch(port: int, address: str = "127.0.0.1") -> bytes:
    """Return what a published port gives."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def serve(guest: StackGuest, port: int, said: bytes) -> asyncio.Server:
    """Start a service in a guest that says ``said`` to whoever comes."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    listener = guest.namespace.run(lambda: socket.create_server(("0.0.0.0", port)))
    return await asyncio.start_server(answer, sock=listener)


def host_configuration(namespace: Namespace | None) -> str:
    """Return all that a network could have changed: of a namespace, or of this machine."""
    commands = (
        ("ip", "-brief", "address"),
        ("ip", "-4", "route", "show", "table", "all"),
        ("ip", "rule"),
        ("nft", "list", "ruleset"),
        ("sh", "-c", "find /proc/sys/net -name '*forward*' | sort | xargs grep -H ."),
    )
    if namespace is not None:
        return "".join(namespace.command(*argv) for argv in commands)
    return "".join(
        subprocess.run(argv, check=True, capture_output=True, text=True).stdout for argv in commands
    )


def test_nothing_of_the_host_changes_and_nothing_is_left(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        before = host_configuration(bench.world.host), host_configuration(None)
        assert (await bench.ensure(networks)).outward
        guest = await bench.plug_stack(networks, make_port(2, "8080:80"))
        (keeper,) = bench.pids("keeper")
        namespace = os.stat(f"/proc/{keeper}/ns/net").st_ino  # noqa: PTH116 - follows the link
        during = host_configuration(bench.world.host), host_configuration(None)
        await networks.stop(RECORD.name)
        guest.close()
        after = host_configuration(bench.world.host), host_configuration(None)
        assert before == during == after
        assert not (bench.folder / RECORD.name).exists()
        assert list(find_owned(bench.home)) == []
        for entry in psutil.pids():
            try:
                assert os.stat(f"/proc/{entry}/ns/net").st_ino != namespace  # noqa: PTH116
            except (FileNotFoundError, PermissionError):
                continue
        assert not (await networks.status(RECORD.name)).running
        await networks.stop(RECORD.name)

    bench.run(body)


def test_the_keeper_is_small_unprivileged_and_the_same_at_a_second_ensure(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        first = await bench.ensure(networks)

        def processes_of() -> dict[int, str]:
            return {p.pid: p.owner.kind for p in find_owned(bench.home)}

        await eventually(bench.is_whole)
        # pasta forks while it begins: for a moment there are two.
        await eventually(lambda: sorted(processes_of().values()) == ["dnsmasq", "keeper", "pasta"])
        processes = processes_of()
        assert {psutil.Process(pid).uids().real for pid in processes} == {UID}
        (keeper,) = bench.pids("keeper")
        assert psutil.Process(keeper).memory_info().rss < 25 * 1024 * 1024
        assert (bench.folder / RECORD.name / "keeper.sock").stat().st_mode & 0o777 == 0o600
        assert await bench.ensure(networks) == first
        assert processes_of() == processes

    bench.run(body)


def test_published_ports_are_exact_and_all_or_none(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        port = make_port(2, "8080:80", "8081:81")
        guest = await bench.plug_stack(networks, port)
        async with await serve(guest, 80, b"eighty"), await serve(guest, 81, b"eighty-one"):
            assert await fetch(8080) == b"eighty"
            assert await fetch(8081) == b"eighty-one"
            with pytest.raises(ConnectionRefusedError):
                await fetch(8080, HOST)

            await networks.publish(RECORD.name, make_port(2, "8080:81", f"{HOST}:8081:80"))
            assert await fetch(8080) == b"eighty-one"
            assert await fetch(8081, HOST) == b"eighty"
            with pytest.raises(ConnectionRefusedError):
                await fetch(8081)

            changed = make_port(2, "8082:80", "8083:80", "0.0.0.0:8081:81")
            with socket.create_server(("127.0.0.1", 8083)), pytest.raises(Conflict) as caught:
                await networks.publish(RECORD.name, changed)
            assert caught.value.field == "publish"
            assert "8083" in caught.value.message
            assert await fetch(8080) == b"eighty-one"
            assert await fetch(8081, HOST) == b"eighty"
            with pytest.raises(ConnectionRefusedError):
                await fetch(8082)

            with pytest.raises(InvalidInput, match=r"no address 203\.0\.113\.9"):
                await networks.publish(RECORD.name, make_port(2, "203.0.113.9:8080:80"))
            with pytest.raises(InvalidInput, match="published twice"):
                await networks.publish(RECORD.name, make_port(2, "8080:80", "8080:81"))

            await networks.publish(RECORD.name, make_port(2))
            with pytest.raises(ConnectionRefusedError):
                await fetch(8080)
        guest.close()

    bench.run(body)


def test_a_port_goes_from_one_vm_to_another_in_one_ensure(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        one = await bench.plug_stack(networks, make_port(2, "8080:80"))
        two = await bench.plug_stack(networks, make_port(3))
        async with await serve(one, 80, b"one"), await serve(two, 80, b"two"):
            assert await fetch(8080) == b"one"
            with pytest.raises(Conflict):
                await networks.publish(RECORD.name, make_port(3, "8080:80"))
            await networks.ensure(ISOLATED, [make_port(3, "8080:80"), make_port(2)])
            assert await fetch(8080) == b"two"
            with socket.create_server(("127.0.0.1", 8081)), pytest.raises(Conflict):
                await networks.ensure(
                    ISOLATED, [make_port(2, "8081:80"), make_port(3, "8080:80", "8082:80")]
                )
            assert await fetch(8082) == b"two"
        one.close()
        two.close()

    bench.run(body)


def test_name_and_address_go_to_the_next_vm_at_once(bench: Bench) -> None:
    """A guest that was ended has not given its lease back, and leases last for ever."""

    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        stays = await bench.plug(networks, make_port(4))
        assert stays.lease()["address"] == make_port(4).address
        dnsmasq = bench.pids("dnsmasq")
        for number, name in ((2, "vm2"), (3, "vm3"), (2, "vm3"), (3, "vm3")):
            given = {"address": make_port(2).address, "host_name": name}
            port = make_port(number).model_copy(update=given)
            guest = await bench.plug(networks, port)
            assert guest.lease()["address"] == port.address
            assert guest.resolve(name, RECORD.gateway) == port.address
            guest.close()
            await networks.detach(RECORD.name, port.vm)
        await networks.settle(RECORD.name)
        for name in ("vm2", "vm3.hanok"):
            assert stays.resolve(name, RECORD.gateway) is None
        assert bench.pids("dnsmasq") == dnsmasq
        stays.close()

    bench.run(body)


def test_ensure_takes_away_what_is_not_asked_for(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        one = await bench.plug(networks, make_port(2, "8080:80"))
        two = await bench.plug(networks, make_port(3))
        assert one.lease()["address"] == make_port(2).address
        await bench.ensure(networks, ISOLATED, [make_port(3)])
        assert two.resolve("vm2", RECORD.gateway) is None
        with pytest.raises(ConnectionRefusedError):
            await fetch(8080)
        with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
            one.send(bytes(60))
        assert two.ping(RECORD.gateway, GATEWAY_MAC)
        await networks.detach(RECORD.name, make_port(3).vm)
        await networks.detach(RECORD.name, make_port(3).vm)
        assert "52:54" not in bench.inside("nft", "list", "ruleset")
        assert "master br0" not in bench.inside("ip", "link")
        one.close()
        two.close()

    bench.run(body)


def test_another_name_leaves_the_plug_alone(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        port = make_port(2, "8080:80")
        guest, other = await bench.plug(networks, port), await bench.plug(networks, make_port(3))
        assert guest.lease()["address"] == port.address
        named = port.model_copy(update={"host_name": "shop"})
        for again in (named, named):
            await networks.rename(RECORD.name, again)
        await networks.settle(RECORD.name)
        assert other.resolve("shop", RECORD.gateway) == port.address
        assert other.resolve("vm2", RECORD.gateway) is None
        assert guest.ping(RECORD.gateway, GATEWAY_MAC)
        with pytest.raises(Conflict):
            await networks.rename(RECORD.name, port.model_copy(update={"host_name": "vm3"}))
        with pytest.raises(NotFound):
            await networks.rename(RECORD.name, make_port(4))
        # A daemon that died before it came to rename: the next one says all ports.
        await bench.ensure(networks, ISOLATED, [port, make_port(3)])
        assert other.resolve("vm2", RECORD.gateway) == port.address
        assert guest.ping(RECORD.gateway, GATEWAY_MAC)
        assert guest.lease()["address"] == port.address
        guest.close()
        other.close()

    bench.run(body)


def test_a_stale_tap_is_replaced_and_a_closed_one_vanishes(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        stale = await bench.plug(networks, make_port(2))
        fresh = await bench.plug(networks, make_port(2))
        with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
            stale.send(bytes(60))
        assert fresh.ping(RECORD.gateway, GATEWAY_MAC)
        stale.close()
        fresh.close()
        await eventually(lambda: "master br0" not in bench.inside("ip", "link"))
        again = await bench.plug(networks, make_port(2))
        assert again.lease()["address"] == make_port(2).address
        again.close()

    bench.run(body)


def test_a_failed_attach_leaves_nothing_of_the_vm(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with socket.create_server(("127.0.0.1", 8080)), pytest.raises(Conflict):
            await networks.attach(RECORD.name, make_port(2, "8081:80", "8080:80"))
        with pytest.raises(ConnectionRefusedError):
            await fetch(8081)
        twin = make_port(3).model_copy(update={"mac": make_port(2).mac})
        os.close(await networks.attach(RECORD.name, make_port(2)))
        with pytest.raises(Conflict) as caught:
            await networks.attach(RECORD.name, twin)
        assert caught.value.field == "mac"
        with pytest.raises(InvalidInput):
            await networks.attach(RECORD.name, make_port(1))
        await networks.detach(RECORD.name, make_port(2).vm)
        assert "52:54" not in bench.inside("nft", "list", "ruleset")
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208

    bench.run(body)


def test_connections_from_the_daemon_to_guests(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        port = make_port(2)
        guest = await bench.plug_stack(networks, port)
        async with await serve(guest, 80, b"hello"):
            with await networks.connect(RECORD.name, port.address, 80, 5) as sock:
                assert not sock.getblocking()
                assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"hello"
            with pytest.raises(GuestError, match="refused"):
                await networks.connect(RECORD.name, port.address, 81, 5)
        guest.namespace.ip("link set eth0 down")
        with pytest.raises(GuestError):
            await networks.connect(RECORD.name, port.address, 80, 0.3)
        with pytest.raises(NotFound):
            await networks.connect(RECORD.name, "127.0.0.1", 53, 1)
        guest.close()

    bench.run(body)


def test_a_network_that_does_not_run_says_so(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.sweep(())
        await networks.stop("never")
        await networks.detach("never", "u")
        assert "not running" in ((await networks.status("never")).reason or "")
        with pytest.raises(HostError, match="not running"):
            await networks.attach("never", make_port(2))
        with pytest.raises(InvalidInput):
            await networks.stop("../../etc")
        bench.folder.mkdir(exist_ok=True)

    bench.run(body)


def test_a_keeper_that_cannot_start_leaves_nothing(bench: Bench) -> None:
    async def body(_: KeeperNetworks) -> None:
        broken = KeeperNetworks(bench.folder, bench.home, SystemRunner(), python="false")
        with pytest.raises(HostError, match="did not start"):
            await broken.ensure(RECORD, [])
        assert list(bench.folder.iterdir()) == []

    bench.run(body)


def test_ports_survive_the_daemon_and_are_adopted(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        mine, theirs = socket.socketpair()
        with mine, theirs:
            argv = [sys.executable, "-m", "tests.network.daemon", str(bench.home)]
            daemon = subprocess.Popen(
                [*argv, str(theirs.fileno()), "8080"], pass_fds=(theirs.fileno(),)
            )
            theirs.close()
            _, (tap,), _, _ = await asyncio.to_thread(socket.recv_fds, mine, 10, 1)
        port = make_port(2, "8080:80")
        guest = StackGuest(tap, port.mac, port.address, RECORD.gateway)
        before = {p.pid: p.owner.kind for p in find_owned(bench.home)}
        async with await serve(guest, 80, b"alive"):
            daemon.kill()
            daemon.wait()
            assert await fetch(8080) == b"alive"
            status = await bench.ensure(networks, RECORD, [port])
            assert status.running
            assert status.outward
            assert {p.pid: p.owner.kind for p in find_owned(bench.home)} == before
            assert await fetch(8080) == b"alive"
            (await networks.connect(RECORD.name, port.address, 80, 5)).close()
            await networks.publish(RECORD.name, make_port(2, "8081:80"))
            assert await fetch(8081) == b"alive"
        guest.close()

    bench.run(body)


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.4, 0.5, 0.6, 0.8])
def test_a_daemon_killed_at_any_time_leaves_what_can_be_swept_or_adopted(
    bench: Bench, delay: float
) -> None:
    async def body(networks: KeeperNetworks) -> None:
        mine, theirs = socket.socketpair()
        with mine, theirs:
            argv = [sys.executable, "-m", "tests.network.daemon", str(bench.home)]
            daemon = subprocess.Popen(
                [*argv, str(theirs.fileno()), "8080"], pass_fds=(theirs.fileno(),)
            )
            await asyncio.sleep(delay)  # the fault: anywhere between nothing and all of it
            daemon.kill()
            daemon.wait()
        await networks.ensure(RECORD, [])
        guest = await bench.plug(networks, make_port(2, "8080:80"))
        assert guest.lease()["address"] == make_port(2).address
        guest.close()
        await eventually(bench.is_whole)
        await networks.sweep({"another"})
        assert list(find_owned(bench.home)) == []

    bench.run(body)


def test_a_network_may_be_stopped_while_its_way_out_is_made(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        for steps in range(0, 60, 20):
            await networks.ensure(RECORD, [])
            for _ in range(steps):
                await asyncio.sleep(0)  # the fault: anywhere in the start of pasta
            await networks.stop(RECORD.name)
            assert list(find_owned(bench.home)) == []
            assert list(bench.folder.iterdir()) == []
        assert (await bench.ensure(networks)).outward

    bench.run(body)


def test_sweep_ends_only_what_is_unknown(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD, [])
        await networks.ensure(CLOSED, [])
        await networks.close()
        fresh = bench.networks()
        await fresh.sweep({CLOSED.name})
        assert {p.owner.ident for p in find_owned(bench.home)} == {CLOSED.name}
        assert [entry.name for entry in bench.folder.iterdir()] == [CLOSED.name]
        assert (await fresh.status(CLOSED.name)).running
        await fresh.close()

    bench.run(body)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_keeper_that_dies_takes_its_children_and_is_started_again(
    bench: Bench, number: signal.Signals
) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD, [])
        (keeper,) = bench.pids("keeper")
        os.kill(keeper, number)
        await wait_for_exit(keeper)
        await eventually(lambda: bench.pids("dnsmasq") == [])
        assert not (await networks.status(RECORD.name)).running
        await networks.detach(RECORD.name, make_port(2).vm)
        assert (await bench.ensure(networks, RECORD, [make_port(2)])).outward
        await eventually(bench.is_whole)
        assert bench.pids("keeper") != [keeper]
        guest = await bench.plug(networks, make_port(2))
        assert guest.ping(RECORD.gateway, GATEWAY_MAC)
        guest.close()

    bench.run(body)


def test_a_dead_dnsmasq_is_started_again_but_not_for_ever(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        guest = await bench.plug(networks, make_port(2))
        seen: set[int] = set()

        def kill_new() -> bool:
            for pid in bench.pids("dnsmasq"):
                if pid not in seen:
                    seen.add(pid)
                    os.kill(pid, signal.SIGKILL)
            return bool(seen)

        await eventually(kill_new)
        await eventually(lambda: set(bench.pids("dnsmasq")) - seen)
        await eventually(lambda: guest.resolve("vm2", RECORD.gateway) == make_port(2).address)

        async with asyncio.timeout(60):
            while (await networks.status(RECORD.name)).running:
                kill_new()
                await asyncio.sleep(0.02)
        assert 3 < len(seen) < 10
        assert "dnsmasq ended" in ((await networks.status(RECORD.name)).reason or "")
        assert (await bench.ensure(networks, ISOLATED, [make_port(2)])).running
        assert guest.resolve("vm2", RECORD.gateway) == make_port(2).address
        guest.close()

    bench.run(body)


def test_bad_requests_do_not_hurt_the_keeper(bench: Bench) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await bench.ensure(networks, ISOLATED)
        (keeper,) = bench.pids("keeper")

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{keeper}/fd"))  # noqa: PTH208

        before = descriptors()
        path = str(bench.folder / RECORD.name / "keeper.sock")
        for message in (
            b"",
            b"{",
            b"[]\n",
            b"{}\n",
            b'{"op":"attach"}\n',
            b'{"op":"ports"}\n',
            b'{"op":"publish","vm":3}\n',
            b"\xff\n",
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                with socket.socket() as extra:
                    socket.send_fds(sock, [message or b"x"], [extra.fileno()])
                sock.shutdown(socket.SHUT_WR)
                answer = await asyncio.to_thread(sock.recv, 65536)
                assert answer == b"" or b"error" in answer
        assert (await networks.status(RECORD.name)).running
        await eventually(lambda: descriptors() <= before)

    bench.run(body)


def test_two_daemons_homes_do_not_meet(bench: Bench, tmp_path: Path) -> None:
    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(ISOLATED, [])
        stranger = KeeperNetworks(tmp_path, tmp_path, SystemRunner())
        await stranger.sweep(())
        with pytest.raises(HanokError):
            await stranger.attach(RECORD.name, make_port(2))
        assert (await networks.status(RECORD.name)).running
        await stranger.close()

    bench.run(body)


def test_the_world_of_the_tests_is_not_the_machine() -> None:
    with make_world() as world:
        mine = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        assert mine not in (world.host.inode, world.outside.inode)
