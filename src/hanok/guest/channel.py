"""The channel to a guest's agent: one request at a time, in step even with a guest that is not.

Source: QEMU, docs/interop/qemu-ga-ref. The agent answers in order and echoes the request's ``id``
(since QEMU 3.1; older ones do not), so an answer that is late, doubled or out of order is known and
dropped. Whenever an exchange did not end well, the next one first brings both sides back in step
by ``guest-sync-delimited``: a byte 0xFF ends whatever the other side had begun to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hanok.errors import AgentRefused, AgentUnavailable, GuestError
from hanok.guest.text import printable
from hanok.guest.wire import LINE_LIMIT, Flood, WireReader, encode_request, parse_reply

# A sync is sent again after these seconds: what was sent before the agent opened its port can be
# lost (the agent clears what a terminal or a serial port has received). What was not lost waits in
# the port and is all read and answered when the agent opens it: so the longer a guest has been
# silent, the longer it is left in peace: see _Pace.
_FIRST_SYNC_WAIT = 0.1
_CLOSE_LIMIT = 5.0
_SHUTDOWN_LIMIT = 5.0


@dataclass(frozen=True)
class _Pace:
    """How long a silent agent is left in peace: ``wait`` seconds, or a part of its silence."""

    wait: float
    part_of_silence: float


_USUAL = _Pace(0.2, 0.04)
# Where each byte costs the guest milliseconds.
_SLOW = _Pace(0.5, 0.2)


class AgentChannel:
    """A connection to a guest agent that stays in step; held open as long as the VM runs.

    An agent without a connection polls its port and costs the guest CPU time. ``slow``: each byte
    costs the guest milliseconds.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool = False
    ) -> None:
        self._wire = WireReader(reader)
        self._writer = writer
        self._lock = asyncio.Lock()
        self._idents = itertools.count(secrets.randbelow(2**30) + 1)
        self._in_step = False
        self._pace = _SLOW if slow else _USUAL
        self._syncs = _Syncs(self._pace)
        self._echoes = False
        self._closed: str | None = None

    @property
    def closed(self) -> bool:
        """Whether this connection is of no use any more: open another one.

        So it is too when a guest was restarted with another device model, and nobody asked since.
        """
        return self._closed is not None or self._wire.ended

    async def sync(self, timeout: float) -> None:
        """Bring both sides in step again; returns as soon as the agent answers.

        Raises AgentUnavailable when it does not within ``timeout`` seconds.
        """
        with self._failures("a synchronisation", timeout):
            async with asyncio.timeout(timeout), self._lock:
                await self._synchronise()

    async def ping(self, timeout: float = 5) -> None:
        """Return when the agent answers. Raises AgentUnavailable after ``timeout`` seconds."""
        await self.call("guest-ping", timeout=timeout)

    async def call(
        self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = 30
    ) -> Any:
        """Return what the agent's ``command`` returns.

        Raises AgentUnavailable (no answer within ``timeout`` seconds, or the channel is closed),
        AgentRefused (blocked or unknown command) and GuestError (the command failed).
        """
        return await self._request(command, arguments, timeout=timeout)

    async def supported(self) -> frozenset[str]:
        """Return the commands that this agent would carry out (neither unknown nor blocked)."""
        answer = expect(dict, await self.call("guest-info"), "guest-info")
        commands = expect(list, answer.get("supported_commands"), "guest-info")
        return frozenset(
            str(entry.get("name"))
            for entry in commands
            if isinstance(entry, dict) and entry.get("enabled") is True
        )

    async def shutdown(self) -> None:
        """Ask the guest to power off; returns when the agent has taken the request.

        The agent answers only when it fails. So a synchronisation follows: it is answered after a
        failure would have been, and a guest that goes down before that has taken the request too.
        """
        with self._failures("guest-shutdown", _SHUTDOWN_LIMIT):
            async with asyncio.timeout(_SHUTDOWN_LIMIT), self._lock:
                if not self._in_step:
                    await self._synchronise()
                self._in_step = False
                await self._shut_down()

    async def set_time(self, seconds: float) -> None:
        """Set the guest's clock to ``seconds`` since the epoch."""
        try:
            await self.call("guest-set-time", {"time": int(seconds * 1_000_000_000)})
        except AgentRefused:
            raise
        except GuestError as error:
            # The agent sets the clock first and then writes the hardware clock, which many
            # virtual machines do not have: that failure leaves the clock right.
            if "hwclock" not in error.message:
                raise

    async def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._closed = self._closed or "it was closed"
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_LIMIT):
                await self._writer.wait_closed()

    async def _request(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float,
        idle: float | None = None,
        longest: int = LINE_LIMIT,
    ) -> Any:
        """Carry out one exchange within ``timeout`` seconds, silences no longer than ``idle``.

        An answer of more than ``longest`` bytes ends the connection.
        """
        with self._failures(command, timeout if idle is None else min(idle, timeout)):
            async with asyncio.timeout(timeout), self._lock:
                if not self._in_step:
                    async with asyncio.timeout(idle):
                        await self._synchronise()
                self._in_step = False
                reply = await self._exchange(command, arguments, idle, longest)
                self._in_step = True
        if "error" in reply:
            raise _refusal(command, reply["error"])
        return reply["return"]

    @contextlib.contextmanager
    def _failures(self, what: str, limit: float) -> Iterator[None]:
        """Turn everything that can happen to an exchange into Hanok's errors."""
        if self._closed is not None:
            raise AgentUnavailable(f"the connection to the guest agent is gone: {self._closed}")
        try:
            yield
        except TimeoutError:
            raise AgentUnavailable(
                f"the guest agent did not answer {what} within {limit:g} s",
                hint="see whether qemu-guest-agent runs in the guest: hanok console",
            ) from None
        except Flood as error:
            self._give_up(str(error))
            raise GuestError(
                f"{error}; the connection was closed",
                hint="let the command write into a file in the guest, and copy that",
            ) from None
        except AgentUnavailable as error:
            self._give_up(error.message)
            raise
        except OSError as error:
            self._give_up(str(error))
            raise AgentUnavailable(f"the channel to the guest agent broke: {error}") from error

    def _give_up(self, reason: str) -> None:
        self._closed = self._closed or reason
        self._writer.close()

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _synchronise(self) -> None:
        """Send syncs until one is answered; the caller holds the lock and a time limit.

        Each wait is for an answer, not a pause: it only ends early what seems lost. Where an
        earlier caller gave up waiting, it is gone on with.
        """
        self._in_step = False
        syncs, now = self._syncs, asyncio.get_running_loop().time
        while True:
            if now() >= syncs.due:
                ident = next(self._idents)
                syncs.sent(ident, now())
                await self._send_sync(ident)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(syncs.due):
                    await self._receive_sync(syncs.idents)
                self._syncs = _Syncs(self._pace)
                self._in_step = True
                return

    async def _send_sync(self, ident: int) -> None:
        await self._send(b"\xff" + encode_request("guest-sync-delimited", {"id": ident}, ident))

    async def _receive_sync(self, idents: set[int]) -> None:
        while True:
            reply = parse_reply(await self._wire.read_after_sentinel())
            if reply is not None and _number(reply.get("return")) in idents:
                self._echoes = "id" in reply
                return

    async def _exchange(
        self, command: str, arguments: Mapping[str, Any] | None, idle: float | None, longest: int
    ) -> dict[str, Any]:
        """Send a request and return its answer, whatever else comes before it."""
        ident = next(self._idents)
        # An answer to a sync of before would not show that this request's has been passed.
        self._syncs = _Syncs(self._pace)
        await self._send(encode_request(command, arguments, ident))
        while True:
            line = await self._wire.read_line(idle, longest)
            if b"\xff" in line:
                continue  # an earlier sync's answer
            reply = parse_reply(line)
            if reply is not None and self._answers(reply, ident):
                return reply

    def _answers(self, reply: dict[str, Any], ident: int) -> bool:
        found = reply.get("id")
        return found == ident if self._echoes else found is None or found == ident

    async def _shut_down(self) -> None:
        request = next(self._idents)
        sync = next(self._idents)
        self._syncs = _Syncs(self._pace)
        await self._send(encode_request("guest-shutdown", {"mode": "powerdown"}, request))
        await self._send_sync(sync)
        with contextlib.suppress(TimeoutError, AgentUnavailable):
            while True:
                line = await self._wire.read_line(_SHUTDOWN_LIMIT / 2)
                reply = parse_reply(line.rpartition(b"\xff")[2])
                if reply is None:
                    continue
                if "error" in reply and self._answers(reply, request):
                    raise _refusal("guest-shutdown", reply["error"])
                if reply.get("return") == sync:
                    self._in_step = True
                    return


class _Syncs:
    """The syncs that no answer has come to; times are the event loop's."""

    def __init__(self, pace: _Pace) -> None:
        self._pace = pace
        self.idents: set[int] = set()
        self.due = 0.0
        self._since = 0.0
        self._wait = _FIRST_SYNC_WAIT

    def sent(self, ident: int, now: float) -> None:
        """Note one that is being sent, and when the next one is due."""
        if not self.idents:
            self._since = now
        self.idents.add(ident)
        self.due = now + max(self._wait, self._pace.part_of_silence * (now - self._since))
        self._wait = min(2 * self._wait, self._pace.wait)


def expect(kind: type[Any], value: object, command: str) -> Any:
    """Return ``value`` if it is a ``kind``. Raises GuestError: the agent's answer is malformed."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GuestError(
            f"the guest agent's answer to {command} is malformed: {printable(value, 60)}"
        )
    return value


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _refusal(command: str, error: object) -> GuestError:
    """Return the error that an error reply stands for."""
    found = error if isinstance(error, dict) else {}
    text = printable(found.get("desc", "no reason given"))
    if found.get("class") != "CommandNotFound" and "has been disabled" not in text:
        return GuestError(f"the guest agent could not do {command}: {text}")
    if "disabled" in text:
        return AgentRefused(
            f"the guest agent has {command} blocked: {text}",
            hint="take it out of the block list in the guest (/etc/sysconfig/qemu-ga or"
            " /etc/qemu/qemu-ga.conf) and restart qemu-guest-agent there; or use SSH",
        )
    return AgentRefused(
        f"the guest agent does not know {command}: {text}",
        hint="update qemu-guest-agent in the guest",
    )
