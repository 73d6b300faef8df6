"""When a guest is ready: its agent, a port or a URL answers, a command succeeds, or its console
shows a text.

A try at a port is short, the pauses between tries grow; an agent is waited for in one try, so that
no limit falls on its first answer. What was seen last is in the error when the limit is reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import h11
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_result,
    wait_exponential,
    wait_fixed,
)

from hanok.errors import AgentRefused, AgentUnavailable, GuestError, HanokError, InvalidInput
from hanok.guest.agent import AgentConnection
from hanok.guest.text import printable
from hanok.model.vm import Ready

_TRY_LIMIT = 5.0
# Seconds of a try after which it is looked whether the VM still runs, and between two looks. On Xen
# a look takes an emulated Dom0 0.2 to 0.4 s, which a booting guest then lacks.
_LOOK = 10.0
_COMMAND_LIMIT = 60.0
# A forwarder or a dying server accepts and then hangs up: that is not ready.
_STAYS_OPEN = 0.2
_RESULT = "/run/cloud-init/result.json"
_DISABLED = "/run/cloud-init/disabled"
_LOG = "/var/log/cloud-init-output.log"
_LOG_HINT = f"read {_LOG} in the guest: hanok exec VM -- cat {_LOG}"
_PANIC_HINT = "look at its console (hanok logs) or screen; hanok restart begins anew"
_FAILURE = re.compile(rb"\.py\[(WARNING|ERROR|CRITICAL)\].*fail", re.I)
_RECORD = re.compile(rb"\.py\[[A-Z]+\]|^(Command|Exit code|Reason|Stdout|Stderr): ")
_SMALL_FILE = 1024 * 1024
_KEPT_OF_CONSOLE = 2048


class GuestProbe(Protocol):
    """How to reach a guest while waiting for it."""

    async def agent(self) -> AgentConnection | None:
        """Return the open connection to the guest's agent, None while there is none."""
        ...

    async def connect(self, port: int, timeout: float) -> socket.socket:
        """Return a TCP connection to the guest, made inside its network.

        Raises OSError (refused, unreachable, TimeoutError).
        """
        ...

    def said(self, place: int) -> tuple[bytes, int]:
        """Return what the console has said since ``place`` (0: all), and the place after it."""
        ...

    def panic(self) -> str | None:
        """Return with what words the guest's kernel panicked, None when it was not seen to."""
        ...

    async def alive(self) -> bool:
        """Return whether the VM still runs."""
        ...


class _NotYet(Exception):
    """What was seen instead of readiness."""


class _Never(Exception):
    """What was seen makes waiting on pointless; ``hint`` says what to do about it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass
class _Seen:
    """What the tries saw, for the error."""

    tries: int = 0
    last: str = "no answer yet"


async def wait_ready(
    check: Ready,
    *,
    probe: GuestProbe,
    cloud_init: bool = False,
    deadline: float | None = None,
) -> float:
    """Wait until ``check`` holds; return the seconds that took.

    ``deadline`` is the event loop's time at which to give up, ``check.timeout`` from now when not
    given. With ``cloud_init`` the default check (the agent answers) also waits until cloud-init
    has ended without errors. Raises GuestError (what was seen last), InvalidInput (the URL).
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    limit = deadline if deadline is not None else started + check.timeout
    tester = _Tester(check, probe, cloud_init, max(limit - started, 0))
    seen = _Seen()
    retrying = AsyncRetrying(
        wait=wait_exponential(multiplier=0.05, exp_base=1.5, max=1.0),
        retry=retry_if_exception_type(_NotYet),
    )
    try:
        async with asyncio.timeout_at(limit):
            await _unless(_ends(probe, seen), retrying(_one_try, tester, probe, seen))
    except TimeoutError:
        await _give_up(tester, seen, loop.time() - started)
    except _Never as error:
        raise GuestError(f"{tester.subject}: {error}", hint=error.hint or tester.hint) from None
    return loop.time() - started


async def check_once(check: Ready, probe: GuestProbe) -> str | None:
    """Return what ``check`` saw wrong, None when it holds; the caller sets the time limit."""
    try:
        tester = _Tester(check, probe, cloud_init=False, agent_limit=_TRY_LIMIT)
    except HanokError as error:
        return error.message
    try:
        await tester.test()
    except (_NotYet, _Never) as error:
        return f"{tester.subject}: {error}"
    except OSError as error:  # TimeoutError too: a connection's own
        return f"{tester.subject}: {_describe(error)}"
    except HanokError as error:
        return f"{tester.subject}: {error.message}"
    return None


async def wait_addresses(agent: AgentConnection, wanted: frozenset[str], timeout: float) -> bool:
    """Wait until the guest has taken every address of ``wanted``; False after ``timeout`` seconds.

    True as well when its agent cannot tell. Raises GuestError, AgentUnavailable and TimedOut.
    """
    if not wanted:
        return True
    retrying = AsyncRetrying(
        wait=wait_exponential(multiplier=0.02, exp_base=1.5, max=0.1),
        retry=retry_if_result(lambda found: not found),
    )
    try:
        async with asyncio.timeout(timeout):
            await retrying(_has_addresses, agent, wanted)
    except AgentRefused:
        return True
    except TimeoutError:
        return False
    return True


async def _has_addresses(agent: AgentConnection, wanted: frozenset[str]) -> bool:
    cards = await agent.call("guest-network-get-interfaces")
    found = {
        entry.get("ip-address")
        for card in (cards if isinstance(cards, list) else ())
        for entry in (card.get("ip-addresses") or () if isinstance(card, dict) else ())
        if isinstance(entry, dict)
    }
    return wanted <= found


async def _one_try(tester: _Tester, probe: GuestProbe, seen: _Seen) -> None:
    """Test once. Whether the VM still runs is asked only when that fails: it may take its time."""
    seen.tries += 1
    try:
        await tester.test()
    except (_NotYet, OSError) as error:  # TimeoutError too
        seen.last = _describe(error) if isinstance(error, OSError) else str(error)
        await _check_goes_on(probe, seen)
        raise _NotYet(seen.last) from error


async def _check_goes_on(probe: GuestProbe, seen: _Seen) -> None:
    """Raise _Never when the VM does not run any more, or its guest's kernel has panicked."""
    if not await probe.alive():
        raise _Never(f"the VM stopped before that (seen last: {seen.last})")
    if (words := probe.panic()) is not None:
        raise _Never(f"the guest's kernel panicked before that: {words}", _PANIC_HINT)


async def _ends(probe: GuestProbe, seen: _Seen) -> None:
    """Raise _Never once the guest cannot become ready any more, while a long try waits on."""
    await asyncio.sleep(_LOOK)
    looking = AsyncRetrying(wait=wait_fixed(_LOOK), retry=retry_if_result(lambda _: True))
    await looking(_check_goes_on, probe, seen)


async def _unless(watching: Coroutine[Any, Any, None], trying: Coroutine[Any, Any, None]) -> None:
    """Return when ``trying`` has ended, or raise what ``watching`` raises before that."""
    tried, watched = asyncio.ensure_future(trying), asyncio.ensure_future(watching)
    try:
        done, _ = await asyncio.wait((tried, watched), return_when=asyncio.FIRST_COMPLETED)
        (tried if tried in done else watched).result()
    finally:
        tried.cancel()
        watched.cancel()
        await asyncio.gather(tried, watched, return_exceptions=True)


async def _give_up(tester: _Tester, seen: _Seen, seconds: float) -> NoReturn:
    tries = f"{seen.tries} {'try' if seen.tries == 1 else 'tries'} in {seconds:.0f} s"
    trouble = await tester.cloud_init_trouble()
    more = f"; {trouble}" if trouble else ""
    raise GuestError(f"{tester.subject}: {seen.last}, {tries}{more}", hint=tester.hint) from None


class _Tester:
    """One check of one guest; ``agent_limit``: seconds that its agent has to answer in one try."""

    def __init__(
        self, check: Ready, probe: GuestProbe, cloud_init: bool, agent_limit: float
    ) -> None:
        self._check = check
        self._probe = probe
        self._cloud_init = cloud_init
        self._agent_limit = agent_limit
        self._place = 0
        self._heard = b""
        self.hint = "look at the guest's console: hanok logs"
        if check.port is not None:
            self.subject = f"port {check.port}"
            self.test = self._test_port
        elif check.url is not None:
            self.subject = check.url
            self._request = _parse_url(check.url)
            self.test = self._test_url
        elif check.command is not None:
            self.subject = f"command {printable(check.command, 60)!r}"
            self.test = self._test_command
        elif check.console is not None:
            self.subject = f"{printable(check.console, 60)!r} on the console"
            self.test = self._test_console
        else:
            self.subject = "guest agent"
            self.hint = (
                "is qemu-guest-agent in the image? Without one, check a port: hanok logs tells more"
            )
            self.test = self._test_agent

    async def cloud_init_trouble(self) -> str | None:
        """Return what went wrong in cloud-init, for the error of another check."""
        if not self._cloud_init:
            return None
        try:
            async with asyncio.timeout(_TRY_LIMIT):
                await _test_cloud_init(await self._answering_agent())
        except (_Never, _NotYet) as error:
            return str(error)
        except (HanokError, TimeoutError):
            return None
        return None

    async def _answering_agent(self) -> AgentConnection:
        try:
            agent = await self._probe.agent()
            if agent is None:
                raise _NotYet("there is no connection to the guest agent yet")
            await agent.sync(self._agent_limit)
        except AgentUnavailable as error:
            raise _NotYet(error.message) from None
        return agent

    async def _test_agent(self) -> None:
        agent = await self._answering_agent()
        if self._cloud_init:
            await _test_cloud_init(agent)

    async def _test_command(self) -> None:
        agent = await self._answering_agent()
        argv = ["/bin/sh", "-c", self._check.command or ""]
        try:
            done = await agent.exec(argv, timeout=_COMMAND_LIMIT)
        except AgentRefused as error:
            raise _Never(error.message, error.hint) from None
        except HanokError as error:
            raise _NotYet(error.message) from None
        if done.exit_status != 0:
            said = printable(done.stderr or done.stdout, 120)
            raise _NotYet(f"exit status {done.exit_status}" + (f" ({said})" if said else ""))

    async def _test_console(self) -> None:
        wanted = (self._check.console or "").encode()
        new, self._place = self._probe.said(self._place)
        heard = self._heard + new
        if wanted in heard:
            return
        self._heard = heard[-_KEPT_OF_CONSOLE:]  # longer than any text, which may come in pieces
        lines = [line for line in self._heard.splitlines() if line.strip()]
        last = printable(lines[-1], 120) if lines else "nothing"
        raise _NotYet(f"it has not been said; what was said last: {last}")

    async def _test_port(self) -> None:
        connection = await self._probe.connect(self._check.port or 0, _TRY_LIMIT)
        with contextlib.closing(connection):
            connection.setblocking(False)
            received = asyncio.get_running_loop().sock_recv(connection, 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STAYS_OPEN):
                    if not await received:
                        raise _NotYet("it accepts and closes the connection at once")

    async def _test_url(self) -> None:
        connection = await self._probe.connect(self._request.port, _TRY_LIMIT)
        with contextlib.closing(connection):
            connection.setblocking(False)
            async with asyncio.timeout(_TRY_LIMIT):
                status = await _http_status(connection, self._request)
        if not 200 <= status < 400:
            raise _NotYet(f"HTTP status {status}")


@dataclass(frozen=True)
class _Request:
    """A URL taken apart: what to send, and to which port of the guest."""

    host: str
    port: int
    target: str


def _parse_url(url: str) -> _Request:
    try:
        parts = urlsplit(url)
        port = parts.port or 80
        host = parts.netloc.rpartition("@")[2]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        h11.Request(method="GET", target=target, headers=[("Host", host)])
    except (ValueError, h11.LocalProtocolError):
        raise InvalidInput(
            f"{printable(url, 80)} is not a URL that can be asked for",
            field="ready.url",
            expected="http://HOST[:PORT]/PATH in ASCII; the guest is asked whatever HOST says",
        ) from None
    return _Request(host, port, target)


async def _http_status(connection: socket.socket, request: _Request) -> int:
    """Return the status that the guest's server answers with; raises _NotYet, OSError."""
    loop = asyncio.get_running_loop()
    http = h11.Connection(our_role=h11.CLIENT)
    headers = [("Host", request.host), ("Connection", "close"), ("User-Agent", "hanok")]
    head = http.send(h11.Request(method="GET", target=request.target, headers=headers))
    await loop.sock_sendall(connection, (head or b"") + (http.send(h11.EndOfMessage()) or b""))
    try:
        while True:
            event = http.next_event()
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                http.receive_data(await loop.sock_recv(connection, 65536))
            elif not isinstance(event, h11.InformationalResponse):
                raise _NotYet("the connection was closed without an answer")
    except h11.RemoteProtocolError as error:
        raise _NotYet(f"what answers is not HTTP ({printable(str(error), 80)})") from None


async def _test_cloud_init(agent: AgentConnection) -> None:
    """Return when cloud-init has ended well; raises _NotYet, and _Never when it failed.

    Reads the files that ``cloud-init status`` reads: that command takes a second of CPU a call.
    """
    result = await _small_file(agent, _RESULT)
    if result is None:
        if await _small_file(agent, _DISABLED) is not None:
            return
        raise _NotYet("cloud-init has not finished")
    try:
        errors = json.loads(result)["v1"]["errors"]
    except (ValueError, KeyError, TypeError, RecursionError):
        errors = [f"its result cannot be read: {printable(result, 80)}"]
    if errors:
        said = last_words(await _small_file(agent, _LOG) or b"")
        more = f"; its log says: {said}" if said else ""
        raise _Never(f"cloud-init failed: {printable(errors, 200)}{more}", _LOG_HINT)


def last_words(log: bytes) -> str:
    """Return what was printed last before cloud-init logged the first failure, "" for nothing.

    The log joins the output of the user's commands with records of cloud-init's own and, after
    a command that failed, a description of it.
    """
    lines = [line for line in log.splitlines() if line.strip()]
    failed = next((at for at, line in enumerate(lines) if _FAILURE.search(line)), len(lines))
    printed = [line for line in lines[:failed] if not _RECORD.search(line)]
    return printable((printed or lines or [b""])[-1], 160)


async def _small_file(agent: AgentConnection, path: str) -> bytes | None:
    """Return a file of the guest's, None when there is none (or it cannot be read)."""
    try:
        return await agent.read_file(path, limit=_SMALL_FILE)
    except AgentUnavailable as error:
        raise _NotYet(error.message) from None
    except AgentRefused as error:
        raise _Never(error.message, error.hint) from None
    except GuestError:
        return None


def _describe(error: OSError) -> str:
    """Return what a failed connection means, as people say it."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    if isinstance(error, TimeoutError):
        return "no answer"
    return printable(error.strerror or str(error), 80).lower()
