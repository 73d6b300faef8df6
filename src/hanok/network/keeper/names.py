"""DHCP and DNS of a network: dnsmasq as a child of the keeper.

Its files are memory of the keeper (memfd), found under /proc, so that nothing is on disk. Each
version of them carries a number, served as an address under a name of its own: once dnsmasq
answers with it, the version is in force.

A guest that is ended does not give its lease back, and leases are for ever: the keeper gives them
back in the place of those that are unplugged. Else their names would stay, and dnsmasq would
refuse the address to the next card.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable

from hanok.errors import HostError, TimedOut
from hanok.network.keeper import dnsmasq
from hanok.network.keeper.config import DNS_FORWARD, Config, Port

_TIMEOUT = 10.0
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05
_PATIENCE = 50  # an answer is waited for so many times as long as the pause before asking again
_PAUSE = 0.03  # so that the cost of many changes is bounded: each has dnsmasq read all again
_RELEASES = 12  # of one lease, before it is left alone
_RESTARTS = 5  # in a row, each less than _STABLE seconds after the one before
_STABLE = 60.0
_LOG_LIMIT = 1024 * 1024


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
        self._generation = 0  # counts what is asked for
        self._in_force = 0  # up to here it was seen to be served
        self._version = 0  # of the files
        self._served: tuple[Port, ...] = ()
        self._changed = asyncio.Event()
        self._progress = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
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
            self._served = ()  # a new dnsmasq has no leases
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
            await self._change(self._ports)
            self._in_force = generation
            await self._tell()
            await asyncio.sleep(_PAUSE)

    async def _change(self, ports: tuple[Port, ...]) -> None:
        """Serve exactly ``ports``; what others had is gone before a newcomer may get it."""
        stay = set(ports).intersection(self._served)
        gone = [port for port in self._served if port not in stay]
        if gone:
            await self._serve(tuple(port for port in ports if port in stay))
            for port in gone:
                await self._release(port)
        if not gone or len(stay) < len(ports):
            await self._serve(ports)

    async def _release(self, port: Port) -> None:
        """Have dnsmasq forget the lease of ``port``, if it has one: it knows the name by it."""
        pause = _FIRST_PAUSE
        for _ in range(_RELEASES):
            with contextlib.suppress(OSError):
                dnsmasq.send_release(port, self._config.gateway)
            for _ in range(2):  # it may answer the first before it looks at the release
                if await self._ask(dnsmasq.full_name(port), pause) == "":
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        print(f"dnsmasq keeps the lease of {port.address}", file=sys.stderr, flush=True)

    async def _ask(self, name: str, pause: float) -> str | None:
        return await dnsmasq.ask(self._config.gateway, name, _PATIENCE * pause)

    async def _serve(self, ports: tuple[Port, ...]) -> None:
        """Return when files with ``ports`` are in force.

        dnsmasq is told only once it answers: before that it has no handler, and SIGHUP would end
        it.
        """
        self._served = ports
        self._version += 1
        self._write_files(ports)
        wanted = dnsmasq.version_address(self._version)
        pause = _FIRST_PAUSE
        told = False
        while (answer := await self._ask(dnsmasq.VERSION_NAME, pause)) != wanted:
            if answer is None or told:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            told = answer is not None and not told
            if told and self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGHUP)

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    async def _give_up(self, reason: str) -> None:
        self.failure = reason
        await self._tell()

    def _write_files(self, ports: tuple[Port, ...]) -> None:
        texts = {
            "hosts": dnsmasq.hosts_text(ports),
            "names": dnsmasq.names_text(ports, self._version),
            "servers": f"server={DNS_FORWARD}\n" if self._upstream else "",
        }
        for name, text in texts.items():
            os.ftruncate(self._files[name], 0)
            os.pwrite(self._files[name], text.encode(), 0)

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
            *dnsmasq.options(self._config, **paths),
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
