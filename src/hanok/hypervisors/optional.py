"""What only some hypervisors can do, found by asking: ``isinstance(hypervisor, HasConsole)``."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.model.host import HostShare, HypervisorFacts
from hanok.model.keeping import WatchdogAction
from hanok.model.network import Plug


@dataclass(frozen=True)
class Stream:
    """A byte stream into a guest; ``slow``: each byte costs the guest milliseconds."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    slow: bool = False


class NotLive(HypervisorError):
    """A running machine cannot be changed so; the message says why, and what it takes.

    Not a failure: the change waits for the next start.
    """


@runtime_checkable
class HasConsole(Protocol):
    """Has a serial or PV console; one connection at a time."""

    async def open_console(self, uuid: str) -> Stream:
        """Connect to the console. Raises HypervisorError when there is none."""
        ...


@dataclass(frozen=True)
class Viewer:
    """A connection to a screen (RFC 6143); ``greeting`` is what it has said already."""

    greeting: bytes
    stream: Stream


@runtime_checkable
class HasScreen(Protocol):
    """Can show a graphics card's screen. Each raises HypervisorError when a machine has none."""

    async def screenshot(self, uuid: str) -> bytes:
        """Return what the screen shows, a PNG. Raises Unsupported when this one cannot."""
        ...

    async def admit_viewers(self, uuid: str, password: str, seconds: int) -> None:
        """Let in those who know ``password``, 8 characters, and connect within ``seconds``."""
        ...

    async def open_screen(self, uuid: str) -> Viewer:
        """Connect to the screen; whoever does must know the password of ``admit_viewers``."""
        ...


@runtime_checkable
class HasAgentChannel(Protocol):
    """Has a byte channel to the guest agent; one connection at a time."""

    async def open_agent(self, uuid: str) -> Stream:
        """Connect to the agent's channel. Raises AgentUnavailable when there is none."""
        ...


@runtime_checkable
class CanReprobe(Protocol):
    """Measures its acceleration and can be asked to do so again."""

    async def probe_again(self) -> HypervisorFacts:
        """Forget what was measured and measure it again."""
        ...


@runtime_checkable
class CanExplain(Protocol):
    """Can say why a machine is paused or crashed, or why one that was not adopted has ended."""

    async def explain(self, uuid: str) -> str:
        """Return why, for people; empty when there is nothing to say."""
        ...


@runtime_checkable
class HasWatchdog(Protocol):
    """Has a watchdog device: a guest that feeds it no more is reset, or is crashed then."""

    def watchdog_actions(self) -> Collection[WatchdogAction]:
        """Return what it can do to a guest that hangs."""
        ...


@runtime_checkable
class CanTestify(Protocol):
    """Says itself what kind of machine it runs, whatever was asked of it (Type 1)."""

    async def testify(self, uuid: str) -> str:
        """Return pv, pvh or hvm. Raises HypervisorError when the machine does not run."""
        ...


@runtime_checkable
class CanSweep(Protocol):
    """Runs machines that are more than one marked process each."""

    async def sweep(self, known: Collection[str]) -> None:
        """End machines of this data directory whose uuid is not in ``known``."""
        ...


@runtime_checkable
class OwnsHost(Protocol):
    """Is below this system, which sees only a share of the host's memory and CPUs (Type 1)."""

    async def look(self, age: float) -> None:
        """Look at how the host is divided, unless that was done in the last ``age`` seconds."""
        ...

    def share(self) -> HostShare | None:
        """Return what the whole host has, as the last look saw it; None before any."""
        ...


@runtime_checkable
class CanReach(Protocol):
    """Makes networks itself (UserLink), and can connect to the guests on them."""

    async def reach(self, uuid: str, address: str, port: int, timeout: float) -> socket.socket:
        """Return a non-blocking TCP socket that is connected to the guest's first card.

        Raises GuestError when the guest refuses or does not answer within ``timeout`` seconds.
        """
        ...


@runtime_checkable
class CanFreeze(Protocol):
    """Can freeze a running machine with its memory, and start others from that."""

    def freeze_obstacle(self, machine: Machine) -> str | None:
        """Return why machines like this cannot be frozen, for people; None when they can."""
        ...

    async def fingerprint(self) -> str:
        """Return what frozen memory depends on here: equal texts can be resumed, others not."""
        ...

    async def freeze(
        self,
        uuid: str,
        loader: Machine,
        taps: tuple[Plug, ...],
        memory: int,
        state: int,
        while_paused: Callable[[], Awaitable[None]],
    ) -> None:
        """Write the RAM and devices of running machine ``uuid`` to ``memory`` and ``state``.

        The machine is paused meanwhile, and goes on whatever happens; ``while_paused`` is awaited
        when its disks are flushed and still. ``loader`` has the same shape, stand-in disks of the
        same sizes and ``taps`` of its own: it takes the memory over and never runs. ``memory`` is
        an empty memfd of the RAM's size (sealed by the caller afterwards), ``state`` an empty
        file open for writing. Nothing but these is left. Raises HypervisorError.
        """
        ...

    def identity_port(self, uuid: str) -> AbstractAsyncContextManager[Stream]:
        """Give the port at which the guest of a machine that was started frozen is told who it is.

        What is written before the machine goes on lies there when it does. Afterwards the port
        leads nowhere, which the guest does not notice. Raises HypervisorError.
        """
        ...


@runtime_checkable
class CanResize(Protocol):
    """Can make a running machine larger or smaller. Each method is safe to repeat.

    Each raises NotLive where the machine as it runs cannot be changed so, HypervisorError when it
    could be and that failed.
    """

    async def set_cpus(self, uuid: str, cpus: int) -> None:
        """Give the machine exactly ``cpus`` vCPUs; the guest has yet to use new ones."""
        ...

    async def set_memory(self, uuid: str, memory: int, started: int) -> None:
        """Let the guest have ``memory`` bytes; the machine was started with ``started``.

        What it gives back is free at once, but its to take again: nobody may count on it before
        the machine has started anew.
        """
        ...

    async def grow_disk(self, uuid: str, size: int) -> None:
        """Make the root disk ``size`` bytes large; one that is as large is left alone."""
        ...


@runtime_checkable
class CanHotplug(Protocol):
    """Can plug disks and network cards into a running machine, at its hot-plug ports.

    Each method is safe to repeat, and raises NotLive and HypervisorError as those of CanResize do.
    ``port`` of what is plugged in says where. Nothing is left of what fails.
    """

    hotplug_ports: ClassVar[int]

    async def attach_disk(self, uuid: str, disk: Disk) -> None:
        """Plug in a disk whose file exists and belongs to the machine's account."""
        ...

    async def detach_disk(self, uuid: str, disk: Disk) -> None:
        """Unplug a disk; returns when its file is closed."""
        ...

    async def attach_nic(self, uuid: str, nic: Nic, tap: int) -> None:
        """Plug in a network card whose frames go to the open descriptor ``tap``."""
        ...

    async def detach_nic(self, uuid: str, nic: Nic) -> None:
        """Unplug a network card; returns when its tap is closed."""
        ...
