"""DHCP and DNS of a network: dnsmasq as a child of the keeper.

Its files are memory of the keeper (memfd), found under /proc, so that nothing is on disk. Each
change carries a number, served as an address under a name of its own: once dnsmasq answers with
it, the change is in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Iterable

from hanok.errors import HostError, TimedOut
from hanok.network.keeper.config import BRIDGE, DNS_FORWARD, DOMAIN, Config, Port
from hanok.proc import OWNER_VARIABLE, Owner

_GENERATION = f"_generation.{DOMAIN}"
_TIMEOUT = 10.0
_ASK_AGAIN = 0.05
_RESTARTS = 5  # in a row, each less than _STABLE seconds after the one before
_STABLE = 60.0
_LOG_LIMIT = 1024 * 1024


def dnsmasq_argv(config: Config, hosts: str, names: str, servers: str) -> list[str]:
    """Return dnsmasq's command line; the three are paths of files that SIGHUP reads again.

    An empty user and group keep dnsmasq from changing either, which a user namespace forbids.
    """
    network = config.network
    return [
        "dnsmasq",
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


def names_text(ports: Iterable[Port], generation: int) -> str:
    """Return the names, and the number of this change as an address."""
    lines = [f"{_generation_address(generation)} {_GENERATION}\n"]
    lines += [f"{p.address} {p.host_name} {p.host_name}.{DOMAIN}\n" for p in ports]
    return "".join(lines)


def _generation_address(generation: int) -> str:
    return str(ipaddress.IPv4Address((127 << 24) | generation & 0xFFFFFF))


class NameServer:
    """dnsmasq, restarted when it dies, a bounded number of times."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._files = {name: os.memfd_create(name) for name in ("hosts", "names", "servers")}
        self._generation = 0
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._serving = False
        self._renewing = False
        self._leased: dict[str, str] = {}  # address: MAC, as far as dnsmasq may remember
        self.failure: str | None = None

    async def update(self, ports: Iterable[Port], *, upstream: bool) -> None:
        """Serve exactly ``ports``; returns when that is in force, starts dnsmasq if need be.

        Raises HostError when dnsmasq is missing or ends, TimedOut when it does not answer.
        """
        ports = tuple(ports)
        reused = any(self._leased.get(port.address, port.mac) != port.mac for port in ports)
        self._leased.update({port.address: port.mac for port in ports})
        self._generation += 1
        self._write("hosts", hosts_text(ports))
        self._write("names", names_text(ports, self._generation))
        self._write("servers", f"server={DNS_FORWARD}\n" if upstream else "")
        if self._supervisor is None or self._supervisor.done():
            self.failure = None
            self._supervisor = asyncio.create_task(self._supervise())
        elif reused:
            self._renew(ports)
        elif self._serving and self._process is not None:
            # Before it serves it has no handler: the signal would end it.
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)
        await self._wait_in_force(self._generation)

    def _renew(self, ports: Iterable[Port]) -> None:
        """Start dnsmasq afresh, without a memory of leases.

        It would keep an address for the card that had it before, for ever: a guest that is ended
        does not give its lease back. Guests that run do not notice, their leases never expire.
        """
        self._leased = {port.address: port.mac for port in ports}
        if self._process is not None and self._process.returncode is None:
            self._renewing = True
            self._process.kill()

    async def stop(self) -> None:
        """End dnsmasq."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    def _write(self, name: str, text: str) -> None:
        os.ftruncate(self._files[name], 0)
        os.pwrite(self._files[name], text.encode(), 0)

    async def _wait_in_force(self, generation: int) -> None:
        wanted = socket.inet_aton(_generation_address(generation))
        try:
            async with asyncio.timeout(_TIMEOUT):
                while await _ask(self._config.gateway) != wanted:
                    if self.failure is not None:
                        raise HostError(self.failure, hint="see keeper.log of the network")
                    if self._generation > generation:
                        return  # a later change holds this one too, and waits for itself
                    await asyncio.sleep(_ASK_AGAIN)
        except TimeoutError:
            raise TimedOut(f"dnsmasq did not answer within {_TIMEOUT:g} s") from None
        self._serving = True

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            try:
                status = await self._run_once()
            except OSError as error:
                self.failure = f"dnsmasq could not be started: {error.strerror}"
                return
            if self._renewing:
                self._renewing = False
                continue
            print(f"dnsmasq ended with status {status}", file=sys.stderr, flush=True)
            failures = failures + 1 if loop.time() - started < _STABLE else 1
            if failures > _RESTARTS:
                self.failure = f"dnsmasq ended {failures} times, the last with status {status}"
                return
            await asyncio.sleep(0.05 * 2**failures)

    async def _run_once(self) -> int:
        if shutil.which("dnsmasq") is None:
            raise FileNotFoundError(2, "it is not installed (package dnsmasq-base)")
        paths = {name: f"/proc/{os.getpid()}/fd/{fd}" for name, fd in self._files.items()}
        owner = Owner(home=self._config.home, kind="dnsmasq", ident=self._config.name)
        self._serving = False
        self._process = process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--no-new-privs"),
            *dnsmasq_argv(self._config, **paths),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, OWNER_VARIABLE: owner.mark()},
        )
        try:
            await _copy_log(process.stderr)
            return await process.wait()
        finally:
            self._serving = False
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _copy_log(stream: asyncio.StreamReader | None) -> None:
    """Copy what dnsmasq says to our own log, which a guest must not be able to fill."""
    while stream is not None and (chunk := await stream.read(4096)):
        with contextlib.suppress(OSError):
            if os.fstat(2).st_size > _LOG_LIMIT:
                os.ftruncate(2, 0)
            os.write(2, chunk)


async def _ask(server: str) -> bytes | None:
    """Return the address that ``server`` has for the generation's name; None without answer."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in _GENERATION.split("."))
    query = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect((server, 53))
            sock.send(query)
            answer = await asyncio.wait_for(loop.sock_recv(sock, 512), 0.5)
        except (OSError, TimeoutError):
            return None
    return answer[-4:] if len(answer) > len(query) else None
