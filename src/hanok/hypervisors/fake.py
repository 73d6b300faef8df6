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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hanok.errors import AgentUnavailable, HypervisorError, Unsupported
from hanok.hypervisors.base import (
    WATCHDOG_EXPIRED,
    Disk,
    Frozen,
    Machine,
    MachineEvent,
    Nic,
    RunState,
    Statistics,
)
from hanok.hypervisors.events import EventQueue
from hanok.hypervisors.fake_faults import FakeFaults as FakeFaults
from hanok.hypervisors.fake_faults import Fault as Fault
from hanok.hypervisors.fake_guest import FakeGuest
from hanok.hypervisors.fake_screen import GREETING, PICTURE, repeat
from hanok.hypervisors.optional import NotLive, Stream, Viewer
from hanok.model.host import HypervisorFacts
from hanok.model.keeping import WatchdogAction
from hanok.model.network import Plug
from hanok.model.vm import Mode
from hanok.units import MIB

_OVERHEAD = 32 * MIB
_MODES = (Mode.FULL, Mode.PARA)
_STREAM_LIMIT = 64 * MIB
_MOST_CPUS = 8
_LONGEST_STATE = 64 * 1024


class _Kept(BaseModel):
    """What the file holds of a machine; ``ran`` is in seconds, ``since`` by the epoch."""

    name: str
    cpus: int
    memory: int
    mode: Mode
    agent: bool
    watchdog: WatchdogAction | None = None
    screen: bool = False
    state: RunState = RunState.RUNNING
    detail: str = ""
    started_with: int = 0
    devices: dict[int, str] = Field(default_factory=dict, description="by hot-plug port")
    disk: int = 0
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
    hotplug_ports: ClassVar[int] = 8

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

    async def start(self, machine: Machine, taps: tuple[Plug, ...] = ()) -> None:
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
                watchdog=machine.watchdog,
                screen=machine.screen,
                state=RunState.RUNNING if frozen is None else RunState.PAUSED,
                since=time.time(),
                started_with=machine.memory,
                devices=_plugged(machine),
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

        async def die() -> None:
            self._end(uuid, "crashed", "the hypervisor ended by itself")

        kept = self._machines[uuid]
        mode = self.faults.shown_mode or kept.mode
        guest = FakeGuest(kept.name, mode, shut_down, die, refusal=lambda: self.faults.identity)
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

    def watchdog_actions(self) -> Collection[WatchdogAction]:
        """See HasWatchdog.watchdog_actions."""
        return (WatchdogAction.RESET, WatchdogAction.STOP)

    async def screenshot(self, uuid: str) -> bytes:
        """See HasScreen.screenshot."""
        await self._hit("screenshot")
        self._check_screen(uuid)
        return PICTURE

    async def admit_viewers(self, uuid: str, password: str, seconds: int) -> None:
        """See HasScreen.admit_viewers; the fake asks nobody for it."""
        await self._hit("admit_viewers")
        self._check_screen(uuid)

    async def open_screen(self, uuid: str) -> Viewer:
        """See HasScreen.open_screen: it says what was said to it."""
        await self._hit("open_screen")
        self._check_screen(uuid)
        return Viewer(GREETING, await self._connect(uuid, repeat))

    def _check_screen(self, uuid: str) -> None:
        if not self._kept(uuid).screen:
            raise HypervisorError("this machine has no screen")

    # --- changes while it runs --------------------------------------------------------------

    async def set_cpus(self, uuid: str, cpus: int) -> None:
        """See CanResize.set_cpus: up to eight."""
        await self._hit("set_cpus")
        if cpus > _MOST_CPUS:
            raise NotLive(f"it was started with room for {_MOST_CPUS} vCPUs; restart it")
        self._kept(uuid).cpus = cpus
        self._save()

    async def set_memory(self, uuid: str, memory: int, started: int) -> None:
        """See CanResize.set_memory."""
        await self._hit("set_memory")
        kept = self._kept(uuid)
        kept.memory = min(memory, kept.started_with)
        self._save()
        if memory > kept.started_with:
            raise NotLive("it was started with less memory; restart it")

    async def grow_disk(self, uuid: str, size: int) -> None:
        """See CanResize.grow_disk."""
        await self._hit("grow_disk")
        self._kept(uuid).disk = size
        self._save()

    async def attach_disk(self, uuid: str, disk: Disk) -> None:
        """See CanHotplug.attach_disk."""
        await self._hit("attach_disk")
        if not disk.path.exists():
            raise HypervisorError(f"the disk {disk.path} does not exist")
        self._plug(uuid, disk.port, disk.name)

    async def detach_disk(self, uuid: str, disk: Disk) -> None:
        """See CanHotplug.detach_disk."""
        await self._hit("detach_disk")
        self._unplug(uuid, disk.port)

    async def attach_nic(self, uuid: str, nic: Nic, tap: int) -> None:
        """See CanHotplug.attach_nic."""
        await self._hit("attach_nic")
        self._plug(uuid, nic.port, nic.mac)

    async def detach_nic(self, uuid: str, nic: Nic) -> None:
        """See CanHotplug.detach_nic."""
        await self._hit("detach_nic")
        self._unplug(uuid, nic.port)

    def _plug(self, uuid: str, port: int | None, what: str) -> None:
        kept = self._port(uuid, port)
        if port is not None and kept.devices.setdefault(port, what) != what:
            raise HypervisorError(f"port {port} is taken by {kept.devices[port]}")
        self._save()

    def _unplug(self, uuid: str, port: int | None) -> None:
        self._port(uuid, port).devices.pop(-1 if port is None else port, None)
        self._save()

    def _port(self, uuid: str, port: int | None) -> _Kept:
        kept = self._kept(uuid)
        if port is None or kept.mode is not Mode.PARA:
            raise NotLive("this is plugged in at the start only; restart it")
        return kept

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
        taps: tuple[Plug, ...],
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

    def starve(self, uuid: str, detail: str = "write on disk0: no space left") -> None:
        """Let the machine meet a full file system of the host: it is paused, as QEMU's are."""
        kept = self._kept(uuid)
        kept.ran, kept.state = _seconds_run(kept), RunState.PAUSED
        self._save()
        self._tell(uuid, "io-error", detail)

    def vanish(self, uuid: str, detail: str = "the hypervisor ended by itself") -> None:
        """Let the machine's process die."""
        self._kept(uuid)
        self._end(uuid, "crashed", detail)

    def hang(self, uuid: str) -> None:
        """Let the guest feed its watchdog no more, until that has expired."""
        match self._kept(uuid).watchdog:
            case WatchdogAction.RESET:
                self._tell(uuid, "watchdog", WATCHDOG_EXPIRED)
            case WatchdogAction.STOP:
                self.crash(uuid, WATCHDOG_EXPIRED)

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


def _plugged(machine: Machine) -> dict[int, str]:
    found = {disk.port: disk.name for disk in machine.disks if disk.port is not None}
    return found | {nic.port: nic.mac for nic in machine.nics if nic.port is not None}


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
