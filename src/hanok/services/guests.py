"""What is connected to each running guest: its console hub and its agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import dataclass, field

from hanok.errors import AgentUnavailable, Conflict, GuestError, HanokError
from hanok.guest.agent import AgentConnection
from hanok.guest.console import ConsoleHub, tail_log
from hanok.guest.text import printable
from hanok.hypervisors.base import RunState
from hanok.hypervisors.optional import HasAgentChannel, HasConsole
from hanok.model.vm import VmRecord
from hanok.services.machines import files_of
from hanok.services.parts import Parts

_log = logging.getLogger(__name__)
_LAST_WORDS = 600
# A guest that has no agent is not waited for much longer than one that has.
_CLOCK_LIMIT = 5.0


@dataclass
class Session:
    """The connections to one guest."""

    record: VmRecord
    console: ConsoleHub | None = None
    agent: AgentConnection | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class Guests:
    """Keeps the connections of running guests open: an unconnected agent polls and costs CPU."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sessions: dict[str, Session] = {}

    async def connect(self, record: VmRecord) -> None:
        """Connect to the console and to the agent's channel of a guest that has just started."""
        await self.disconnect(record.uuid)
        session = Session(record)
        self._sessions[record.uuid] = session
        hypervisor = self._parts.hypervisor
        if isinstance(hypervisor, HasConsole):
            stream = await hypervisor.open_console(record.uuid)
            log = files_of(self._parts.settings, record.uuid).console_log
            session.console = ConsoleHub(stream.reader, stream.writer, log)
            await session.console.start()
        await self._open_agent(session)

    async def _open_agent(self, session: Session) -> AgentConnection | None:
        hypervisor = self._parts.hypervisor
        async with session.opening:
            if session.agent is not None and not session.agent.closed:
                return session.agent
            if not isinstance(hypervisor, HasAgentChannel):
                return None
            with contextlib.suppress(AgentUnavailable):
                stream = await hypervisor.open_agent(session.record.uuid)
                session.agent = AgentConnection(stream.reader, stream.writer)
            return session.agent

    async def disconnect(self, uuid: str) -> None:
        """Let go of a guest; nothing happens when it is not connected."""
        session = self._sessions.pop(uuid, None)
        if session is None:
            return
        if session.agent is not None:
            await session.agent.close()
        if session.console is not None:
            await session.console.close()

    async def agent(self, record: VmRecord) -> AgentConnection:
        """Return the agent of a running guest. Raises AgentUnavailable with what to do."""
        session = self._sessions.get(record.uuid)
        agent = await self._open_agent(session) if session is not None else None
        if agent is None:
            raise AgentUnavailable(
                f"{record.spec.name} has no guest agent",
                hint="install the package qemu-guest-agent in it, or use its console",
            )
        return agent

    async def set_clock(self, record: VmRecord) -> None:
        """Set the guest's clock, which stood still while its vCPUs did; as far as it lets us."""
        with contextlib.suppress(HanokError, TimeoutError):
            async with asyncio.timeout(_CLOCK_LIMIT):
                agent = await self.agent(record)
                await agent.set_time(time.time())

    def console(self, record: VmRecord) -> ConsoleHub:
        """Return the console of a running guest. Raises Conflict when it does not run."""
        session = self._sessions.get(record.uuid)
        if session is None or session.console is None:
            raise Conflict(
                f"{record.spec.name} is {record.state} and has no console now",
                hint=f"'hanok start {record.spec.name}' starts it",
            )
        return session.console

    def tail(self, record: VmRecord, lines: int) -> bytes:
        """Return the last lines that the console showed, also of a guest that does not run."""
        return tail_log(files_of(self._parts.settings, record.uuid).console_log, lines)

    def last_words(self, record: VmRecord, lines: int = 5) -> str:
        """Return the last lines of the console, for reasons of failures."""
        return printable(self.tail(record, lines), _LAST_WORDS)

    def probe(self, record: VmRecord) -> Probe:
        """Return how readiness looks at this guest."""
        return Probe(self, self._parts, record)

    async def connect_tcp(self, record: VmRecord, port: int, timeout: float) -> socket.socket:
        """Return a TCP socket to ``port`` of the guest, made inside its network."""
        if not record.nics:
            raise Conflict(f"{record.spec.name} is on no network")
        nic = record.nics[0]
        return await self._parts.networks.connect(nic.network, nic.address, port, timeout)

    async def close(self) -> None:
        """Let go of all guests."""
        for uuid in list(self._sessions):
            with contextlib.suppress(HanokError):
                await self.disconnect(uuid)


@dataclass(frozen=True)
class Probe:
    """See guest.readiness.GuestProbe."""

    guests: Guests
    parts: Parts
    record: VmRecord

    async def agent(self) -> AgentConnection | None:
        """Return the agent's connection, or None while there is no channel."""
        try:
            return await self.guests.agent(self.record)
        except AgentUnavailable:
            return None

    async def connect(self, port: int, timeout: float) -> socket.socket:
        """Return a TCP socket to the guest. Raises OSError: waiting goes on."""
        try:
            return await self.guests.connect_tcp(self.record, port, timeout)
        except GuestError as error:
            raise ConnectionError(error.message) from error

    async def alive(self) -> bool:
        """Return whether the machine still runs."""
        state = await self.parts.hypervisor.state(self.record.uuid)
        return state in (RunState.RUNNING, RunState.PAUSED)
