"""The contract of every hypervisor: small; what not all can do is in optional.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from hanok.model.architecture import Arch
from hanok.model.host import HypervisorFacts
from hanok.model.image import Base as Base
from hanok.model.image import DiskFormat, Kernel
from hanok.model.keeping import WatchdogAction
from hanok.model.network import Plug
from hanok.model.vm import Firmware, Mode
from hanok.proc import Account

WATCHDOG_EXPIRED = "the guest hung: its watchdog expired"


class RunState(StrEnum):
    """What a hypervisor says of a VM."""

    ABSENT = "absent"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Disk:
    """A disk; ``bases``: what an overlay stands on, the nearest first; ``port``: as of a Nic."""

    name: str
    path: Path
    format: DiskFormat
    read_only: bool = False
    bases: tuple[Base, ...] = ()
    serial: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Frozen:
    """Memory and devices that a machine goes on from: open descriptors, closed by the caller.

    ``memory``: a sealed memfd with the RAM. ``state``: of the devices; a description a machine.
    """

    memory: int
    state: int


@dataclass(frozen=True)
class Nic:
    """A network card, its tap at the same place in ``start``; ``port``: its hot-plug port."""

    mac: str
    network: str
    port: int | None = None


@dataclass(frozen=True)
class Boot:
    """What boots a machine whose disk has a boot loader of its own.

    ``variables``: where UEFI's variables are kept, a file that is made when it is missing.
    ``secure``: UEFI starts only what is signed. ``tpm``: where its TPM 2.0, if any, keeps state.
    """

    firmware: Firmware
    variables: Path
    secure: bool = False
    tpm: Path | None = None


@dataclass(frozen=True)
class Machine:
    """Everything a hypervisor needs to know to run one VM; made from a VmRecord and its image.

    ``folder`` belongs to ``account`` and is the only place where the hypervisor's process writes,
    besides its disks. ``memory`` and ``tcg_buffer`` are bytes. ``nested``: its CPU may virtualize.
    ``watchdog``, ``screen``: see optional.py. ``architecture`` None: as the host's.
    """

    uuid: str
    name: str
    cpus: int
    memory: int
    mode: Mode
    folder: Path
    account: Account | None
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...] = ()
    kernel: Kernel | None = None
    kernel_folder: Path | None = None
    boot: Boot | None = None
    agent: bool = True
    machine_type: str | None = None
    tcg_buffer: int | None = None
    nested: bool = True
    watchdog: WatchdogAction | None = None
    frozen: Frozen | None = None
    architecture: Arch | None = None
    screen: bool = False


@dataclass(frozen=True)
class MachineEvent:
    """What happened to a VM: stopped, crashed, paused, resumed, reset, watchdog, io-error."""

    uuid: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Statistics:
    """What a VM uses now: CPU seconds since its start; resident and proportional bytes.

    ``backend_seconds``, ``backend_memory``: its part of a process in Dom0; None without one.
    """

    cpu_seconds: float
    resident: int
    proportional: int | None = None
    backend_seconds: float | None = None
    backend_memory: int | None = None


class Hypervisor(Protocol):
    """Runs machines. Every method may raise HypervisorError; all are safe to repeat."""

    name: ClassVar[str]

    async def probe(self) -> HypervisorFacts:
        """Return what this hypervisor can do on this host; measured once and cached.

        Raises HostError when it cannot run here at all.
        """
        ...

    def choose_mode(self, mode: Mode) -> Mode:
        """Return the mode that ``mode`` means here; raises Unsupported naming those offered."""
        ...

    def overhead(self, cpus: int, memory: int, tcg_buffer: int | None) -> int:
        """Return the bytes beyond guest RAM that a machine of this shape takes of the host."""
        ...

    async def start(self, machine: Machine, taps: tuple[Plug, ...] = ()) -> None:
        """Start ``machine``; ``taps``: descriptors or UserLinks, one a NIC. Returns when it runs.

        With ``machine.frozen`` (see optional.CanFreeze) it is paused then; ``resume`` goes on.
        Leaves nothing behind when it fails. Starting a machine that runs already is a no-op.
        """
        ...

    async def adopt(self, machine: Machine) -> RunState:
        """Take over a machine that an earlier daemon started; ABSENT when there is none."""
        ...

    async def ask_stop(self, uuid: str) -> None:
        """Ask the guest to power itself off; returns at once."""
        ...

    async def kill(self, uuid: str) -> None:
        """End the machine now; returns when nothing of it is left (process, sockets)."""
        ...

    async def pause(self, uuid: str) -> None:
        """Stop the vCPUs."""
        ...

    async def resume(self, uuid: str) -> None:
        """Let the vCPUs go on."""
        ...

    async def state(self, uuid: str) -> RunState:
        """Return what the machine is seen to be."""
        ...

    async def wait_stopped(self, uuid: str, timeout: float) -> bool:
        """Wait until the machine is gone; False when it still runs after ``timeout`` seconds."""
        ...

    def events(self) -> AsyncIterator[MachineEvent]:
        """Yield what happens to machines, from now on. One consumer."""
        ...

    async def statistics(self, uuid: str) -> Statistics:
        """Return what the machine uses now."""
        ...

    async def close(self) -> None:
        """Let go of all machines without stopping any."""
        ...
