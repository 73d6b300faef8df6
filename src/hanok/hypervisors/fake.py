"""A hypervisor in memory: a real driver of machines that do not exist, with fault injection.

It lets the whole daemon run without QEMU. Its machines are in a file, so that they outlive the
daemon as real ones do; each has a console and a guest agent (see ``fake_guest.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hanok.errors import AgentUnavailable, HypervisorError, Unsupported
from hanok.hypervisors.base import Frozen, Machine, MachineEvent, RunState, Statistics
from hanok.hypervisors.events import EventQueue
from hanok.hypervisors.fake_guest import FakeGuest
from hanok.hypervisors.optional import Stream
from hanok.model.host import HypervisorFacts
from hanok.model.vm import Mode
from hanok.units import MIB

_OVERHEAD = 32 * MIB
_MODES = (Mode.FULL, Mode.PARA)
_STREAM_LIMIT = 64 * MIB
_LONGEST_STATE = 64 * 1024


class Fault(BaseModel):
    """What happens to a method: first a delay in seconds, then an error, at most ``times`` times.

    Without ``error`` the method goes on after the delay; ``times`` None means always.
    """

    error: str | None = None
    delay: float = 0.0
    times: int | None = None


class FakeFaults(BaseModel):
    """What goes wrong, by the name of the method of the contract (``start``, ``kill``, ...).

    Tests may change it at any time. A daemon in another process is reached by the file
    ``faults.json`` in the fake's folder, which has these fields too and replaces them.
    """

    methods: dict[str, Fault] = Field(default_factory=dict)
    ignore_power_button: bool = False
    silent_agent: bool = False
    fingerprint: str = "fake 1"
    identity: str | None = Field(default=None, description="why guests take no identity")
    shown_mode: Mode | None = Field(default=None, description="what guests show, whatever they run")

    def fail(self, method: str, error: str, *, times: int | None = None, delay: float = 0) -> None:
        """Let ``method`` raise HypervisorError with the text ``error``."""
        self.methods[method] = Fault(error=error, delay=delay, times=times)

    def delay(self, method: str, seconds: float, *, times: int | None = None) -> None:
        """Let ``method`` take ``seconds`` longer."""
        self.methods[method] = Fault(delay=seconds, times=times)

    async def hit(self, method: str) -> None:
        """Do what is to happen to ``method`` now. Raises HypervisorError."""
        fault = self.methods.get(method)
        if fault is None or fault.times == 0:
            return
        if fault.times is not None:
            fault.times -= 1
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.error is not None:
            raise HypervisorError(fault.error, hint="this fault was injected")


class _Kept(BaseModel):
    """What the file holds of a machine; ``ran`` is in seconds, ``since`` by the epoch."""

    name: str
    cpus: int
    memory: int
    mode: Mode
    agent: bool
    state: RunState = RunState.RUNNING
    detail: str = ""
    ran: float = 0.0
    since: float = 0.0


_File = TypeAdapter(dict[str, _Kept])


class _FrozenMemory(BaseModel):
    """What the fake writes as a guest's memory."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    name: str
    files: dict[str, bytes]
    digest: str = Field(default="", description="sha256 of the rest; the state's is the same")


class _FrozenState(BaseModel):
    """What the fake writes as the state of the devices; ``memory`` is in bytes."""

    cpus: int
    memory: int
    digest: str


class _Live:
    """A machine that this driver has started or adopted."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.gone = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()


class FakeHypervisor:
    """Machines in the file ``machines.json`` of ``folder``; ``faults`` says what goes wrong."""

    name: ClassVar[str] = "fake"

    def __init__(self, folder: Path, faults: FakeFaults | None = None) -> None:
        self._folder = folder
        self.faults = faults if faults is not None else FakeFaults()
        self._faults_seen = 0
        self._machines: dict[str, _Kept] = {}
        self._live: dict[str, _Live] = {}
        self._events = EventQueue()

    # --- its file ---------------------------------------------------------------------------

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._machines = _File.validate_json((self._folder / "machines.json").read_bytes())

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / "machines.new"
        draft.write_bytes(_File.dump_json(self._machines, indent=1))
        draft.replace(self._folder / "machines.json")

    async def _hit(self, method: str) -> None:
        path = self._folder / "faults.json"
        with contextlib.suppress(FileNotFoundError, ValidationError):
            changed = path.stat().st_mtime_ns
            if changed != self._faults_seen:
                self.faults = FakeFaults.model_validate_json(path.read_bytes())
                self._faults_seen = changed
        await self.faults.hit(method)

    # --- the contract -----------------------------------------------------------------------

    async def probe(self) -> HypervisorFacts:
        """See Hypervisor.probe."""
        await self._hit("probe")
        return HypervisorFacts(
            name=self.name,
            version="1",
            accelerator="fake",
            type=2,
            isolation="none",
            modes=tuple(str(mode) for mode in _MODES),
            machine_type="fake-1",
            reason="no guest runs: this hypervisor is for tests",
        )

    def choose_mode(self, mode: Mode) -> Mode:
        """See Hypervisor.choose_mode."""
        if mode is Mode.AUTO:
            return Mode.PARA
        if mode not in _MODES:
            raise Unsupported(
                f"the fake hypervisor offers no mode {mode}",
                field="mode",
                expected="full or para",
            )
        return mode

    def overhead(self, cpus: int, memory: int, tcg_buffer: int | None) -> int:
        """See Hypervisor.overhead."""
        return _OVERHEAD + (tcg_buffer or 0)

    async def start(self, machine: Machine, taps: tuple[int, ...] = ()) -> None:
        """See Hypervisor.start."""
        await self._hit("start")
        self._load()
        frozen: _FrozenMemory | None = None
        if machine.uuid not in self._machines:
            _check_disks(machine)
            if machine.frozen is not None:
                frozen = _read_frozen(machine, machine.frozen)
            self._machines[machine.uuid] = _Kept(
                name=machine.name,
                cpus=machine.cpus,
                memory=machine.memory,
                mode=machine.mode,
                agent=machine.agent,
                state=RunState.RUNNING if frozen is None else RunState.PAUSED,
                since=time.time(),
            )
            self._save()
        self._attach(machine.uuid)
        if frozen is not None:
            guest = self._live[machine.uuid].guest
            guest.name, guest.files = frozen.name, dict(frozen.files)

    async def adopt(self, machine: Machine) -> RunState:
        """See Hypervisor.adopt."""
        await self._hit("adopt")
        self._load()
        kept = self._machines.get(machine.uuid)
        if kept is None:
            return RunState.ABSENT
        self._attach(machine.uuid)
        return kept.state

    def _attach(self, uuid: str) -> None:
        if uuid in self._live:
            return

        async def shut_down() -> None:
            self._end(uuid, "stopped", "guest-shutdown")

        kept = self._machines[uuid]
        mode = self.faults.shown_mode or kept.mode
        guest = FakeGuest(kept.name, mode, shut_down, refusal=lambda: self.faults.identity)
        self._live[uuid] = _Live(guest)

    async def ask_stop(self, uuid: str) -> None:
        """See Hypervisor.ask_stop; a paused guest reacts once it is resumed, a crashed one not."""
        await self._hit("ask_stop")
        kept = self._kept(uuid)
        if self.faults.ignore_power_button or kept.state is RunState.CRASHED:
            return
        if kept.state is RunState.PAUSED:
            kept.detail = "power-button"
            return
        self._end(uuid, "stopped", "guest-shutdown")

    async def kill(self, uuid: str) -> None:
        """See Hypervisor.kill."""
        await self._hit("kill")
        if uuid in self._live:
            self._end(uuid, "stopped", "killed")

    async def pause(self, uuid: str) -> None:
        """See Hypervisor.pause."""
        await self._hit("pause")
        kept = self._kept(uuid)
        if kept.state is RunState.RUNNING:
            kept.ran, kept.state = _seconds_run(kept), RunState.PAUSED
            self._save()
            self._tell(uuid, "paused")

    async def resume(self, uuid: str) -> None:
        """See Hypervisor.resume. Raises HypervisorError for a crashed guest."""
        await self._hit("resume")
        kept = self._kept(uuid)
        if kept.state is RunState.CRASHED:
            raise HypervisorError(f"{kept.name} has crashed and cannot go on")
        if kept.state is RunState.PAUSED:
            kept.since, kept.state = time.time(), RunState.RUNNING
            self._save()
            self._tell(uuid, "resumed")
            if kept.detail == "power-button":
                self._end(uuid, "stopped", "guest-shutdown")

    async def state(self, uuid: str) -> RunState:
        """See Hypervisor.state."""
        await self._hit("state")
        return self._machines[uuid].state if uuid in self._live else RunState.ABSENT

    async def explain(self, uuid: str) -> str:
        """See CanExplain.explain."""
        return self._machines[uuid].detail if uuid in self._live else ""

    async def wait_stopped(self, uuid: str, timeout: float) -> bool:
        """See Hypervisor.wait_stopped."""
        await self._hit("wait_stopped")
        live = self._live.get(uuid)
        if live is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await live.gone.wait()
        return live.gone.is_set()

    def events(self) -> AsyncIterator[MachineEvent]:
        """See Hypervisor.events."""
        return self._events.iterate()

    async def statistics(self, uuid: str) -> Statistics:
        """See Hypervisor.statistics: a fake CPU is always busy, all fake memory is resident."""
        await self._hit("statistics")
        kept = self._kept(uuid)
        size = kept.memory + _OVERHEAD
        return Statistics(cpu_seconds=_seconds_run(kept), resident=size, proportional=size)

    async def close(self) -> None:
        """See Hypervisor.close."""
        live = list(self._live.values())
        self._live.clear()
        self._events.close()
        tasks = [task for machine in live for task in machine.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def open_console(self, uuid: str) -> Stream:
        """See HasConsole.open_console."""
        await self._hit("open_console")
        self._kept(uuid)
        return await self._connect(uuid, self._live[uuid].guest.serve_console)

    async def open_agent(self, uuid: str) -> Stream:
        """See HasAgentChannel.open_agent."""
        await self._hit("open_agent")
        if not self._kept(uuid).agent:
            raise AgentUnavailable("this machine has no channel for a guest agent")
        serve = _stay_silent if self.faults.silent_agent else self._live[uuid].guest.serve_agent
        return await self._connect(uuid, serve)

    # --- freezing ---------------------------------------------------------------------------

    def freeze_obstacle(self, machine: Machine) -> str | None:
        """See CanFreeze.freeze_obstacle: as of QEMU."""
        if machine.mode is not Mode.PARA:
            return f"it runs in mode {machine.mode}, and clones need mode para"
        return None if machine.agent else "it has no channel for a guest agent"

    async def fingerprint(self) -> str:
        """See CanFreeze.fingerprint."""
        await self._hit("fingerprint")
        return self.faults.fingerprint

    async def freeze(
        self,
        uuid: str,
        loader: Machine,
        taps: tuple[int, ...],
        memory: int,
        state: int,
        while_paused: Callable[[], Awaitable[None]],
    ) -> None:
        """See CanFreeze.freeze: what is frozen is the guest's name and files."""
        kept = self._kept(uuid)
        if (obstacle := self.freeze_obstacle(loader)) is not None:
            raise HypervisorError(f"{loader.name} cannot be frozen: {obstacle}")
        _check_disks(loader)
        before = kept.state
        if before is RunState.CRASHED:
            raise HypervisorError(f"{kept.name} has crashed and cannot be frozen")
        kept.state = RunState.PAUSED
        try:
            await while_paused()
            await self._hit("freeze")
            _write_frozen(kept, self._live_guest(uuid, kept), memory, state)
        finally:
            kept.state = before

    @contextlib.asynccontextmanager
    async def identity_port(self, uuid: str) -> AsyncIterator[Stream]:
        """See CanFreeze.identity_port."""
        await self._hit("identity_port")
        self._kept(uuid)
        port = await self._connect(uuid, self._live[uuid].guest.serve_identity)
        try:
            yield port
        finally:
            port.writer.close()

    def _live_guest(self, uuid: str, kept: _Kept) -> FakeGuest:
        """Return the guest that ran before and must run still."""
        if uuid not in self._live or self._machines.get(uuid) is not kept:
            raise HypervisorError(f"{kept.name} ended meanwhile")
        return self._live[uuid].guest

    # --- for tests --------------------------------------------------------------------------

    def crash(self, uuid: str, detail: str = "the guest's kernel panicked") -> None:
        """Let the guest panic: the machine is there, and crashed."""
        kept = self._kept(uuid)
        kept.ran, kept.state, kept.detail = _seconds_run(kept), RunState.CRASHED, detail
        self._save()
        self._tell(uuid, "crashed", detail)

    def vanish(self, uuid: str, detail: str = "the hypervisor ended by itself") -> None:
        """Let the machine's process die."""
        self._kept(uuid)
        self._end(uuid, "crashed", detail)

    # --- inside -----------------------------------------------------------------------------

    def _kept(self, uuid: str) -> _Kept:
        if uuid not in self._live:
            raise HypervisorError(f"no machine {uuid} runs here", hint="'hanok list' shows all")
        return self._machines[uuid]

    def _tell(self, uuid: str, name: str, detail: str = "") -> None:
        self._events.put(MachineEvent(uuid, name, detail))

    def _end(self, uuid: str, event: str, detail: str) -> None:
        live = self._live.pop(uuid, None)
        self._machines.pop(uuid, None)
        self._save()
        if live is not None:
            live.gone.set()
            for task in live.tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            self._tell(uuid, event, detail)

    async def _connect(
        self,
        uuid: str,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> Stream:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs, limit=_STREAM_LIMIT)

        async def run() -> None:
            with contextlib.suppress(OSError):
                await serve(reader, writer)

        live = self._live[uuid]
        task = asyncio.create_task(run(), name=f"fake-stream-{uuid}")
        live.tasks.add(task)
        task.add_done_callback(live.tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # even when it never began
        return Stream(*await asyncio.open_unix_connection(sock=ours))


async def _stay_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass


def _check_disks(machine: Machine) -> None:
    for disk in machine.disks:
        if not disk.path.exists():
            raise HypervisorError(f"the disk {disk.path} does not exist")


def _write_frozen(kept: _Kept, guest: FakeGuest, memory: int, state: int) -> None:
    content = _FrozenMemory(name=guest.name, files=guest.files)
    content.digest = hashlib.sha256(content.model_dump_json().encode()).hexdigest()
    os.pwrite(memory, content.model_dump_json().encode() + b"\0", 0)
    devices = _FrozenState(cpus=kept.cpus, memory=kept.memory, digest=content.digest)
    os.pwrite(state, devices.model_dump_json().encode(), 0)


def _read_frozen(machine: Machine, frozen: Frozen) -> _FrozenMemory:
    """Return what was frozen. Raises HypervisorError when it is not whole or of another shape."""
    try:
        text = os.pread(frozen.memory, machine.memory, 0).partition(b"\0")[0]
        content = _FrozenMemory.model_validate_json(text)
        devices = _FrozenState.model_validate_json(os.pread(frozen.state, _LONGEST_STATE, 0))
    except (OSError, ValidationError) as error:
        raise HypervisorError(f"{machine.name} cannot go on from what was frozen") from error
    if (devices.cpus, devices.memory) != (machine.cpus, machine.memory):
        raise HypervisorError(f"{machine.name} has another shape than what was frozen")
    if devices.digest != content.digest:
        raise HypervisorError("the frozen memory and the frozen devices do not belong together")
    return content


def _seconds_run(kept: _Kept) -> float:
    running = time.time() - kept.since if kept.state is RunState.RUNNING else 0.0
    return kept.ran + running
