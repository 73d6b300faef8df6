"""What the keeper does for the daemon: one request a connection, see hanok.network.wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from hanok.errors import Conflict, HanokError, InvalidInput, NotFound
from hanok.network import wire
from hanok.network.keeper import filters, relay, routes
from hanok.network.keeper.config import OUT, Config, Port, parse_port
from hanok.network.keeper.links import Links, has_link
from hanok.network.keeper.names import NameServer
from hanok.network.keeper.nftables import Nftables
from hanok.network.keeper.ports import Ports

Body = dict[str, Any]
_CLIENT_TIMEOUT = 30
_DESCRIPTORS = 8192


class Keeper:
    """The state of one network and the requests that change it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ports = Ports()
        self._others: tuple[str, ...] = ()
        self._host: frozenset[str] = frozenset()
        self._upstream = False
        self._links = Links()
        self._filters = Nftables()
        self._names = NameServer(config)
        self._relays = relay.Relays()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Callable[[wire.Message], Awaitable[wire.Message]]] = {
            "status": self._status,
            "ports": self._set_ports,
            "attach": self._attach,
            "link": self._link,
            "tap": self._tap,
            "detach": self._detach,
            "rename": self._rename,
            "publish": self._publish,
            "connect": self._connect,
            "outward": self._outward,
            "settle": self._settle,
        }

    async def start(self) -> None:
        """Make filters and bridge, then take requests. Raises HanokError, OSError."""
        self._filters.run(filters.base_rules(self._config))
        self._links.make_bridge(self._config)
        self._names.update((), upstream=False)
        self._keep(self._follow_host())
        self._keep(self._accept())

    async def stop(self) -> None:
        """End relays, name server and requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._relays.close()
        await self._names.stop()

    async def _accept(self) -> None:
        """Take the daemon's requests for ever."""
        loop = asyncio.get_running_loop()
        listener = socket.socket(fileno=self._config.socket)
        listener.setblocking(False)
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            self._keep(self._serve(client))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"the keeper has lost a task: {error!r}", file=sys.stderr, flush=True)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            message = wire.Message({})
            answer = wire.Message({})
            try:
                async with asyncio.timeout(_CLIENT_TIMEOUT):
                    message = await wire.receive(client)
                answer = await self._handle(message)
                await wire.send(client, answer.body, answer.descriptors)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                print(f"a request was not served: {error!r}", file=sys.stderr, flush=True)
            finally:
                wire.close_all(message.descriptors)
                wire.close_all(answer.descriptors)

    async def _handle(self, message: wire.Message) -> wire.Message:
        try:
            handler = self._handlers.get(str(message.body.get("op")))
            if handler is None:
                raise InvalidInput("the keeper does not know this request")
            return await handler(message)
        except HanokError as error:
            return _failure(error)
        except (OSError, KeyError, ValueError, TypeError, TimeoutError) as error:
            return _failure(HanokError(f"the network's keeper failed: {error!r}"))

    async def _status(self, message: wire.Message) -> wire.Message:
        """``vm``: whose published ports are wanted; without it all."""
        vm = message.body.get("vm")
        vms = [port.vm for port in self._ports] if vm is None else [str(vm)]
        return wire.Message(
            {
                "protocol": wire.PROTOCOL,
                "subnet": self._config.subnet,
                "outward": has_link(OUT),
                "failure": self._names.failure,
                "published": {vm: _ports_body(self._relays.published(vm)) for vm in vms},
            }
        )

    async def _set_ports(self, message: wire.Message) -> wire.Message:
        ports = Ports(parse_port(body, self._config) for body in message.body["ports"])
        others = tuple(str(other) for other in message.body.get("others", ()))
        async with self._lock:
            for port in list(self._ports):
                wanted = ports.get(port.vm)
                if wanted is not None and port.is_plugged_as(wanted):
                    self._ports.put(wanted)  # at most its name is another
                else:
                    await self._unplug(port)
            new = [port for port in ports if self._ports.get(port.vm) is None]
            self._filters.run(filters.change_rules((), new))
            for port in new:
                self._ports.put(port)
            self._serve_names()
            self._forbid(self._host, others)
        return await self._status(wire.Message({}))

    async def _attach(self, message: wire.Message) -> wire.Message:
        port = parse_port(message.body["port"], self._config)
        async with self._lock:
            self._ports.check(port)
            try:
                old = self._ports.get(port.vm)
                if old is not None and old != port:
                    await self._unplug(old)
                self._filters.run(filters.change_rules((), [port]))
                self._ports.put(port)
                descriptor = await self._links.make_tap(port)
            except (HanokError, OSError):
                self._filters.run(filters.change_rules([port], ()))
                self._ports.remove(port.vm)
                raise
            finally:
                self._serve_names()
        return wire.Message({}, (descriptor,))

    async def _link(self, message: wire.Message) -> wire.Message:
        """``vm``, ``link``: an interface, moved here, that takes the place of the VM's tap."""
        async with self._lock:
            port = self._port(str(message.body["vm"]))
            await self._links.take_link(port, str(message.body["link"]))
        return wire.Message({})

    async def _tap(self, message: wire.Message) -> wire.Message:
        """``vm``: whose tap is made anew."""
        async with self._lock:
            descriptor = await self._links.make_tap(self._port(str(message.body["vm"])))
        return wire.Message({}, (descriptor,))

    async def _detach(self, message: wire.Message) -> wire.Message:
        async with self._lock:
            port = self._ports.get(str(message.body["vm"]))
            if port is not None:
                await self._unplug(port)
                self._serve_names()
        return wire.Message({})

    async def _rename(self, message: wire.Message) -> wire.Message:
        """``port``: a VM's, of which at most the host name is another."""
        wanted = parse_port(message.body["port"], self._config)
        async with self._lock:
            port = self._port(wanted.vm)
            if not port.is_plugged_as(wanted):
                raise Conflict("the VM is attached with another MAC or address", field="name")
            self._ports.put(wanted)
            self._serve_names()
        return wire.Message({})

    async def _unplug(self, port: Port) -> None:
        """Take from a VM all it has, first its tap: without pins that is of no use to it."""
        await self._relays.publish(port.vm, port.address, {}, {})
        await self._links.remove_tap(port)
        self._filters.run(filters.change_rules([port], ()))
        self._ports.remove(port.vm)

    def _serve_names(self) -> None:
        self._names.update(self._ports, upstream=self._upstream)

    async def _settle(self, _: wire.Message) -> wire.Message:
        """Answer when names and leases of all changes before this are in force."""
        await self._names.settle()
        return wire.Message({})

    async def _publish(self, message: wire.Message) -> wire.Message:
        """``ports``: [address, host port, guest port]; a descriptor for each with ``new``."""
        port = self._port(str(message.body["vm"]))
        wanted = {(str(a), int(h)): int(g) for a, h, g in message.body["ports"]}
        keys = [(str(a), int(h)) for a, h in message.body["new"]]
        fresh = {
            key: socket.socket(fileno=os.dup(descriptor))
            for key, descriptor in zip(keys, message.descriptors, strict=True)
        }
        async with self._lock, contextlib.AsyncExitStack() as undo:
            for sock in fresh.values():
                undo.enter_context(sock)
            missing = wanted.keys() - self._relays.published(port.vm).keys() - fresh.keys()
            if missing:
                raise InvalidInput(f"no listening socket was given for {sorted(missing)}")
            undo.pop_all()
            await self._relays.publish(port.vm, port.address, wanted, fresh)
        return wire.Message({})

    async def _connect(self, message: wire.Message) -> wire.Message:
        address = str(message.body["address"])
        if self._ports.find(address) is None:
            raise NotFound(f"no VM of network {self._config.name} has the address {address}")
        sock = await relay.connect(
            address, int(message.body["port"]), float(message.body["timeout"])
        )
        return wire.Message({}, (sock.detach(),))

    async def _outward(self, message: wire.Message) -> wire.Message:
        """``upstream``: whether names that are not ours may be asked through the way out."""
        async with self._lock:
            upstream = bool(message.body["upstream"])
            if upstream != self._upstream:
                self._upstream = upstream
                self._serve_names()
        return wire.Message({})

    def _port(self, vm: str) -> Port:
        port = self._ports.get(vm)
        if port is None:
            raise NotFound(
                f"VM {vm} is not attached to network {self._config.name}",
                hint="start the VM first",
            )
        return port

    async def _follow_host(self) -> None:
        """Keep the host's addresses among the forbidden destinations."""
        with socket.socket(fileno=self._config.routes) as sock:
            dump: set[str] = set()
            sock.send(routes.address_request())
            while True:
                await wire.wait_readable(sock)
                try:
                    heard = routes.parse_addresses(sock.recv(65536))
                except OSError:  # ENOBUFS: some were lost, so ask for all again
                    heard = routes.Heard(frozenset(), gone=True, done=False)
                if heard.gone:  # the same one may be on another interface still
                    dump = set()
                    sock.send(routes.address_request())
                dump |= heard.there
                host = frozenset(dump) if heard.done else self._host | heard.there
                async with self._lock:
                    self._forbid(host, self._others)

    def _forbid(self, host: frozenset[str], others: tuple[str, ...]) -> None:
        if (host, others) != (self._host, self._others):
            self._filters.run(filters.never_rules((*others, *host)))
            self._host, self._others = host, others


def _ports_body(published: Mapping[relay.Key, int]) -> list[tuple[str, int, int]]:
    return [(address, port, guest) for (address, port), guest in published.items()]


def _failure(error: HanokError) -> wire.Message:
    return wire.Message(
        {
            "error": {
                "code": error.code,
                "message": error.message,
                "field": error.field,
                "expected": error.expected,
                "hint": error.hint,
            }
        }
    )


async def serve(config: Config) -> int:
    """Hold the network until SIGTERM or SIGINT; returns the exit status."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    keeper = Keeper(config)
    try:
        await keeper.start()
        await ended.wait()
    except (HanokError, OSError) as error:
        print(f"the network could not be started: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        await keeper.stop()
    return 0
