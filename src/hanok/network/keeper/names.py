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
import signal
import socket
import struct
import sys
from collections.abc import Iterable

from hanok.errors import HostError, TimedOut
from hanok.network.keeper.config import BRIDGE, DNS_FORWARD, DOMAIN, Config, Port
from hanok.network.keeper.leases import Leases

_GENERATION = f"_generation.{DOMAIN}"
_TIMEOUT = 10.0
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05
_PAUSE = 0.03  # so that the cost of many changes is bounded: each has dnsmasq read all again
_RESTARTS = 5  # in a row, each less than _STABLE seconds after the one before
_STABLE = 60.0
_LOG_LIMIT = 1024 * 1024


def dnsmasq_options(config: Config, hosts: str, names: str, servers: str) -> list[str]:
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


def names_text(ports: Iterable[Port], generation: int) -> str:
    """Return the names, and the number of this change as an address."""
    lines = [f"{_generation_address(generation)} {_GENERATION}\n"]
    lines += [f"{p.address} {p.host_name} {p.host_name}.{DOMAIN}\n" for p in ports]
    return "".join(lines)


def _generation_address(generation: int) -> str:
    return str(ipaddress.IPv4Address((127 << 24) | generation & 0xFFFFFF))


class NameServer:
    """dnsmasq, restarted when it dies, a bounded number of times.

    Changes are asked for by ``update``, which returns at once, and are carried out one after the
    other in the background: what is asked for meanwhile is one change together.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._files = {name: os.memfd_create(name) for name in ("hosts", "names", "servers")}
        self._ports: tuple[Port, ...] = ()
        self._upstream = False
        self._generation = 0  # the number of what is asked for
        self._in_force = 0  # the number of what dnsmasq was seen to serve
        self._changed = asyncio.Event()
        self._progress = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._renewing = False
        self._leases = Leases()
        self.failure: str | None = None

    def update(self, ports: Iterable[Port], *, upstream: bool) -> None:
        """Ask for exactly ``ports`` to be served, and names of others only if ``upstream``.

        Starts dnsmasq if need be, also when it was given up.
        """
        self._ports, self._upstream = tuple(ports), upstream
        self._generation += 1
        self._changed.set()
        if not self._tasks or any(task.done() for task in self._tasks):
            for task in self._tasks:
                task.cancel()
            self.failure = None
            self._tasks = (
                asyncio.create_task(self._carry_out()),  # writes the files that dnsmasq reads
                asyncio.create_task(self._supervise()),
            )

    async def settle(self) -> None:
        """Return when all that was asked for before is in force.

        Raises HostError when dnsmasq is missing or was given up, TimedOut when it does not answer.
        """
        generation = self._generation

        def decided() -> bool:
            return self._in_force >= generation or self.failure is not None

        try:
            async with asyncio.timeout(_TIMEOUT), self._progress:
                await self._progress.wait_for(decided)
        except TimeoutError:
            raise TimedOut(f"dnsmasq did not answer within {_TIMEOUT:g} s") from None
        if self._in_force < generation:
            raise HostError(str(self.failure), hint="see keeper.log of the network")

    async def stop(self) -> None:
        """End dnsmasq."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry_out(self) -> None:
        """Bring what is asked for into force, for ever, with a pause behind each change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            generation = self._generation
            fits = self._leases.offer(self._ports)
            self._write_files()
            if not fits:
                await self._start_afresh()
            await self._wait_in_force(generation)
            self._in_force = generation
            await self._tell()
            await asyncio.sleep(_PAUSE)

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    async def _give_up(self, reason: str) -> None:
        self.failure = reason
        await self._tell()

    def _write_files(self) -> None:
        texts = {
            "hosts": self._leases.text(self._ports),
            "names": names_text(self._ports, self._generation),
            "servers": f"server={DNS_FORWARD}\n" if self._upstream else "",
        }
        for name, text in texts.items():
            os.ftruncate(self._files[name], 0)
            os.pwrite(self._files[name], text.encode(), 0)

    async def _start_afresh(self) -> None:
        """Have dnsmasq forget its leases; guests do not notice, theirs never expire."""
        if self._process is not None and self._process.returncode is None:
            self._renewing = True
            self._process.kill()
            await self._process.wait()  # what is asked of it now would get no answer

    async def _wait_in_force(self, generation: int) -> None:
        """Have dnsmasq read its files until it answers with the number of this change.

        It is told only once it answers: before that it has no handler, and SIGHUP would end it.
        """
        wanted = socket.inet_aton(_generation_address(generation))
        pause = _FIRST_PAUSE
        told = False
        while (answer := await _ask(self._config.gateway, 50 * pause)) != wanted:
            if answer is None or told:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            told = answer is not None and not told
            if told and self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGHUP)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            try:
                status = await self._run_once()
            except OSError as error:
                await self._give_up(f"dnsmasq could not be started: {error.strerror}")
                return
            if self._renewing:
                self._renewing = False
                continue
            print(f"dnsmasq ended with status {status}", file=sys.stderr, flush=True)
            failures = failures + 1 if loop.time() - started < _STABLE else 1
            if failures > _RESTARTS:
                await self._give_up(
                    f"dnsmasq ended {failures} times, the last with status {status}"
                )
                return
            await asyncio.sleep(0.05 * 2**failures)

    async def _run_once(self) -> int:
        paths = {name: f"/proc/{os.getpid()}/fd/{fd}" for name, fd in self._files.items()}
        variable, mark = self._config.mark
        self._process = process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--no-new-privs", self._config.dnsmasq),
            *dnsmasq_options(self._config, **paths),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, variable: mark},
        )
        try:
            await _copy_log(process.stderr)
            return await process.wait()
        finally:
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


async def _ask(server: str, timeout: float) -> bytes | None:
    """Return the address that ``server`` has for the generation's name; None without answer."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in _GENERATION.split("."))
    query = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect((server, 53))
            sock.send(query)
            answer = await asyncio.wait_for(loop.sock_recv(sock, 512), timeout)
        except (OSError, TimeoutError):
            return None
    return answer[-4:] if len(answer) > len(query) else None
