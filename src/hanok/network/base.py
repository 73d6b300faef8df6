"""The contract of networks, and the pure choices of subnets, addresses and MACs."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import socket
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from hanok.errors import Conflict
from hanok.model.network import (
    NetworkingFacts,
    NetworkPort,
    NetworkRecord,
    NetworkStatus,
    Plug,
)

POOL = ipaddress.IPv4Network("10.87.0.0/16")
# 1021 guests: a Linux bridge takes 1023 ports. Smaller ones only where no such room is left.
_SUBNET_PREFIXES = (22, 24)


class Networks(Protocol):
    """Networks of VMs. Every method is safe to repeat; each may raise HostError.

    A network that was never ensured, or was stopped, answers HostError ("is not running") to all
    but ``ensure``, ``detach``, ``status``, ``stop`` and ``sweep``.
    """

    facts: NetworkingFacts

    async def ensure(self, record: NetworkRecord, ports: Sequence[NetworkPort]) -> NetworkStatus:
        """Start the network, or adopt it when it runs, and bring it to exactly these ports.

        Returns when VMs can be attached; the way out follows as leases and names do, ``settle``
        tells when. Taps of VMs that stay are left alone. Raises Conflict (field ``publish``)
        when a host port is taken by somebody else, but only after everything else was put in
        place.
        """
        ...

    async def attach(self, network: str, port: NetworkPort) -> Plug:
        """Plug a VM in: filters, published ports and a tap in the bridge, then lease and name.

        Returns an open tap descriptor for the hypervisor; the caller closes it, and the tap
        vanishes with its last descriptor. The tap is pinned by the filters; lease and name come
        in the background within a moment, ``settle`` tells when. A stale tap of the same VM is
        replaced. Where no tap can be had: what the hypervisor is to do itself.

        On failure the VM is not attached. Raises Conflict when a MAC, an address, a
        name or a host port is taken.
        """
        ...

    async def detach(self, network: str, vm: str) -> None:
        """Unplug VM ``vm`` (uuid): no filter entry, tap or published port is left.

        Its lease and name go in the background, as with ``attach``.
        """
        ...

    async def settle(self, network: str) -> None:
        """Return when leases and names of every change before this call are in force.

        There is a way out then too, or a reason in ``status`` why there is none. Raises
        HostError when the name server has failed, TimedOut when it does not answer.
        """
        ...

    async def rename(self, network: str, port: NetworkPort) -> None:
        """Let the VM, which is attached, be found as ``port.host_name``; all else of it stays.

        The name comes in the background, as with ``attach``. Raises Conflict when it is taken, or
        when the network was started by a Hanok that cannot rename, NotFound when it is not there.
        """
        ...

    async def publish(self, network: str, port: NetworkPort) -> None:
        """Make the published ports of this VM exactly ``port.publish``, all of them or none.

        Raises Conflict (field ``publish``) naming the host port that is taken, NotFound when the
        VM is not attached.
        """
        ...

    async def connect(self, network: str, address: str, port: int, timeout: float) -> socket.socket:
        """Return a non-blocking TCP socket that is connected to a guest of the network.

        Raises GuestError when the guest refuses or does not answer within ``timeout`` seconds.
        """
        ...

    async def status(self, name: str) -> NetworkStatus:
        """Return how the network is seen to be; never raises for an unknown one."""
        ...

    async def stop(self, name: str) -> None:
        """End the network: no process, namespace or file of it is left."""
        ...

    async def sweep(self, known: Collection[str]) -> None:
        """End what is left of networks whose name is not in ``known``."""
        ...

    async def close(self) -> None:
        """Let go of all networks and stop none."""
        ...


def free_subnet(taken: Iterable[str]) -> str:
    """Return the first /22 of 10.87.0.0/16 that overlaps none of ``taken`` (IPv4 with prefix).

    ``taken`` holds the subnets of the networks that exist and the host's own routes; a default
    route (0.0.0.0/0) counts for nothing. Where no /22 is left it is a /24. Raises Conflict when
    none is free.
    """
    used = [ipaddress.IPv4Network(text, strict=False) for text in taken]
    for prefix in _SUBNET_PREFIXES:
        for candidate in POOL.subnets(new_prefix=prefix):
            if not any(network.prefixlen and candidate.overlaps(network) for network in used):
                return str(candidate)
    raise Conflict(
        f"every subnet of {POOL} is taken by a network or by a route of this host",
        field="subnet",
        hint="name a private subnet that is free, or delete a network",
    )


def make_mac(uuid: str, index: int) -> str:
    """Return the MAC of VM ``uuid``'s NIC number ``index``: the same at each call.

    Locally administered and unicast, 32 bits of a hash: two VMs may meet, so the caller checks
    and asks again with another index.
    """
    digest = hashlib.sha256(f"{uuid}/{index}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *digest[:4]))


def free_address(subnet: str, taken: Collection[str]) -> str:
    """Return the lowest host address of ``subnet`` that is neither its gateway nor taken.

    Raises Conflict when the subnet is full.
    """
    return free_addresses(subnet, taken, 1)[0]


def free_addresses(subnet: str, taken: Iterable[str], count: int) -> list[str]:
    """Return the ``count`` lowest host addresses of ``subnet``, free as in ``free_address``.

    Raises Conflict, saying how many there are, when they are too few.
    """
    network = ipaddress.IPv4Network(subnet)
    first, last = int(network[2]), int(network[-2])  # behind the gateway, before the broadcast
    used = {int(ipaddress.IPv4Address(address)) for address in taken}
    free = itertools.islice((n for n in range(first, last + 1) if n not in used), count)
    found = [str(ipaddress.IPv4Address(number)) for number in free]
    if len(found) == count:
        return found
    missing = f"{len(found)} of the {count} addresses needed are free in {subnet}"
    raise Conflict(
        f"only {missing}" if found else f"no address of {subnet} is free",
        field="networks",
        hint="delete a VM of this network, or create a network with a larger subnet",
    )
