"""One QEMU process: started or found again, watched, asked and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import psutil
from qemu.qmp import QMPError
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from hanok import shortage
from hanok.errors import AgentUnavailable, HypervisorError, TimedOut
from hanok.hypervisors.base import (
    WATCHDOG_EXPIRED,
    Machine,
    MachineEvent,
    RunState,
    Statistics,
)
from hanok.hypervisors.finish import to_its_end
from hanok.hypervisors.optional import Stream
from hanok.hypervisors.qemu.argv import (
    AGENT_SOCKET,
    CONSOLE_SOCKET,
    IDENTITY_SOCKET,
    LOG_FILE,
    QMP_SOCKET,
)
from hanok.hypervisors.qemu.folder import remove_files
from hanok.hypervisors.qemu.log import keep_log, last_words, trim_log
from hanok.hypervisors.qemu.migration import Migration
from hanok.hypervisors.qemu.qmp import EXECUTE_LIMIT, QmpConnection, connect_to
from hanok.hypervisors.qemu.screen import Screen
from hanok.proc import wait_for_exit

Notify = Callable[[MachineEvent], None]
Gone = Callable[["QemuProcess"], None]
_Result = TypeVar("_Result")

_ANSWER_LIMIT = 20.0
_CONNECT_LIMIT = 5.0
_LOAD_LIMIT = 2.0
_KILL_LIMIT = 10.0
_POLL = 0.01
_SHORT_POLL = 0.002
_NOWHERE = {"type": "file", "data": {"out": "/dev/null"}}

# QMP's RunState (qapi/run-state.json) to ours. What is not here runs.
_STATES = {
    "paused": RunState.PAUSED,
    "prelaunch": RunState.PAUSED,
    "inmigrate": RunState.PAUSED,
    "postmigrate": RunState.PAUSED,
    "finish-migrate": RunState.PAUSED,
    "save-vm": RunState.PAUSED,
    "restore-vm": RunState.PAUSED,
    "debug": RunState.PAUSED,
    "io-error": RunState.PAUSED,
    "guest-panicked": RunState.CRASHED,
    "internal-error": RunState.CRASHED,
    "shutdown": RunState.CRASHED,
    "watchdog": RunState.CRASHED,
}
_REASONS = {
    "io-error": "a disk of the host is full or failing; 'hanok resume' goes on",
    "guest-panicked": "the guest's kernel panicked",
    "internal-error": "the hypervisor could not go on (internal error)",
    "watchdog": WATCHDOG_EXPIRED,
}


# What the kernel calls the process: the first letters of its program's name.
COMMAND = "qemu"


def ended_by(status: int | None) -> str:
    """Return by what signal a process has ended; empty when by none, or that is not known."""
    if status is None or status >= 0:
        return ""
    return f"signal {-status} ({signal.Signals(-status).name}) ended it"


class QemuProcess:
    """A live QEMU process. Made by ``start_process``, or of a pid that was found again.

    ``exited`` is set once the process and its sockets are gone. ``notify`` gets what happens.
    ``log`` is its bounded log, of which it keeps a copy.
    """

    def __init__(self, machine: Machine, pid: int, log: int | None = None) -> None:
        self._log = os.dup(log) if log is not None else None
        self.uuid = machine.uuid
        self.pid = pid
        self.exited = asyncio.Event()
        self._name = machine.name
        self._folder = machine.folder
        self.screen = Screen(self, machine)
        self._agent = machine.agent
        # Taken before the process can be reaped: a signal never hits a stranger with its pid.
        self._pidfd = os.pidfd_open(pid)
        self._qmp = QmpConnection(machine.folder / QMP_SOCKET, pid, self._on_event)
        self.migration = Migration(self)
        # Who stops or lets go the vCPUs: one at a time.
        self._clock = asyncio.Lock()
        self.freezing = asyncio.Lock()
        self._held = False
        self._kept_agent: Stream | None = None
        self._kept_identity: Stream | None = None
        self._notify: Notify | None = None
        self._gone: Gone | None = None
        self._killed = False
        self._panicked = False
        self._stopped = False
        self._shutdown: str | None = None
        self._io_error = ""
        self._explaining: asyncio.Task[None] | None = None
        self._mark = shortage.mark()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{machine.name}")

    def tell(self, notify: Notify, gone: Gone) -> None:
        """From now on hand events to ``notify``, and call ``gone`` once the process has ended."""
        self._notify = notify
        self._gone = gone

    # --- connection -------------------------------------------------------------------------

    async def wait_until_answering(self, limit: float = _ANSWER_LIMIT) -> None:
        """Wait until QMP answers and says that this is the machine.

        Raises HypervisorError with QEMU's last words when it ends first.
        """
        await self.or_its_end(self._connect(limit))

    async def or_its_end(self, work: Awaitable[_Result]) -> _Result:
        """Return what ``work`` does, or raise HypervisorError once the process has ended."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.exited.wait())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self.exited.is_set():
                raise self._ended()
            try:
                return await working
            except HypervisorError:
                if await self._ends_soon():
                    raise self._ended() from None
                raise
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    def _ended(self) -> HypervisorError:
        if self._killed:
            return HypervisorError(f"{self._name} was killed meanwhile")
        return HypervisorError(
            f"QEMU of {self._name} ended: {self._last_words()}",
            hint=f"its whole output is in {self._folder / LOG_FILE}",
        )

    async def _connect(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                async for attempt in AsyncRetrying(
                    wait=wait_fixed(_POLL),
                    retry=retry_if_exception_type((OSError, QMPError, EOFError)),
                ):
                    with attempt:
                        await self._qmp.connect()
        except TimeoutError:
            raise HypervisorError(
                f"QEMU of {self._name} did not answer within {limit:g} s",
                hint=f"see {self._folder / LOG_FILE}; 'hanok stop --force' ends it",
            ) from None
        await self._check_identity()

    async def _check_identity(self) -> None:
        answer, status = await asyncio.gather(self._qmp.execute("query-uuid"), self.status())
        found = str(answer.get("UUID")) if isinstance(answer, Mapping) else ""
        if found.lower() != self.uuid.lower():
            raise HypervisorError(f"the process {self.pid} runs machine {found}, not {self.uuid}")
        self._stopped = status != "running"

    # --- what can be asked ------------------------------------------------------------------

    async def status(self) -> str:
        """Return QMP's word for the state. Raises HypervisorError."""
        answer = await self._qmp.execute("query-status")
        return str(answer.get("status")) if isinstance(answer, Mapping) else ""

    async def state(self) -> RunState:
        """Return the machine's state; ABSENT when the process has ended meanwhile."""
        if self.exited.is_set():
            return RunState.ABSENT
        try:
            status = await self.status()
        except HypervisorError:
            if await self._ends_soon():
                return RunState.ABSENT
            raise
        return _STATES.get(status, RunState.RUNNING)

    async def explain(self) -> str:
        """Return why the machine is paused or crashed; empty when there is nothing to say."""
        return "" if self.exited.is_set() else _REASONS.get(await self.status(), "")

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float = EXECUTE_LIMIT,
    ) -> object:
        """Return what a QMP command answers. Raises HypervisorError."""
        return await self._qmp.execute(command, arguments, timeout=timeout)

    async def execute_with(
        self, descriptor: int, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Return what a QMP command answers that takes a descriptor. Raises HypervisorError."""
        return await self._qmp.execute_with(descriptor, command, arguments)

    async def tell_monitor(self, line: str) -> str:
        """Return what QEMU's human monitor says to a command. Raises HypervisorError."""
        said = await self._qmp.execute("human-monitor-command", {"command-line": line})
        return said if isinstance(said, str) else ""

    async def give(self, name: str, descriptor: int) -> None:
        """Hand a descriptor to QEMU under a name. Raises HypervisorError."""
        await self._qmp.give(name, descriptor)

    async def is_loaded(self) -> bool:
        """Whether there is a machine in it: not when whoever was to load it is gone.

        Waits for a load that goes on. Raises HypervisorError.
        """
        waiting = AsyncRetrying(
            stop=stop_after_delay(_LOAD_LIMIT),
            wait=wait_fixed(_POLL),
            retry=retry_if_result(lambda status: status == "inmigrate"),
            retry_error_callback=lambda _: "inmigrate",
        )
        return await waiting(self.status) != "inmigrate"

    # --- its vCPUs --------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop the vCPUs. Raises HypervisorError."""
        async with self._clock:
            await self.execute("stop")

    async def resume(self) -> None:
        """Let the vCPUs go on. Raises HypervisorError for a guest that has crashed."""
        async with self._clock:
            if await self.state() is RunState.CRASHED:
                why = await self.explain() or "the guest crashed"
                raise HypervisorError(f"it cannot go on: {why}", hint="restart it")
            await self.execute("cont")

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the vCPUs for a while, disks flushed; nobody is told.

        Whatever happens, those that ran go on. Raises HypervisorError for a machine that neither
        runs nor is paused.
        """
        async with self._clock:
            before = await self.status()
            self._held = True
            try:
                if before == "running":
                    await self.execute("stop")
                await self._check_still()
                yield
            finally:
                await to_its_end(self._let_go(ran=before == "running"))

    async def _check_still(self) -> None:
        now = await self.status()
        if now not in ("paused", "postmigrate"):
            why = _REASONS.get(now, f"it is in state {now}")
            raise HypervisorError(f"{self._name} cannot be stopped for a moment: {why}")

    async def _let_go(self, *, ran: bool) -> None:
        """End what is still sent and let the vCPUs go on; a dead process needs neither."""
        try:
            await self.migration.end()
            if ran:
                await self.execute("cont")
        except HypervisorError as error:
            if not await self._ends_soon():
                self._stopped = True
                self._emit("paused", error.message)
        finally:
            self._held = False

    async def check_alive(self) -> None:
        """Raise HypervisorError with QEMU's last words when the process has ended or just does."""
        if await self._ends_soon():
            raise self._ended()

    async def _ends_soon(self) -> bool:
        """Whether the process is gone, or about to be: its socket closes before it ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.exited.wait()
        return self.exited.is_set()

    async def open_stream(self, socket_name: str) -> Stream:
        """Connect to one of the machine's byte streams. Raises HypervisorError."""
        try:
            async with asyncio.timeout(_CONNECT_LIMIT):
                connection = await connect_to(self._folder / socket_name, self.pid)
                reader, writer = await asyncio.open_unix_connection(sock=connection)
        except (OSError, TimeoutError) as error:
            raise HypervisorError(f"{socket_name} of {self._name} cannot be opened: {error}") from (
                error
            )
        return Stream(reader, writer)

    async def open_console(self) -> Stream:
        """Connect to the serial console. Raises HypervisorError."""
        return await self.open_stream(CONSOLE_SOCKET)

    async def open_agent(self) -> Stream:
        """Connect to the agent's channel. Raises AgentUnavailable."""
        if not self._agent:
            raise AgentUnavailable(
                f"{self._name} has no channel for a guest agent",
                hint="use its console, or SSH",
            )
        kept, self._kept_agent = self._kept_agent, None
        if kept is not None and not kept.reader.at_eof():
            return kept
        try:
            return await self.open_stream(AGENT_SOCKET)
        except HypervisorError as error:
            raise AgentUnavailable(error.message) from error

    async def keep_channels(self) -> None:
        """Connect to the agent's channel and the identity port now, for the next who opens them.

        Returns when the guest's ports count as open. Raises AgentUnavailable, HypervisorError.
        """
        self._kept_agent = await self.open_agent()
        self._kept_identity = await self.open_stream(IDENTITY_SOCKET)
        waiting = AsyncRetrying(
            stop=stop_after_delay(_CONNECT_LIMIT),
            wait=wait_fixed(_SHORT_POLL),
            retry=retry_if_result(lambda connected: not {"agent", "identity"} <= connected),
            retry_error_callback=lambda _: None,
        )
        if await waiting(self._connected) is None:
            raise AgentUnavailable(f"QEMU of {self._name} opens no channel to the guest")

    @contextlib.asynccontextmanager
    async def identity_port(self) -> AsyncIterator[Stream]:
        """Give the identity port of a machine that was started frozen; see CanFreeze."""
        stream, self._kept_identity = self._kept_identity, None
        if stream is None:
            raise HypervisorError(f"{self._name} was not started from frozen memory just now")
        try:
            yield stream
            await self.execute("chardev-change", {"id": "identity", "backend": _NOWHERE})
        finally:
            stream.writer.close()

    async def has_agent_client(self) -> bool:
        """Whether somebody is connected to the agent's channel. Raises HypervisorError."""
        return "agent" in await self._connected()

    async def _connected(self) -> set[str]:
        """Return the names of the streams at whose other end somebody is."""
        answer = await self.execute("query-chardev")
        return {
            str(device.get("label"))
            for device in (answer if isinstance(answer, list) else [])
            if not str(device.get("filename", "")).startswith("disconnected:")
        }

    def statistics(self) -> Statistics:
        """Return what the process uses (reads /proc: call it in a thread). Raises
        HypervisorError when it is gone."""
        trim_log(self._folder / LOG_FILE)
        try:
            process = psutil.Process(self.pid)
            times = process.cpu_times()
            try:
                memory = process.memory_full_info()
            except psutil.AccessDenied:
                return Statistics(times.user + times.system, process.memory_info().rss)
        except psutil.NoSuchProcess:
            raise HypervisorError(f"{self._name} does not run") from None
        return Statistics(times.user + times.system, memory.rss, memory.pss)

    # --- its end ----------------------------------------------------------------------------

    async def kill(self) -> None:
        """End the process; returns when it and its sockets are gone. Raises TimedOut."""
        self._killed = True
        if not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(_KILL_LIMIT):
                await self.exited.wait()
        except TimeoutError:
            raise TimedOut(
                f"QEMU of {self._name} (process {self.pid}) did not end within {_KILL_LIMIT:g} s "
                "of SIGKILL",
                hint="it waits for a disk or device of the host; see dmesg",
            ) from None

    async def release(self) -> None:
        """Let go of the process without ending it."""
        self._notify = self._gone = None
        for task in (self._watcher, self._explaining):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._drop_kept()
        self._keep_log()
        await self._qmp.close()
        self._close_pidfd()

    def _drop_kept(self) -> None:
        kept = (self._kept_agent, self._kept_identity)
        self._kept_agent = self._kept_identity = None
        for stream in kept:
            if stream is not None:
                stream.writer.close()

    def _keep_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            keep_log(log, self._folder / LOG_FILE)
            os.close(log)

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def _watch(self) -> None:
        status = await wait_for_exit(self.pid)
        await self._qmp.drain()
        await self._qmp.close()
        self._drop_kept()
        self._keep_log()
        remove_files(self._folder)
        self.exited.set()
        self._close_pidfd()
        if self._gone is not None:
            self._gone(self)
        self._obituary(await self._cause(status))

    async def _cause(self, status: int | None) -> str:
        """Return why the process has ended by itself, by its exit status and what the kernel says.

        The status of one that an earlier daemon has started is not known.
        """
        if self._killed or self._shutdown is not None:
            return ""
        if status not in (None, -signal.SIGKILL):
            return ended_by(status)
        why = await asyncio.to_thread(shortage.why_killed, self.pid, self._mark, COMMAND)
        return why or ended_by(status)

    def _obituary(self, cause: str) -> None:
        if self._killed:
            self._emit("stopped", "killed")
        elif self._shutdown is not None:
            self._emit("stopped", self._shutdown)
        else:
            words = f"{cause}; {self._last_words()}" if cause else self._last_words()
            self._emit("crashed", f"QEMU ended by itself: {words}")

    def _last_words(self) -> str:
        return last_words(self._folder / LOG_FILE)

    # --- events -----------------------------------------------------------------------------

    def _emit(self, name: str, detail: str = "") -> None:
        if self._notify is not None:
            self._notify(MachineEvent(self.uuid, name, detail))

    def _on_event(self, name: str, data: Mapping[str, object]) -> None:
        """Take one QMP event (qapi/run-state.json, qapi/block-core.json)."""
        match name:
            case "SHUTDOWN":
                self._shutdown = str(data.get("reason", "guest-shutdown"))
            case "GUEST_PANICKED":
                self._panicked = True
                self._emit("crashed", _REASONS["guest-panicked"])
            case "BLOCK_IO_ERROR":
                self._on_io_error(data)
            case "RESET":
                self._panicked = False
                self._emit("reset", str(data.get("reason", "")))
            case "WATCHDOG" if data.get("action") == "reset":
                self._emit("watchdog", WATCHDOG_EXPIRED)
            case "MIGRATION":
                self.migration.on_status(str(data.get("status", "")))
            case "STOP" | "RESUME" if self._held:
                pass
            case "STOP":
                self._stopped = True
                if self._explaining is None or self._explaining.done():
                    self._explaining = asyncio.create_task(self._explain_stop())
            case "RESUME" if self._stopped:
                self._stopped = self._panicked = False
                self._emit("resumed")

    def _on_io_error(self, data: Mapping[str, object]) -> None:
        cause = "no space left" if data.get("nospace") else str(data.get("reason", "I/O error"))
        detail = f"{data.get('operation', 'write')} on {data.get('device') or 'disk'}: {cause}"
        if data.get("action") == "stop":
            self._io_error = detail
        elif data.get("action") == "report":
            self._emit("io-error", f"{detail} (told to the guest)")

    async def _explain_stop(self) -> None:
        """Tell why the vCPUs stopped: QMP's STOP does not say."""
        with contextlib.suppress(HypervisorError):
            status = await self.status()
            if status == "paused":
                self._emit("paused")
            elif status == "io-error":
                self._emit("io-error", self._io_error or _REASONS["io-error"])
            elif status in ("internal-error", "watchdog"):
                self._emit("crashed", _REASONS[status])
