"""Networks for daemons without real machines (the fake hypervisor): everything in memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence

from hanok.errors import Conflict, GuestError, HostError, NotFound
from hanok.model.network import NetworkingFacts, NetworkPort, NetworkRecord, NetworkStatus

_REASON = "simulated: no packet moves"


class NoNetworks:
    """Implements ``hanok.network.base.Networks`` without touching the host.

    Nothing listens on published ports, but two VMs may not have the same one.
    """

    def __init__(self) -> None:
        self.facts = NetworkingFacts(kind="none", reason=_REASON)
        self._ports: dict[str, dict[str, NetworkPort]] = {}

    async def ensure(self, record: NetworkRecord, ports: Sequence[NetworkPort]) -> NetworkStatus:
        """See Networks.ensure."""
        self._ports[record.name] = {port.vm: port for port in ports}
        return await self.status(record.name)

    async def attach(self, network: str, port: NetworkPort) -> int:
        """See Networks.attach; the descriptor is one of /dev/null."""
        ports = self._running(network)
        self._check_free(port)
        ports[port.vm] = port
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def detach(self, network: str, vm: str) -> None:
        """See Networks.detach."""
        self._ports.get(network, {}).pop(vm, None)

    async def settle(self, network: str) -> None:
        """See Networks.settle."""
        self._running(network)

    async def rename(self, network: str, port: NetworkPort) -> None:
        """See Networks.rename."""
        ports = self._running(network)
        if port.vm not in ports:
            raise NotFound(f"VM {port.vm} is not attached to network {network}")
        ports[port.vm] = ports[port.vm].model_copy(update={"host_name": port.host_name})

    async def publish(self, network: str, port: NetworkPort) -> None:
        """See Networks.publish."""
        ports = self._running(network)
        if port.vm not in ports:
            raise NotFound(f"VM {port.vm} is not attached to network {network}")
        self._check_free(port)
        ports[port.vm] = port

    async def connect(self, network: str, address: str, port: int, timeout: float) -> socket.socket:
        """See Networks.connect; no guest ever answers."""
        raise GuestError(f"{address} did not answer on port {port}: the guest is simulated")

    async def status(self, name: str) -> NetworkStatus:
        """See Networks.status."""
        if name not in self._ports:
            return NetworkStatus(running=False, reason=f"network {name} is not running")
        return NetworkStatus(running=True, outward=False, reason=_REASON)

    async def stop(self, name: str) -> None:
        """See Networks.stop."""
        self._ports.pop(name, None)

    async def sweep(self, known: Collection[str]) -> None:
        """See Networks.sweep."""
        for name in self._ports.keys() - set(known):
            del self._ports[name]

    async def close(self) -> None:
        """See Networks.close."""

    def _running(self, network: str) -> dict[str, NetworkPort]:
        try:
            return self._ports[network]
        except KeyError:
            raise HostError(f"network {network} is not running") from None

    def _check_free(self, port: NetworkPort) -> None:
        for ports in self._ports.values():
            for other in ports.values():
                if other.vm == port.vm:
                    continue
                taken = {(p.address, p.host_port) for p in other.publish}
                for publish in port.publish:
                    if (publish.address, publish.host_port) in taken:
                        raise Conflict(
                            f"port {publish.host_port} of the host is taken by VM {other.vm}",
                            field="publish",
                        )
