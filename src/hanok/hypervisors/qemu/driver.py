"""QEMU as a hypervisor: see ``hypervisors/base.py`` for the contract."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

from hanok.errors import HypervisorError, Unsupported
from hanok.hypervisors.base import Machine, MachineEvent, RunState, Statistics
from hanok.hypervisors.events import EventQueue
from hanok.hypervisors.optional import Stream
from hanok.hypervisors.qemu.arch import find_architecture
from hanok.hypervisors.qemu.argv import LOG_FILE, Platform, build_argv
from hanok.hypervisors.qemu.build import QemuBuild, read_build
from hanok.hypervisors.qemu.fingerprint import fingerprint
from hanok.hypervisors.qemu.folder import process_uid, read_pid_file, remove_files
from hanok.hypervisors.qemu.freeze import (
    LOADER_KIND,
    WhilePaused,
    drop_zeros,
    freeze_obstacle,
    freeze_process,
    load_frozen,
)
from hanok.hypervisors.qemu.overhead import overhead
from hanok.hypervisors.qemu.probe import (
    BOOT_LIMIT,
    AccelerationProbe,
    GuestProvider,
    account_with_kvm,
)
from hanok.hypervisors.qemu.process import QemuProcess, to_its_end
from hanok.hypervisors.qemu.spawn import OWNER_KIND, start_process
from hanok.model.host import HypervisorFacts
from hanok.model.vm import Mode
from hanok.proc import Account, Owner, Runner, find_owned, find_program, owner_of

_MODES = (Mode.FULL, Mode.PARA)
_NOBODY = 65534
_KVM = Path("/dev/kvm")
_ADOPT_LIMIT = 10.0


def _check_account(machine: Machine) -> None:
    if machine.account is None and os.geteuid() == 0:
        raise HypervisorError(
            f"{machine.name} has no account to run as, and QEMU never runs as root",
            hint="give the machine an unprivileged account",
        )


def _is_fresh(machine: Machine) -> bool:
    """Whether a clone's folder was never used to start anything: a log is there before a process.

    So that to start the 300th clone is not to look at 300 processes first.
    """
    return machine.frozen is not None and not (machine.folder / LOG_FILE).exists()


class QemuHypervisor:
    """Runs machines as QEMU processes, by KVM where that was seen to work, else by TCG.

    ``home`` is the data directory that marks its processes; ``cache`` the file that keeps what was
    measured. ``probe_account`` is who the measuring guest runs as when the daemon is root (by
    default nobody); ``kvm_limit`` the seconds that it may take to boot.
    """

    name: ClassVar[str] = "qemu"

    def __init__(
        self,
        runner: Runner,
        home: Path,
        probe_guest: GuestProvider,
        cache: Path,
        emulator: str = "qemu-system-x86_64",
        *,
        kvm_device: Path = _KVM,
        probe_account: Account | None = None,
        kvm_limit: float | None = None,
    ) -> None:
        self._runner = runner
        self._home = home
        self._emulator = emulator
        self._kvm_device = kvm_device
        if probe_account is None and os.geteuid() == 0:
            probe_account = Account(_NOBODY, _NOBODY)
        self._probe = AccelerationProbe(
            runner,
            emulator,
            probe_guest,
            cache,
            device=kvm_device,
            account=probe_account,
            boot_limit=kvm_limit or BOOT_LIMIT,
        )
        self._probing = asyncio.Lock()
        self._build: tuple[object, QemuBuild] | None = None
        self._facts: HypervisorFacts | None = None
        self._final = False
        self._processes: dict[str, QemuProcess] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._events = EventQueue()

    # --- what it can do ---------------------------------------------------------------------

    async def probe(self) -> HypervisorFacts:
        """See Hypervisor.probe; measuring KVM may take ``kvm_limit`` (10 s)."""
        async with self._probing:
            build = await self._current_build()
            if self._facts is not None and self._final:
                return self._facts
            verdict = await self._probe.decide(build, find_architecture())
            self._final = verdict.final
            self._facts = HypervisorFacts(
                name=self.name,
                version=build.version,
                accelerator=verdict.accelerator,
                type=2,
                isolation="kvm" if verdict.accelerator == "kvm" else "none",
                modes=tuple(str(mode) for mode in _MODES),
                machine_type=build.machine_type,
                reason=verdict.reason,
                measured=not verdict.pending,
            )
            return self._facts

    async def probe_again(self) -> HypervisorFacts:
        """See CanReprobe.probe_again."""
        async with self._probing:
            self._probe.forget()
            self._final = False
        return await self.probe()

    async def _current_build(self) -> QemuBuild:
        """Return what QEMU is, read again when its file has been replaced."""
        program = find_program(self._emulator)
        facts = Path(program).stat() if program is not None else None
        identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size) if facts is not None else None
        if self._build is None or self._build[0] != identity:
            self._build = (
                identity,
                await read_build(self._runner, self._emulator, find_architecture()),
            )
            self._final = False
        return self._build[1]

    def choose_mode(self, mode: Mode) -> Mode:
        """See Hypervisor.choose_mode: auto is para."""
        if mode is Mode.AUTO:
            return Mode.PARA
        if mode not in _MODES:
            raise Unsupported(
                f"QEMU offers no mode {mode}",
                field="mode",
                expected="full or para",
                hint="para is the faster one; full needs no drivers in the guest",
            )
        return mode

    def overhead(self, cpus: int, memory: int, tcg_buffer: int | None) -> int:
        """See Hypervisor.overhead; before the first probe it counts TCG, which takes more."""
        accelerator = self._facts.accelerator if self._facts is not None else "tcg"
        return overhead(find_architecture().overhead, accelerator, cpus, memory, tcg_buffer)

    # --- life -------------------------------------------------------------------------------

    async def start(self, machine: Machine, taps: tuple[int, ...] = ()) -> None:
        """See Hypervisor.start. Raises InvalidInput too, for what cannot be said to QEMU."""
        _check_account(machine)
        platform = await self._platform()
        async with self._locks[machine.uuid], contextlib.AsyncExitStack() as undo:
            frozen = machine.frozen
            if not _is_fresh(machine) and await self._find(machine) is not None:
                return
            passed = (*taps, frozen.memory, frozen.state) if frozen is not None else taps
            process = await start_process(
                self._runner,
                machine,
                build_argv(machine, platform, taps, self._emulator),
                home=self._home,
                account=self._account(machine, platform.accelerator),
                pass_fds=passed,
            )
            undo.push_async_callback(process.kill)
            if frozen is not None:
                await load_frozen(process, frozen)
            undo.pop_all()
            self._keep(process)

    async def _platform(self) -> Platform:
        facts = await self.probe()
        build = await self._current_build()
        return Platform(find_architecture(), facts.accelerator, build.machine_type, build.sandbox)

    def _account(self, machine: Machine, accelerator: str) -> Account | None:
        if machine.account is None or accelerator != "kvm":
            return machine.account
        return account_with_kvm(self._kvm_device, machine.account) or machine.account

    async def adopt(self, machine: Machine) -> RunState:
        """See Hypervisor.adopt. A process that does not answer is kept, so that it can be killed,
        and HypervisorError is raised."""
        async with self._locks[machine.uuid]:
            process = await self._find(machine)
        if process is None:
            remove_files(machine.folder)
            return RunState.ABSENT
        return await process.state()

    async def _find(self, machine: Machine) -> QemuProcess | None:
        """Return the live process of ``machine``, known or left by an earlier daemon.

        A clone whose daemon died before it was loaded will never be a machine: it is ended.
        """
        known = self._processes.get(machine.uuid)
        if known is not None and not known.exited.is_set():
            return known
        pid = await asyncio.to_thread(self._find_pid, machine)
        if pid is None:
            return None
        try:
            process = QemuProcess(machine, pid)
        except ProcessLookupError:
            return None
        self._keep(process)
        await process.wait_until_answering(_ADOPT_LIMIT)
        if await process.is_loaded():
            return process
        await process.kill()
        return None

    def _find_pid(self, machine: Machine) -> int | None:
        """Return the pid of the process that carries the machine's mark.

        The pid file names it quickly; without it all processes are looked at, since a machine
        must never run twice.
        """
        named = read_pid_file(machine.folder)
        if named is not None and self._is_ours(machine, named, owner_of(named)):
            return named
        for owned in find_owned(self._home, OWNER_KIND):
            if self._is_ours(machine, owned.pid, owned.owner):
                return owned.pid
        return None

    def _is_ours(self, machine: Machine, pid: int, owner: Owner | None) -> bool:
        """Whether the process runs ``machine``, as its account.

        A process can forge its own mark, but not its uid: with one uid a machine, an emulator
        that was taken over cannot pass for another machine.
        """
        if owner != Owner(str(self._home), OWNER_KIND, machine.uuid):
            return False
        return machine.account is None or process_uid(pid) == machine.account.uid

    def _keep(self, process: QemuProcess) -> None:
        self._processes[process.uuid] = process
        process.tell(self._events.put, self._drop)

    def _drop(self, process: QemuProcess) -> None:
        if self._processes.get(process.uuid) is process:
            del self._processes[process.uuid]

    def _running(self, uuid: str) -> QemuProcess:
        process = self._processes.get(uuid)
        if process is None:
            raise HypervisorError(f"no machine {uuid} runs here", hint="'hanok list' shows all")
        return process

    async def ask_stop(self, uuid: str) -> None:
        """See Hypervisor.ask_stop: presses the ACPI power button."""
        await self._running(uuid).execute("system_powerdown")

    async def kill(self, uuid: str) -> None:
        """See Hypervisor.kill. Raises TimedOut when the kernel does not end the process."""
        async with self._locks[uuid]:
            process = self._processes.get(uuid)
            if process is not None:
                await process.kill()

    async def pause(self, uuid: str) -> None:
        """See Hypervisor.pause."""
        await self._running(uuid).pause()

    async def resume(self, uuid: str) -> None:
        """See Hypervisor.resume. Raises HypervisorError for a guest that has crashed."""
        await self._running(uuid).resume()

    async def state(self, uuid: str) -> RunState:
        """See Hypervisor.state."""
        process = self._processes.get(uuid)
        return await process.state() if process is not None else RunState.ABSENT

    async def explain(self, uuid: str) -> str:
        """See CanExplain.explain."""
        process = self._processes.get(uuid)
        return await process.explain() if process is not None else ""

    async def wait_stopped(self, uuid: str, timeout: float) -> bool:
        """See Hypervisor.wait_stopped."""
        process = self._processes.get(uuid)
        if process is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await process.exited.wait()
        return process.exited.is_set()

    def events(self) -> AsyncIterator[MachineEvent]:
        """See Hypervisor.events; ends when the driver is closed."""
        return self._events.iterate()

    async def statistics(self, uuid: str) -> Statistics:
        """See Hypervisor.statistics."""
        return await asyncio.to_thread(self._running(uuid).statistics)

    async def open_console(self, uuid: str) -> Stream:
        """See HasConsole.open_console. Whoever opens it must read: an unread console stops the
        guest's output; an unopened one drops it."""
        return await self._running(uuid).open_console()

    async def open_agent(self, uuid: str) -> Stream:
        """See HasAgentChannel.open_agent."""
        return await self._running(uuid).open_agent()

    # --- freezing ---------------------------------------------------------------------------

    def freeze_obstacle(self, machine: Machine) -> str | None:
        """See CanFreeze.freeze_obstacle."""
        return freeze_obstacle(machine)

    async def fingerprint(self) -> str:
        """See CanFreeze.fingerprint."""
        return fingerprint(await self._platform(), await self._current_build())

    async def freeze(
        self,
        uuid: str,
        loader: Machine,
        taps: tuple[int, ...],
        memory: int,
        state: int,
        while_paused: WhilePaused,
    ) -> None:
        """See CanFreeze.freeze.

        The loader is a process of kind ``loader``: a daemon that dies meanwhile leaves it.
        """
        source = self._running(uuid)
        _check_account(loader)
        if (obstacle := freeze_obstacle(loader)) is not None:
            raise HypervisorError(f"{loader.name} cannot be frozen: {obstacle}")
        platform = await self._platform()
        if os.fstat(memory).st_size != loader.memory:
            raise HypervisorError(f"the file for the memory of {loader.name} has another size")

        async def start_loader(receiver: int) -> QemuProcess:
            return await start_process(
                self._runner,
                loader,
                build_argv(loader, platform, taps, self._emulator, load_into=memory),
                home=self._home,
                account=self._account(loader, platform.accelerator),
                pass_fds=(*taps, memory, receiver),
                kind=LOADER_KIND,
            )

        await freeze_process(source, start_loader, state, while_paused)
        await to_its_end(asyncio.to_thread(drop_zeros, memory))

    def identity_port(self, uuid: str) -> AbstractAsyncContextManager[Stream]:
        """See CanFreeze.identity_port."""
        return self._running(uuid).identity_port()

    async def close(self) -> None:
        """See Hypervisor.close."""
        processes = list(self._processes.values())
        self._processes.clear()
        self._events.close()
        await asyncio.gather(*(process.release() for process in processes))
