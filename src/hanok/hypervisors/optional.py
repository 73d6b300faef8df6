"""What only some hypervisors can do, found by asking: ``isinstance(hypervisor, HasConsole)``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hanok.hypervisors.base import Machine
from hanok.model.host import HypervisorFacts


@dataclass(frozen=True)
class Stream:
    """A byte stream into a guest."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@runtime_checkable
class HasConsole(Protocol):
    """Has a serial or PV console; one connection at a time."""

    async def open_console(self, uuid: str) -> Stream:
        """Connect to the console. Raises HypervisorError when there is none."""
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
    """Can say why a machine is paused or crashed."""

    async def explain(self, uuid: str) -> str:
        """Return why, for people; empty when there is nothing to say."""
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
        taps: tuple[int, ...],
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
