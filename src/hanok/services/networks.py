"""Networks as users see them: made, listed, deleted; started with the first VM that needs them."""

from __future__ import annotations

import ipaddress
import time

import psutil

from hanok.errors import Conflict, InvalidInput, NotFound
from hanok.model.network import NetworkRecord, NetworkSpec
from hanok.model.views import NetworkView
from hanok.model.vm import VmRecord
from hanok.network.base import free_subnet
from hanok.services.events import make_event
from hanok.services.operations import Operations
from hanok.services.parts import Parts
from hanok.services.shape import claimed_nics
from hanok.store.base import DeleteNetwork, PutNetwork

DEFAULT = "default"
_UIDS = 5_000
_UID_OFFSET = 60_000


class NetworkService:
    """What users ask of networks."""

    def __init__(self, parts: Parts, operations: Operations) -> None:
        self._parts = parts
        self._operations = operations

    async def create(self, spec: NetworkSpec, stack: str | None = None) -> NetworkRecord:
        """Make a network. Raises Conflict when it exists, InvalidInput when its subnet overlaps."""
        existing = await self._parts.store.networks()
        if any(network.name == spec.name for network in existing):
            raise Conflict(f"a network named {spec.name} exists already", field="name")
        taken = [network.subnet for network in existing] + _host_subnets()
        subnet = spec.subnet or free_subnet(taken)
        _check_overlap(subnet, taken)
        base = self._parts.settings.uid_base + _UID_OFFSET
        uids = {network.uid for network in existing}
        record = NetworkRecord(
            name=spec.name,
            subnet=subnet,
            outward=spec.outward,
            uid=next(uid for uid in range(base, base + _UIDS) if uid not in uids),
            created=time.time(),
            stack=stack,
        )
        event = make_event("network", spec.name, "created", subnet)
        await self._parts.events.commit(PutNetwork(record), event=event)
        return record

    async def find_or_default(self, name: str) -> NetworkRecord:
        """Return a network; the one named ``default`` is made when it is first needed."""
        try:
            return await self._parts.network(name)
        except NotFound:
            if name != DEFAULT:
                raise
        return await self.create(NetworkSpec(name=DEFAULT))

    async def delete(self, name: str) -> None:
        """Remove a network. Raises Conflict naming the VMs on it."""
        record = await self._parts.network(name)
        users = await self._users(name)
        if all(vm.internal for vm in users):
            # Hanok's own, which no user sees: warm starts that are being made.
            for vm in users:
                await self._operations.supersede(vm.spec.name, ("warm",), undo=True)
            users = await self._users(name)
        if users:
            shown = [vm.spec.name for vm in users if not vm.internal] or [users[0].spec.name]
            raise Conflict(
                f"the network {name} is used by {', '.join(shown)}", hint="delete those VMs first"
            )
        await self._parts.networks.stop(record.name)
        event = make_event("network", name, "deleted")
        await self._parts.events.commit(DeleteNetwork(name), event=event)

    async def _users(self, name: str) -> list[VmRecord]:
        vms = await self._parts.store.vms()
        return [vm for vm in vms if any(nic.network == name for nic in claimed_nics(vm))]

    async def view(self, record: NetworkRecord) -> NetworkView:
        """Return what the API shows of a network."""
        status = await self._parts.networks.status(record.name)
        return NetworkView(
            name=record.name,
            subnet=record.subnet,
            gateway=record.gateway,
            outward=status.outward,
            running=status.running,
            reason=status.reason,
            vms=[vm.spec.name for vm in await self._users(record.name) if not vm.internal],
        )

    async def list(self) -> list[NetworkView]:
        """Return all networks."""
        return [await self.view(record) for record in await self._parts.store.networks()]


def _host_subnets() -> list[str]:
    """Return the IPv4 networks that the host itself is on: ours must differ from them."""
    found: list[str] = []
    for addresses in psutil.net_if_addrs().values():
        for item in addresses:
            if item.family.name == "AF_INET" and item.netmask:
                interface = ipaddress.IPv4Interface(f"{item.address}/{item.netmask}")
                if not interface.is_loopback:
                    found.append(str(interface.network))
    return found


def _check_overlap(subnet: str, taken: list[str]) -> None:
    wanted = ipaddress.IPv4Network(subnet)
    for other in taken:
        if wanted.overlaps(ipaddress.IPv4Network(other)):
            raise InvalidInput(
                f"the subnet {subnet} overlaps {other}, which is in use",
                field="subnet",
                expected="a subnet of its own",
            )
