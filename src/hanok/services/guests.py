"""What is connected to each running guest: its console hub and its agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from hanok.errors import AgentUnavailable, Conflict, GuestError, HanokError, HypervisorError
from hanok.guest.agent import AgentConnection
from hanok.guest.console import ConsoleHub, tail_log
from hanok.guest.panic import PanicWatch
from hanok.guest.text import printable
from hanok.hypervisors.base import MachineEvent
from hanok.hypervisors.events import EventQueue
from hanok.hypervisors.optional import HasAgentChannel, HasConsole
from hanok.model.vm import VmRecord, VmState
from hanok.services.machines import RUNS, files_of
from hanok.services.parts import Parts

_log = logging.getLogger(__name__)
_LAST_WORDS = 600
# A guest that has no agent is not waited for much longer than one that has.
_CLOCK_LIMIT = 5.0
# How long an agent has to answer in a guest that is not known to have one.
_DOUBTFUL_LIMIT = 3.0
_LOG_LINES = 100_000
# Seconds before a console that has ended is opened again, and between two tries.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 15.0
# What lets a guest answer again that cannot.
_WAKES = {VmState.PAUSED: "resume", VmState.STOPPED: "start"}


@dataclass
class Session:
    """The connections to one guest."""

    record: VmRecord
    adopted: bool = False
    console: ConsoleHub | None = None
    panics: PanicWatch | None = None
    agent: AgentConnection | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    reopening: asyncio.Task[object] | None = None


class Guests:
    """Keeps the connections of running guests open: an unconnected agent polls and costs CPU."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sessions: dict[str, Session] = {}
        self._panics = EventQueue()

    async def connect(self, record: VmRecord, *, adopted: bool = False) -> None:
        """Connect to the console and to the agent's channel of a guest.

        ``adopted``: it ran already, so that its console has said something before. Such a guest
        goes on without one when there is none: who asks for it is told why. A console that ends
        while its guest goes on is opened again as soon as it is served, so that its log goes on.
        """
        await self.disconnect(record.uuid)
        session = Session(record, adopted)
        self._sessions[record.uuid] = session
        try:
            await self._open_console(session)
        except HypervisorError as error:
            if not adopted:
                raise
            _log.warning("%s goes on without a console: %s", record.spec.name, error.message)
            self._reopen(session)
        await self._open_agent(session)

    def _reopen(self, session: Session) -> None:
        """Begin to open the console again, unless its session has ended with it."""
        name = f"reopen the console of {session.record.spec.name}"
        waits = session.reopening is not None and not session.reopening.done()
        if self._sessions.get(session.record.uuid) is session and not waits:
            session.reopening = asyncio.create_task(self._console_again(session), name=name)

    async def _console_again(self, session: Session) -> None:
        await asyncio.sleep(_FIRST_PAUSE)  # most consoles end with their guest
        retrying = AsyncRetrying(
            wait=wait_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
            retry=retry_if_exception_type(HanokError),
        )
        await retrying(self._open_console, session)

    async def _open_console(self, session: Session) -> ConsoleHub | None:
        """Return the guest's console, opened again when its stream has ended."""
        hypervisor, uuid = self._parts.hypervisor, session.record.uuid
        async with session.opening:
            if session.console is not None and not session.console.ended:
                return session.console
            # One that was let go while this waited would keep what is opened for ever.
            if not isinstance(hypervisor, HasConsole) or self._sessions.get(uuid) is not session:
                return None
            stream = await hypervisor.open_console(uuid)
            try:
                if session.console is not None:
                    await self._check_runs(uuid)
                await _close_console(session)
            except BaseException:
                stream.writer.close()
                raise
            log = files_of(self._parts.settings, uuid).console_log
            session.console = ConsoleHub(stream.reader, stream.writer, log)
            session.panics = self._watch(uuid, session.console)
            await session.console.start()
            session.console.when_ended(lambda: self._reopen(session))
            return session.console

    async def _check_runs(self, uuid: str) -> None:
        """Check that a console was not opened while its guest ended. Raises HypervisorError.

        A terminal's number may be another guest's by then; while its guest runs it is not.
        """
        state = await self._parts.hypervisor.state(uuid)
        if state not in RUNS:
            raise HypervisorError(f"the guest of this console is {state}")

    def _watch(self, uuid: str, console: ConsoleHub) -> PanicWatch:
        def tell(words: str) -> None:
            self._panics.put(MachineEvent(uuid, "crashed", words))

        return PanicWatch(console, tell)

    def panics(self) -> AsyncIterator[MachineEvent]:
        """Yield panics of guests' kernels that their consoles tell of. One consumer."""
        return self._panics.iterate()

    def panic(self, record: VmRecord) -> str | None:
        """Return with what words a guest's kernel panicked; None when it was not seen to."""
        session = self._sessions.get(record.uuid)
        return session.panics.panic if session is not None and session.panics else None

    async def answers(self, record: VmRecord) -> bool:
        """Whether a guest's agent answers now; False where none is expected."""
        if not self.expects_agent(record):
            return False
        try:
            await (await self.agent(record)).sync(_DOUBTFUL_LIMIT)
        except GuestError:
            return False
        return True

    async def _open_agent(self, session: Session) -> AgentConnection | None:
        hypervisor = self._parts.hypervisor
        async with session.opening:
            if session.agent is not None and not session.agent.closed:
                return session.agent
            if not isinstance(hypervisor, HasAgentChannel):
                return None
            with contextlib.suppress(AgentUnavailable):
                stream = await hypervisor.open_agent(session.record.uuid)
                session.agent = AgentConnection(stream.reader, stream.writer, slow=stream.slow)
            return session.agent

    async def disconnect(self, uuid: str) -> None:
        """Let go of a guest; nothing happens when it is not connected."""
        session = self._sessions.pop(uuid, None)
        if session is None:
            return
        await _end(session.reopening)
        async with session.opening:
            if session.agent is not None:
                await session.agent.close()
            await _close_console(session)

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

    def expects_agent(self, record: VmRecord) -> bool:
        """Whether an agent is known to be in the image of a guest."""
        image = self._parts.images.get(record.image_id or "")
        return image is None or image.agent

    async def answering_agent(self, record: VmRecord) -> AgentConnection:
        """Return an agent for a user's request. Raises Conflict for a VM that cannot answer now.

        Where the image is not known to have one it must answer first: AgentUnavailable says soon
        what is missing.
        """
        if (verb := _WAKES.get(record.state)) is not None:
            name = record.spec.name
            raise Conflict(
                f"{name} is {record.state}: nothing in it can answer",
                hint=f"'hanok {verb} {name}' first",
            )
        agent = await self.agent(record)
        if self.expects_agent(record):
            return agent
        try:
            await agent.sync(_DOUBTFUL_LIMIT)
        except AgentUnavailable:
            name = record.spec.name
            raise AgentUnavailable(
                f"no guest agent answers in {name}: {record.spec.image} was imported without one",
                hint=f"install and start qemu-guest-agent in it ('hanok console {name}' leads"
                " there), or use SSH; an image with an agent is imported with --agent",
            ) from None
        return agent

    async def set_clock(self, record: VmRecord) -> None:
        """Set the guest's clock, which stood still while its vCPUs did; as far as it lets us."""
        if not self.expects_agent(record):
            return
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

    async def open_console(self, record: VmRecord) -> ConsoleHub:
        """Return the console, opened again where it has ended while the guest went on.

        Raises Conflict when the guest does not run, HypervisorError when there is no console.
        """
        session = self._sessions.get(record.uuid)
        if session is not None:
            await self._open_console(session)
        return self.console(record)

    def tail(self, record: VmRecord, lines: int) -> bytes:
        """Return the last lines that the console showed, also of a guest that does not run."""
        return tail_log(files_of(self._parts.settings, record.uuid).console_log, lines)

    def said(self, record: VmRecord, place: int) -> tuple[bytes, int]:
        """Return what the console has said since ``place`` (0: the start), and the place after it.

        Of a guest that ran before this daemon the log is the start.
        """
        session = self._sessions.get(record.uuid)
        if session is None or session.console is None:
            return b"", place
        ring = session.console.ring
        before = self.tail(record, _LOG_LINES) if place == 0 and session.adopted else b""
        start = max(place, ring.start) if place <= ring.end else ring.start  # a new one
        return before + ring.after(start, ring.end - start), ring.end

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
        self._panics.close()
        for uuid in list(self._sessions):
            with contextlib.suppress(HanokError):
                await self.disconnect(uuid)


async def _end(task: asyncio.Task[object] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


async def _close_console(session: Session) -> None:
    if session.panics is not None:
        await session.panics.close()
    if session.console is not None:
        await session.console.close()


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

    def said(self, place: int) -> tuple[bytes, int]:
        """Return what the console has said since ``place``, and the place after it."""
        return self.guests.said(self.record, place)

    def panic(self) -> str | None:
        """Return with what words the guest's kernel panicked."""
        return self.guests.panic(self.record)

    async def alive(self) -> bool:
        """Return whether the machine still runs."""
        state = await self.parts.hypervisor.state(self.record.uuid)
        return state in RUNS
