"""A VM's plugs into its networks: started with the first VM, stopped with the last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hanok.model.network import NetworkPort, Plug
from hanok.model.vm import NicRecord, VmRecord, VmState
from hanok.services.parts import Parts, port_of

_ATTACHED = (VmState.RUNNING, VmState.READY, VmState.PAUSED, VmState.STOPPING)


class Plugs:
    """Plugs VMs into networks and out of them; every step is safe to repeat."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ensure(self, nics: Sequence[NicRecord]) -> None:
        """Start the networks that do not run yet: the first VM on one starts it."""
        for nic in nics:
            async with self._parts.network_lock(nic.network):
                status = await self._parts.networks.status(nic.network)
                if not status.running:
                    network = await self._parts.network(nic.network)
                    ports = await self._parts.ports_on(nic.network, _ATTACHED)
                    await self._parts.networks.ensure(network, ports)

    @asynccontextmanager
    async def taps(
        self, ports: Sequence[tuple[str, NetworkPort]]
    ) -> AsyncIterator[tuple[Plug, ...]]:
        """Attach ``ports`` (each with its network) and give their taps, closed at the end."""
        with contextlib.ExitStack() as closing:
            taps: list[Plug] = []
            for network, port in ports:
                tap = await self._parts.networks.attach(network, port)
                if isinstance(tap, int):
                    closing.callback(os.close, tap)
                taps.append(tap)
            yield tuple(taps)

    async def publish(self, record: VmRecord) -> None:
        """Publish a VM's ports: they belong to its first network."""
        if record.nics:
            network = record.nics[0].network
            await self._parts.networks.publish(network, port_of(record, network))

    async def settle(self, nics: Sequence[NicRecord]) -> None:
        """Wait until names and leases of all who were plugged in are in force."""
        for nic in nics:
            await self._parts.networks.settle(nic.network)

    async def release(self, record: VmRecord) -> None:
        """Unplug a VM that does not run, and stop the networks that nobody uses any more."""
        for nic in record.nics:
            await self._parts.networks.detach(nic.network, record.uuid)
            async with self._parts.network_lock(nic.network):
                ports = await self._parts.ports_on(nic.network)
                if all(port.vm == record.uuid for port in ports):
                    await self._parts.networks.stop(nic.network)


def ports_of(record: VmRecord) -> list[tuple[str, NetworkPort]]:
    """Return a VM's ports, each with its network."""
    return [(nic.network, port_of(record, nic.network)) for nic in record.nics]
