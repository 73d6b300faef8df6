"""What only some hypervisors can do, found by asking: ``isinstance(hypervisor, HasConsole)``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
