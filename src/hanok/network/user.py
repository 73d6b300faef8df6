"""Networks where no tap can be had: QEMU speaks for each guest itself, in ordinary sockets.

QEMU's user networking (slirp) needs no device, no namespace and no right. It is a network of one
VM: addresses, names from the host's resolver, a way out and published ports are there, other VMs
are not. Source: qemu(1), ``-netdev user``.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

from hanok.errors import GuestError, HostError, NotFound, Unsupported
from hanok.model.network import (
    NetworkingFacts,
    NetworkPort,
    NetworkRecord,
    NetworkStatus,
    UserLink,
)
from hanok.network.outward import default_route
from hanok.network.publish import as_mapping, open_listeners

Reach = Callable[[str, str, int, float], Awaitable[socket.socket]]

KIND = "user"
LIMITS = (
    "each VM is alone: VMs do not reach one another and have no names for one another",
    "a guest reaches what listens on this host's loopback, at the address of its gateway",
    "no templates and no instant clones of VMs with a network: each VM boots",
    "ping leads out only as far as net.ipv4.ping_group_range lets this user",
)
_REASON = "QEMU's user networking: each VM is alone in it"


class UserNetworks:
    """Implements ``hanok.network.base.Networks``; see there for what each method promises.

    ``reason`` says why there are no others; ``reach`` connects to a guest: VM, address, port and
    seconds (CanReach of hypervisors.optional).
    """

    def __init__(self, reason: str, reach: Reach) -> None:
        self.facts = NetworkingFacts(kind=KIND, reason=reason, limits=LIMITS)
        self._reach = reach
        self._records: dict[str, NetworkRecord] = {}
        self._ports: dict[str, dict[str, NetworkPort]] = {}

    async def ensure(self, record: NetworkRecord, ports: Sequence[NetworkPort]) -> NetworkStatus:
        """See Networks.ensure: what is published is held by the VMs that run already."""
        self._records[record.name] = record
        self._ports[record.name] = {port.vm: port for port in ports}
        return await self.status(record.name)

    async def attach(self, network: str, port: NetworkPort) -> UserLink:
        """See Networks.attach: what the hypervisor is to do itself."""
        record, ports = self._running(network)
        as_mapping(port.publish)
        # QEMU would say less of what is wrong, and only once it has started.
        for listener in open_listeners(port.publish).values():
            listener.close()
        ports[port.vm] = port
        return UserLink(
            subnet=record.subnet,
            gateway=record.gateway,
            address=port.address,
            outward=record.outward,
            publish=port.publish,
        )

    async def detach(self, network: str, vm: str) -> None:
        """See Networks.detach."""
        self._ports.get(network, {}).pop(vm, None)

    async def settle(self, network: str) -> None:
        """See Networks.settle."""
        self._running(network)

    async def rename(self, network: str, port: NetworkPort) -> None:
        """See Networks.rename: no VM finds another by its name here."""
        _, ports = self._running(network)
        if port.vm not in ports:
            raise NotFound(f"VM {port.vm} is not attached to network {network}")
        ports[port.vm] = ports[port.vm].model_copy(update={"host_name": port.host_name})

    async def publish(self, network: str, port: NetworkPort) -> None:
        """See Networks.publish: QEMU has published them when it started."""
        _, ports = self._running(network)
        held = ports.get(port.vm)
        if held is None:
            raise NotFound(f"VM {port.vm} is not attached to network {network}")
        if as_mapping(held.publish) != as_mapping(port.publish):
            raise Unsupported(
                "what is published cannot be changed while the VM runs: " + _REASON,
                field="publish",
                hint="stop the VM and start it again",
            )

    async def connect(self, network: str, address: str, port: int, timeout: float) -> socket.socket:
        """See Networks.connect."""
        _, ports = self._running(network)
        for held in ports.values():
            if held.address == address:
                return await self._reach(held.vm, address, port, timeout)
        raise GuestError(f"no VM of network {network} has the address {address}")

    async def status(self, name: str) -> NetworkStatus:
        """See Networks.status."""
        record = self._records.get(name)
        if record is None:
            return NetworkStatus(running=False, reason=f"network {name} is not running")
        if not record.outward:
            why = f"the network was created without a way out; {_REASON}"
            return NetworkStatus(running=True, reason=why)
        return NetworkStatus(running=True, outward=default_route(), reason=_REASON)

    async def stop(self, name: str) -> None:
        """See Networks.stop."""
        self._records.pop(name, None)
        self._ports.pop(name, None)

    async def sweep(self, known: Collection[str]) -> None:
        """See Networks.sweep: nothing of a network outlives its VMs."""
        for name in self._records.keys() - set(known):
            await self.stop(name)

    async def close(self) -> None:
        """See Networks.close."""

    def _running(self, network: str) -> tuple[NetworkRecord, dict[str, NetworkPort]]:
        record = self._records.get(network)
        if record is None:
            raise HostError(f"network {network} is not running")
        return record, self._ports[network]
