"""Changes of a running domain by ``xl``: vCPUs, memory, disks and cards of PV and PVH.

Each looks first at what there is, so that it can be done again after a crash. A domain of mode full
has emulated devices only, and none of this. Source: xl(1) of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.optional import NotLive
from hanok.hypervisors.xen.config import disk_text, nic_text, port_vdev
from hanok.hypervisors.xen.domain import Domain
from hanok.hypervisors.xen.toolstack import Toolstack
from hanok.model.vm import Mode
from hanok.units import MIB, format_size

_RESTART = "it takes a restart ('hanok restart')"


async def set_cpus(xen: Toolstack, domain: Domain, cpus: int) -> None:
    """See CanResize.set_cpus: a domain has room for as many as it was started with."""
    _check_mode(domain, "vCPUs")
    most = await _room_for_cpus(xen, domain.domid)
    if cpus > most:
        raise NotLive(f"its domain was made with room for {most} vCPUs and no more; {_RESTART}")
    await xen.set_vcpus(domain.domid, cpus)


async def _room_for_cpus(xen: Toolstack, domid: int) -> int:
    root = f"/local/domain/{domid}/cpu"
    nodes = await xen.tree(root)
    return len({path.removeprefix(f"{root}/").partition("/")[0] for path in nodes})


async def set_memory(xen: Toolstack, domain: Domain, memory: int, started: int) -> None:
    """See CanResize.set_memory: by the balloon, up to what the domain was started with."""
    _check_mode(domain, "memory")
    await xen.set_memory(domain.domid, -(-min(memory, started) // MIB))
    if memory > started:
        raise NotLive(
            f"its domain was made with {format_size(started)} and no room for more; {_RESTART}"
        )


def grow_disk(domain: Domain) -> None:
    """See CanResize.grow_disk: the back end keeps the size that it has opened."""
    raise NotLive(
        f"the back end of {domain.machine.name} in Dom0 keeps the size of a disk that is open;"
        f" {_RESTART}"
    )


async def attach_disk(xen: Toolstack, domain: Domain, disk: Disk) -> None:
    """See CanHotplug.attach_disk. Its header must have been looked at."""
    port = _port(domain, disk.port)
    if not await _has_disk(xen, domain.domid, port):
        await xen.attach_block(domain.domid, disk_text(port_vdev(port), disk))


async def detach_disk(xen: Toolstack, domain: Domain, disk: Disk) -> None:
    """See CanHotplug.detach_disk."""
    port = _port(domain, disk.port)
    if await _has_disk(xen, domain.domid, port):
        await xen.detach_block(domain.domid, port_vdev(port))
    if await _has_disk(xen, domain.domid, port):
        raise NotLive(f"its guest has not let go of the disk: is it mounted there? or {_RESTART}")


async def _has_disk(xen: Toolstack, domid: int, port: int) -> bool:
    nodes = await xen.tree(f"/local/domain/0/backend/qdisk/{domid}")
    wanted = port_vdev(port)
    return any(path.endswith("/dev") and value == wanted for path, value in nodes.items())


async def attach_nic(
    xen: Toolstack, domain: Domain, nic: Nic, plug_in: Callable[[int], Awaitable[None]]
) -> None:
    """See CanHotplug.attach_nic; ``plug_in`` puts the card of a number into its network."""
    _port(domain, nic.port)
    number = await _card(xen, domain.domid, nic)
    if number is None:
        await xen.attach_network(domain.domid, nic_text(nic))
        number = await _card(xen, domain.domid, nic)
    if number is None:
        raise HypervisorError(f"Xen has made no card {nic.mac} for {domain.machine.name}")
    await plug_in(number)


async def detach_nic(xen: Toolstack, domain: Domain, nic: Nic) -> None:
    """See CanHotplug.detach_nic."""
    _port(domain, nic.port)
    number = await _card(xen, domain.domid, nic)
    if number is not None:
        await xen.detach_network(domain.domid, number)


async def _card(xen: Toolstack, domid: int, nic: Nic) -> int | None:
    """Return the number of the card with this MAC, None when there is none."""
    nodes = await xen.tree(f"/local/domain/0/backend/vif/{domid}")
    for path, value in nodes.items():
        parts = path.split("/")
        if parts[-1] == "mac" and value.lower() == nic.mac.lower() and parts[-2].isdigit():
            return int(parts[-2])
    return None


# What a domain is made of again when its guest restarts has to have what was plugged in since.


def with_disk(machine: Machine, disk: Disk) -> Machine:
    """Return ``machine`` with ``disk`` in its port."""
    return replace(machine, disks=(*without(machine, disk.port).disks, disk))


def with_nic(machine: Machine, nic: Nic) -> Machine:
    """Return ``machine`` with ``nic`` in its port."""
    return replace(machine, nics=(*without(machine, nic.port).nics, nic))


def without(machine: Machine, port: int | None) -> Machine:
    """Return ``machine`` with nothing in ``port``."""
    if port is None:
        return machine
    return replace(
        machine,
        disks=tuple(disk for disk in machine.disks if disk.port != port),
        nics=tuple(nic for nic in machine.nics if nic.port != port),
    )


def _port(domain: Domain, port: int | None) -> int:
    _check_mode(domain, "devices")
    if port is None:
        raise NotLive(f"it is in a place that a machine starts with; {_RESTART}")
    return port


def _check_mode(domain: Domain, what: str) -> None:
    if domain.machine.mode is Mode.FULL:
        raise NotLive(f"the {what} of a running VM in mode full cannot be changed; {_RESTART}")
