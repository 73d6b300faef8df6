"""Networks in namespaces of their own, each held by a keeper that outlives the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanok.errors import Conflict, HanokError, HostError, InvalidInput, TimedOut
from hanok.model.base import NAME_PATTERN
from hanok.model.network import NetworkingFacts, NetworkPort, NetworkRecord, NetworkStatus
from hanok.network import outward, wire
from hanok.network.client import ask
from hanok.network.keeper.config import Config
from hanok.network.keeper.routes import open_routes
from hanok.network.keeper.rtnetlink import Rtnetlink, move
from hanok.network.publish import Key, as_mapping, as_publishes, open_listeners
from hanok.proc import (
    OWNER_VARIABLE,
    OwnedProcess,
    Owner,
    Runner,
    find_owned,
    kill_and_wait,
    owner_of,
    require_program,
    send_signal,
    wait_for_exit,
)

KIND = "keeper"
_NAMES = "dnsmasq"
_OWN_KINDS = (KIND, outward.KIND, _NAMES)
_START_TIMEOUT = 60  # a busy host, or an emulated one
_NO_VM = {"vm": ""}  # a status without anybody's published ports
_TERM_TIMEOUT = 5


class KeeperNetworks:
    """Implements ``hanok.network.base.Networks``; see there for what each method promises.

    ``folder`` gets a folder a network (its socket and logs); ``home`` is the data directory in
    the marks of our processes; ``python`` runs the keeper.
    """

    def __init__(
        self, folder: Path, home: Path, runner: Runner, python: str = sys.executable
    ) -> None:
        self.facts = NetworkingFacts(kind="namespace")
        self._folder = folder
        self._home = home
        self._runner = runner
        self._python = python
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._records: dict[str, NetworkRecord] = {}
        self._outward: dict[str, outward.WayOut] = {}

    async def ensure(self, record: NetworkRecord, ports: Sequence[NetworkPort]) -> NetworkStatus:
        """See Networks.ensure."""
        name = record.name
        async with self._locks[name], contextlib.AsyncExitStack() as undo:
            keeper, fresh = await self._find_or_start(record)
            if fresh:
                undo.push_async_callback(self._end, name)
            self._records[name] = record
            others = [r.subnet for r in self._records.values() if r.name != name]
            body = {"ports": [_port_body(port) for port in ports], "others": others}
            seen = await self._ask(name, "ports", body)
            problems = await self._publish_all(name, ports, _published(seen))
            self._hold_outward(record, keeper, fresh)
            undo.pop_all()
            if problems:
                raise problems[0]
            return self._seen(name, seen)

    async def attach(self, network: str, port: NetworkPort) -> int:
        """See Networks.attach."""
        as_mapping(port.publish)
        async with self._locks[network], contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._detach, network, port.vm)
            answer = await self._ask(network, "attach", {"port": _port_body(port)})
            tap = answer.descriptors[0]
            undo.callback(os.close, tap)
            await self._publish(network, port, await self._held(network, port.vm))
            undo.pop_all()
            return tap

    async def plug_link(self, network: str, vm: str, link: str) -> None:
        """Put interface ``link`` of this host in place of the tap of VM ``vm``, as root.

        The VM is attached: the filters of its port hold for the interface from its first frame.
        It is its maker's to delete; when the network ends, the kernel gives it back to the host,
        down and unplugged. Raises HostError when either is gone.
        """
        async with self._locks[network]:
            keeper = self._find_keeper(network)
            if keeper is None:
                raise HostError(f"network {network} is not running")
            try:
                with contextlib.closing(Rtnetlink()) as links:
                    links.run(move(socket.if_nametoindex(link), keeper))
            except OSError as error:
                raise HostError(f"the interface {link} is gone: {error.strerror}") from error
            await self._ask(network, "link", {"vm": vm, "link": link})

    async def renew_tap(self, network: str, vm: str) -> int:
        """Return a new tap of VM ``vm``, which is attached; as ``attach`` does in all else."""
        async with self._locks[network]:
            answer = await self._ask(network, "tap", {"vm": vm})
            return answer.descriptors[0]

    async def detach(self, network: str, vm: str) -> None:
        """See Networks.detach."""
        async with self._locks[network]:
            await self._detach(network, vm)

    async def settle(self, network: str) -> None:
        """See Networks.settle."""
        way = self._outward.get(network)
        if way is not None:
            await way.settle()
        # A keeper of an earlier version does not know it: there attach itself waits.
        with contextlib.suppress(InvalidInput):
            await self._ask(network, "settle")

    async def rename(self, network: str, port: NetworkPort) -> None:
        """See Networks.rename."""
        try:
            await self._ask(network, "rename", {"port": _port_body(port)})
        except InvalidInput as error:  # a keeper of an earlier version does not know it
            raise Conflict(
                f"the network {network} was started by an earlier Hanok, which cannot rename",
                field="name",
                hint="stop all VMs on it once, and start them again; or rename this one while it"
                " is stopped",
            ) from error

    async def publish(self, network: str, port: NetworkPort) -> None:
        """See Networks.publish."""
        async with self._locks[network]:
            await self._publish(network, port, await self._held(network, port.vm))

    async def connect(self, network: str, address: str, port: int, timeout: float) -> socket.socket:
        """See Networks.connect."""
        body = {"address": address, "port": port, "timeout": timeout}
        answer = await self._ask(network, "connect", body, timeout=timeout + 10)
        sock = socket.socket(fileno=answer.descriptors[0])
        sock.setblocking(False)
        return sock

    async def status(self, name: str) -> NetworkStatus:
        """See Networks.status."""
        try:
            return await self._status(name)
        except HanokError as error:
            return NetworkStatus(running=False, reason=error.message)

    async def stop(self, name: str) -> None:
        """See Networks.stop."""
        async with self._locks[name]:
            await self._end(name)
            self._records.pop(name, None)

    async def sweep(self, known: Collection[str]) -> None:
        """See Networks.sweep."""
        found = {p.owner.ident for p in find_owned(self._home) if p.owner.kind in _OWN_KINDS}
        if self._folder.exists():
            found |= {entry.name for entry in self._folder.iterdir() if entry.is_dir()}
        for name in sorted(found - set(known)):
            await self.stop(name)

    async def close(self) -> None:
        """See Networks.close."""
        ways = list(self._outward.values())
        self._outward.clear()
        await asyncio.gather(*(way.close() for way in ways))

    def _path(self, name: str) -> Path:
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise InvalidInput(f"{name!r} is not the name of a network", field="name")
        return self._folder / name

    async def _ask(
        self,
        network: str,
        op: str,
        body: Mapping[str, Any] | None = None,
        *,
        descriptors: Sequence[int] = (),
        timeout: float = 30,
    ) -> wire.Message:
        path = self._path(network) / "keeper.sock"
        return await ask(path, op, body, descriptors=descriptors, timeout=timeout)

    async def _status(self, name: str) -> NetworkStatus:
        return self._seen(name, await self._ask(name, "status", _NO_VM))

    def _seen(self, name: str, answer: wire.Message) -> NetworkStatus:
        failure = answer.body["failure"]
        record, way = self._records.get(name), self._outward.get(name)
        reason = way.reason if way is not None else None
        if record is not None and not record.outward:
            reason = "the network was created without a way out"
        out = bool(answer.body["outward"]) and reason is None
        return NetworkStatus(running=failure is None, outward=out, reason=failure or reason)

    # Starting and ending

    def _find_processes(self, name: str) -> list[OwnedProcess]:
        """Return the processes of a network, the keeper first."""
        found = [
            process
            for process in find_owned(self._home)
            if process.owner.kind in _OWN_KINDS and process.owner.ident == name
        ]
        return sorted(found, key=lambda process: not _is_keeper(process))

    def _find_keeper(self, name: str) -> int | None:
        return next((p.pid for p in self._find_processes(name) if _is_keeper(p)), None)

    async def _find_or_start(self, record: NetworkRecord) -> tuple[int, bool]:
        """Return the keeper's process and whether it was started by this call."""
        try:
            seen = (await self._ask(record.name, "status", _NO_VM)).body
            if seen["subnet"] == record.subnet and seen["protocol"] == wire.PROTOCOL:
                keeper = self._find_keeper(record.name)
                if keeper is not None:
                    return keeper, False
        except TimedOut:
            raise  # it lives: ending it would cut off its VMs
        except HostError:
            pass  # there is none, or nobody can reach it any more
        await self._end(record.name)
        return await self._start(record), True

    async def _start(self, record: NetworkRecord) -> int:
        path = self._path(record.name)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = path / "keeper.log"
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._end, record.name)
            pid = await self._spawn(record, path / "keeper.sock", log)
            try:
                await self._ask(record.name, "status", timeout=_START_TIMEOUT)
            except HostError as error:
                said = log.read_text(errors="replace").strip()[-1000:]
                raise HostError(
                    f"network {record.name} did not start: {said or error.message}",
                    hint="it needs iproute2, nftables, dnsmasq-base and /dev/net/tun",
                ) from error
            undo.pop_all()
            return pid

    async def _spawn(self, record: NetworkRecord, path: Path, log: Path) -> int:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            open_routes() as routes,
        ):
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(64)
            config = Config(
                name=record.name,
                subnet=record.subnet,
                dnsmasq=require_program("dnsmasq", "dnsmasq-base"),
                mark=(OWNER_VARIABLE, Owner(str(self._home), _NAMES, record.name).mark()),
                uid=_uid(record),
                socket=listener.fileno(),
                routes=routes.fileno(),
            )
            return await self._runner.spawn(
                [self._python, "-I", "-m", "hanok.network.keeper", config.dump()],
                owner=Owner(home=str(self._home), kind=KIND, ident=record.name),
                output=log,
                pass_fds=(listener.fileno(), routes.fileno()),
            )

    async def _end(self, name: str) -> None:
        path = self._path(name)
        way = self._outward.pop(name, None)
        if way is not None:
            await way.close()
        # Ended, the keeper may have left one that it had just started: look again.
        while processes := self._find_processes(name):
            first = processes[0]
            if _is_keeper(first):
                send_signal(first.pid, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TERM_TIMEOUT):
                        await wait_for_exit(first.pid)
            for process in processes:
                if owner_of(process.pid) == process.owner:
                    await kill_and_wait(process.pid)
        for pid in outward.find_hidden(path / "pasta.pid"):
            await kill_and_wait(pid)
        if path.exists():
            await asyncio.to_thread(shutil.rmtree, path)

    async def _detach(self, network: str, vm: str) -> None:
        if not (self._path(network) / "keeper.sock").exists():
            return
        try:
            await self._ask(network, "detach", {"vm": vm})
        except HostError:
            if self._find_keeper(network) is not None:
                raise
            # What is gone holds nothing.

    def _hold_outward(self, record: NetworkRecord, keeper: int, fresh: bool) -> None:
        """Have a way out made in the background, when there is to be one and none is held."""
        name = record.name
        held = self._outward.get(name)
        if not record.outward or (held is not None and not held.given_up):
            return

        async def tell(upstream: bool) -> None:
            await self._ask(name, "outward", {"upstream": upstream})

        log = self._path(name) / "pasta.log"
        target = outward.Target(self._home, name, keeper, _uid(record), log)
        self._outward[name] = outward.WayOut(self._runner, target, tell, fresh=fresh)

    # Published ports

    async def _held(self, network: str, vm: str) -> dict[Key, int]:
        return _published(await self._ask(network, "status", {"vm": vm})).get(vm, {})

    async def _publish_all(
        self, name: str, ports: Sequence[NetworkPort], held: Mapping[str, Mapping[Key, int]]
    ) -> list[HanokError]:
        """Publish for all ports; what one loses another may get. Returns what failed."""
        for port in ports:
            wanted = as_mapping(port.publish)
            kept = {k: v for k, v in held.get(port.vm, {}).items() if k in wanted}
            if kept != held.get(port.vm, {}):
                await self._send_publish(name, port.vm, kept, {})
        problems = []
        for port in ports:
            try:
                mine = held.get(port.vm, {})
                kept = {k: v for k, v in mine.items() if k in as_mapping(port.publish)}
                await self._publish(name, port, kept)
            except HanokError as error:
                problems.append(error)
        return problems

    async def _publish(self, name: str, port: NetworkPort, held: Mapping[Key, int]) -> None:
        wanted = as_mapping(port.publish)
        if dict(held) == wanted:
            return
        new = {key: guest for key, guest in wanted.items() if key not in held}
        # One of our own, on another address, stands in the way of a new one.
        numbers = {number for _, number in new}
        stays = {k: v for k, v in held.items() if k in wanted or k[1] not in numbers}
        if stays != dict(held):
            await self._send_publish(name, port.vm, stays, {})
        try:
            opened = open_listeners(as_publishes(new))
        except HanokError:
            gone = {key: guest for key, guest in held.items() if key not in stays}
            if gone:
                again = open_listeners(as_publishes(gone))
                await self._send_publish(name, port.vm, held, again)
            raise
        await self._send_publish(name, port.vm, wanted, opened)

    async def _send_publish(
        self,
        name: str,
        vm: str,
        wanted: Mapping[Key, int],
        opened: Mapping[Key, socket.socket],
    ) -> None:
        """Tell the keeper, which gets its own copies of the sockets; ours are closed."""
        with contextlib.ExitStack() as stack:
            for sock in opened.values():
                stack.enter_context(sock)
            body = {
                "vm": vm,
                "ports": [(address, host, guest) for (address, host), guest in wanted.items()],
                "new": list(opened),
            }
            descriptors = [sock.fileno() for sock in opened.values()]
            await self._ask(name, "publish", body, descriptors=descriptors)


def _is_keeper(process: OwnedProcess) -> bool:
    # A child of the keeper has its mark until it executes its own program.
    if process.owner.kind != KIND:
        return False
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _uid(record: NetworkRecord) -> int | None:
    return record.uid if os.geteuid() == 0 else None


def _port_body(port: NetworkPort) -> dict[str, str]:
    return {
        "vm": port.vm,
        "host_name": port.host_name,
        "mac": port.mac,
        "address": port.address,
    }


def _published(answer: wire.Message) -> dict[str, dict[Key, int]]:
    return {
        vm: {(str(address), int(host)): int(guest) for address, host, guest in ports}
        for vm, ports in answer.body["published"].items()
    }
