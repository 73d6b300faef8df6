"""QEMU as a hypervisor: see ``hypervisors/base.py`` for the contract."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform as platform_module
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

from hanok import shortage
from hanok.durable import give_file
from hanok.errors import HypervisorError, Unsupported
from hanok.hypervisors.base import Disk, Machine, MachineEvent, Nic, RunState, Statistics
from hanok.hypervisors.events import EventQueue
from hanok.hypervisors.finish import to_its_end
from hanok.hypervisors.optional import Stream, Viewer
from hanok.hypervisors.qemu import change
from hanok.hypervisors.qemu.arch import ARCHITECTURES, find_architecture, find_row
from hanok.hypervisors.qemu.argv import (
    HOTPLUG_PORTS,
    LOG_FILE,
    Platform,
    build_argv,
    netdev_name,
)
from hanok.hypervisors.qemu.build import QemuBuild, read_build
from hanok.hypervisors.qemu.fingerprint import fingerprint
from hanok.hypervisors.qemu.firmware import UefiFiles, find_uefi
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
from hanok.hypervisors.qemu.process import COMMAND, QemuProcess
from hanok.hypervisors.qemu.spawn import OWNER_KIND, start_process
from hanok.hypervisors.qemu.tpm import end_tpm, let_tpm_end, start_tpm
from hanok.hypervisors.qemu.usernet import reach
from hanok.hypervisors.taps import descriptors
from hanok.model.host import HypervisorFacts
from hanok.model.keeping import WatchdogAction
from hanok.model.network import Plug
from hanok.model.vm import Firmware, Mode
from hanok.proc import Account, Owner, Runner, find_owned, find_program, owner_of, wait_for_exit

_NOBODY = 65534
_KVM = Path("/dev/kvm")
_ADOPT_LIMIT = 10.0
_CUT_OFF = "QEMU was killed while no daemon ran"


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


def _prepare_uefi(machine: Machine, platform: Platform) -> UefiFiles | None:
    """Return the firmware of a machine that UEFI boots, its own variables made. Raises HostError.

    The file is in a folder of the daemon's, where no machine's process can put a link.
    """
    boot = machine.boot
    if boot is None or boot.firmware is not Firmware.UEFI:
        return None
    machine_type = machine.machine_type or platform.machine_type
    uefi = find_uefi(platform.architecture, machine_type, secure=boot.secure)
    if not boot.variables.exists():
        give_file(boot.variables, uefi.template.read_bytes(), machine.account)
    return uefi


def _own_emulator() -> str:
    """Return the program for this host's architecture: of one that has no row, any."""
    row = ARCHITECTURES.get(platform_module.machine())
    return row.emulator if row is not None else "qemu"


def _architectures() -> tuple[str, ...]:
    """Return what guests can be here, by Debian's names: this host's, and those emulators found."""
    own = find_architecture()
    others = [row for row in ARCHITECTURES.values() if row is not own]
    found = [row for row in others if find_program(row.emulator) is not None]
    return tuple(str(row.debian) for row in (own, *found))


class QemuHypervisor:
    """Runs machines as QEMU processes, by KVM where that was seen to work, else by TCG.

    ``home`` is the data directory that marks its processes; ``cache`` the file that keeps what was
    measured. ``probe_account`` is who the measuring guest runs as when the daemon is root (by
    default nobody); ``kvm_limit`` the seconds that it may take to boot.
    """

    name: ClassVar[str] = "qemu"
    hotplug_ports: ClassVar[int] = HOTPLUG_PORTS

    def __init__(
        self,
        runner: Runner,
        home: Path,
        probe_guest: GuestProvider,
        cache: Path,
        emulator: str | None = None,
        *,
        kvm_device: Path = _KVM,
        probe_account: Account | None = None,
        kvm_limit: float | None = None,
    ) -> None:
        self._runner = runner
        self._home = home
        self._emulator = emulator or _own_emulator()
        self._kvm_device = kvm_device
        if probe_account is None and os.geteuid() == 0:
            probe_account = Account(_NOBODY, _NOBODY)
        self._probe = AccelerationProbe(
            runner,
            self._emulator,
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
        self._with_tpm: set[str] = set()
        self._cut_off: dict[str, str] = {}
        self._reapers: set[asyncio.Task[int | None]] = set()
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
                modes=tuple(str(mode) for mode in find_architecture().modes),
                architectures=_architectures(),
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
        offered = find_architecture().modes
        if mode not in offered:
            raise Unsupported(
                f"QEMU offers no mode {mode}",
                field="mode",
                expected=" or ".join(offered),
                hint="para is the faster one; full needs no drivers in the guest",
            )
        return mode

    def overhead(self, cpus: int, memory: int, tcg_buffer: int | None) -> int:
        """See Hypervisor.overhead; before the first probe it counts TCG, which takes more."""
        accelerator = self._facts.accelerator if self._facts is not None else "tcg"
        return overhead(find_architecture().overhead, accelerator, cpus, memory, tcg_buffer)

    # --- life -------------------------------------------------------------------------------

    async def start(self, machine: Machine, taps: tuple[Plug, ...] = ()) -> None:
        """See Hypervisor.start. Raises InvalidInput too, for what cannot be said to QEMU."""
        _check_account(machine)
        platform, emulator = await self._platform_of(machine)
        async with self._locks[machine.uuid], contextlib.AsyncExitStack() as undo:
            frozen = machine.frozen
            if not _is_fresh(machine) and await self._find(machine) is not None:
                return
            uefi = _prepare_uefi(machine, platform)
            account = self._account(machine, platform.accelerator)
            await self._start_tpm(machine, account, undo)
            passed = tuple(tap for tap in taps if isinstance(tap, int))
            if frozen is not None:
                passed += (frozen.memory, frozen.state)
            process = await start_process(
                self._runner,
                machine,
                build_argv(machine, platform, taps, emulator, uefi=uefi),
                home=self._home,
                account=account,
                pass_fds=passed,
            )
            undo.push_async_callback(process.kill)
            if frozen is not None:
                await load_frozen(process, frozen)
            undo.pop_all()
            self._keep(process)

    async def _start_tpm(
        self, machine: Machine, account: Account | None, undo: contextlib.AsyncExitStack
    ) -> None:
        """Start the machine's TPM, if it has one; ``undo`` ends it again."""
        if machine.boot is None or machine.boot.tpm is None:
            return
        undo.push_async_callback(end_tpm, self._home, machine.uuid)
        folder = machine.boot.tpm
        pid = await start_tpm(self._runner, machine, folder, self._home, account)
        self._with_tpm.add(machine.uuid)
        reaper = asyncio.create_task(wait_for_exit(pid), name=f"TPM {pid}")
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    async def _platform_of(self, machine: Machine) -> tuple[Platform, str]:
        """Return how the machine runs here, and by which program. Raises HostError."""
        row = find_row(machine.architecture)
        if row is find_architecture():
            return await self._platform(), self._emulator
        build = await read_build(self._runner, row.emulator, row)
        return Platform(row, "tcg", build.machine_type, build.sandbox), row.emulator

    async def _platform(self) -> Platform:
        facts = await self.probe()
        build = await self._current_build()
        return Platform(
            find_architecture(),
            facts.accelerator,
            build.machine_type,
            sandbox=build.sandbox,
            vnc=build.vnc,
        )

    def _account(self, machine: Machine, accelerator: str) -> Account | None:
        if machine.account is None or accelerator != "kvm":
            return machine.account
        return account_with_kvm(self._kvm_device, machine.account) or machine.account

    async def adopt(self, machine: Machine) -> RunState:
        """See Hypervisor.adopt. A process that does not answer is kept, so that it can be killed,
        and HypervisorError is raised."""
        if machine.boot is not None and machine.boot.tpm is not None:
            self._with_tpm.add(machine.uuid)
        async with self._locks[machine.uuid]:
            process = await self._find(machine)
        if process is None:
            # QEMU removes its pid file as it ends; one that was killed could not.
            if (pid := read_pid_file(machine.folder)) is not None:
                why = await asyncio.to_thread(shortage.why_killed, pid, None, COMMAND)
                self._cut_off[machine.uuid] = f"{_CUT_OFF}: {why}" if why else _CUT_OFF
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
        self._cut_off.pop(process.uuid, None)
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
            if uuid in self._with_tpm:
                await let_tpm_end(self._home, uuid)
                self._with_tpm.discard(uuid)

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
        if process is not None:
            return await process.explain()
        return self._cut_off.get(uuid, "")

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

    def watchdog_actions(self) -> Collection[WatchdogAction]:
        """See HasWatchdog.watchdog_actions."""
        return (WatchdogAction.RESET, WatchdogAction.STOP)

    async def reach(self, uuid: str, address: str, port: int, timeout: float) -> socket.socket:
        """See CanReach.reach."""
        monitor = self._running(uuid).tell_monitor
        return await reach(monitor, netdev_name(0), address, port, timeout)

    async def screenshot(self, uuid: str) -> bytes:
        """See HasScreen.screenshot."""
        return await self._running(uuid).screen.picture()

    async def admit_viewers(self, uuid: str, password: str, seconds: int) -> None:
        """See HasScreen.admit_viewers."""
        await self._running(uuid).screen.admit(password, seconds)

    async def open_screen(self, uuid: str) -> Viewer:
        """See HasScreen.open_screen."""
        return await self._running(uuid).screen.open()

    # --- freezing ---------------------------------------------------------------------------

    def freeze_obstacle(self, machine: Machine) -> str | None:
        """See CanFreeze.freeze_obstacle."""
        if find_row(machine.architecture) is not find_architecture():
            return "its processor is not of the host's architecture"
        return freeze_obstacle(machine)

    async def fingerprint(self) -> str:
        """See CanFreeze.fingerprint."""
        return fingerprint(await self._platform(), await self._current_build())

    async def freeze(
        self,
        uuid: str,
        loader: Machine,
        taps: tuple[Plug, ...],
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
                pass_fds=(*descriptors(taps), memory, receiver),
                kind=LOADER_KIND,
            )

        await freeze_process(source, start_loader, state, while_paused)
        await to_its_end(asyncio.to_thread(drop_zeros, memory))

    def identity_port(self, uuid: str) -> AbstractAsyncContextManager[Stream]:
        """See CanFreeze.identity_port."""
        return self._running(uuid).identity_port()

    # --- changes while it runs --------------------------------------------------------------

    async def set_cpus(self, uuid: str, cpus: int) -> None:
        """See CanResize.set_cpus."""
        await change.set_cpus(self._running(uuid), cpus)

    async def set_memory(self, uuid: str, memory: int, started: int) -> None:
        """See CanResize.set_memory."""
        await change.set_memory(self._running(uuid), memory, started)

    async def grow_disk(self, uuid: str, size: int) -> None:
        """See CanResize.grow_disk."""
        await change.grow_disk(self._running(uuid), size)

    async def attach_disk(self, uuid: str, disk: Disk) -> None:
        """See CanHotplug.attach_disk."""
        await change.attach_disk(self._running(uuid), disk)

    async def detach_disk(self, uuid: str, disk: Disk) -> None:
        """See CanHotplug.detach_disk."""
        await change.detach_disk(self._running(uuid), disk)

    async def attach_nic(self, uuid: str, nic: Nic, tap: int) -> None:
        """See CanHotplug.attach_nic."""
        await change.attach_nic(self._running(uuid), nic, tap)

    async def detach_nic(self, uuid: str, nic: Nic) -> None:
        """See CanHotplug.detach_nic."""
        await change.detach_nic(self._running(uuid), nic)

    async def close(self) -> None:
        """See Hypervisor.close."""
        processes = list(self._processes.values())
        self._processes.clear()
        self._events.close()
        for reaper in list(self._reapers):
            reaper.cancel()
        await asyncio.gather(*(process.release() for process in processes))
