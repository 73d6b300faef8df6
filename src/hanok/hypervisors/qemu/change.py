"""Changes of a running QEMU: vCPUs, balloon, disk size, disks and cards in hot-plug ports.

Each looks first at what there is, so that it can be done again after a crash. Sources: QEMU,
docs/interop/qemu-qmp-ref (machine.json, block-core.json, net.json), docs/system/cpu-hotplug.rst;
q35 unplugs by ACPI, which the guest has to answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Disk, Nic
from hanok.hypervisors.blockdev import node_options
from hanok.hypervisors.optional import NotLive
from hanok.hypervisors.qemu.argv import (
    disk_name,
    hotplug_disk,
    hotplug_nic,
    nic_name,
    port_name,
    ram_size,
)
from hanok.hypervisors.qemu.process import QemuProcess
from hanok.units import format_size

_GUEST_LIMIT = 20.0
_POLL = 0.1
_DEVICES = "/machine/peripheral"
_CPU = "hotcpu"
_ROOT = "disk0"
_RESTART = "it takes a restart ('hanok restart')"


async def set_cpus(process: QemuProcess, cpus: int) -> None:
    """See CanResize.set_cpus."""
    slots = await _cpu_slots(process)
    present = sum("qom-path" in slot for slot in slots)
    if cpus > len(slots):
        raise NotLive(
            f"it was started with room for {len(slots)} vCPUs and no more; {_RESTART}",
        )
    if cpus > present:
        free = [slot for slot in slots if "qom-path" not in slot]
        for slot in sorted(free, key=_core)[: cpus - present]:
            arguments = {"driver": slot["type"], "id": f"{_CPU}{_core(slot)}", **_props(slot)}
            await process.execute("device_add", arguments)
    elif cpus < present:
        # QEMU 7.2 unplugs one if the guest lets it go, and was seen to crash minutes later.
        raise NotLive(f"QEMU takes no vCPUs from a machine that runs; {_RESTART}")


async def _cpu_slots(process: QemuProcess) -> list[Mapping[str, object]]:
    return _list(await process.execute("query-hotpluggable-cpus"))


def _props(slot: Mapping[str, object]) -> dict[str, object]:
    props = slot.get("props")
    return dict(props) if isinstance(props, Mapping) else {}


def _core(slot: Mapping[str, object]) -> int:
    return int(str(_props(slot).get("core-id", 0)))


async def set_memory(process: QemuProcess, memory: int, started: int) -> None:
    """See CanResize.set_memory: by the balloon."""
    most = ram_size(started)
    wanted = min(ram_size(memory), most)
    if await _balloon(process) is None:
        raise NotLive(f"it has no balloon (in mode full none can be); {_RESTART}")
    await process.execute("balloon", {"value": wanted})

    async def has() -> int | None:
        return await _balloon(process)

    reached = await _settled(has, wanted)
    if memory > started:
        raise NotLive(
            f"it was started with {format_size(started)} and no room for more; {_RESTART}"
        )
    if reached is not None and reached > wanted:
        raise NotLive(
            f"its guest has given back no more than {format_size(most - reached)} so far;"
            " the rest takes a restart ('hanok restart')"
        )


async def _balloon(process: QemuProcess) -> int | None:
    """Return the bytes that the guest has now; None without a balloon."""
    try:
        answer = await process.execute("query-balloon")
    except HypervisorError:
        await process.check_alive()
        return None
    return int(str(answer.get("actual"))) if isinstance(answer, Mapping) else None


async def grow_disk(process: QemuProcess, size: int) -> None:
    """See CanResize.grow_disk. QEMU itself would cut a disk off as well."""
    nodes = await _nodes(process)
    image = nodes.get(_ROOT, {}).get("image")
    now = int(str(image.get("virtual-size"))) if isinstance(image, Mapping) else None
    if now is None:
        raise HypervisorError(f"QEMU does not tell how large the disk {_ROOT} is")
    if now < size:
        await process.execute("block_resize", {"node-name": _ROOT, "size": size})


async def _nodes(process: QemuProcess) -> dict[str, Mapping[str, object]]:
    """Return the block nodes by their names."""
    answer = await process.execute("query-named-block-nodes", {"flat": True})
    return {str(node.get("node-name")): node for node in _list(answer)}


def _list(answer: object) -> list[Mapping[str, object]]:
    return answer if isinstance(answer, list) else []


async def attach_disk(process: QemuProcess, disk: Disk) -> None:
    """See CanHotplug.attach_disk."""
    port = await _port(process, disk.port)
    name = disk_name(port)
    if f"{name}-dev" in await _devices(process):
        return
    async with contextlib.AsyncExitStack() as undo:
        await _drop_nodes(process, name)  # of a try that a crash ended
        undo.push_async_callback(_drop_nodes, process, name)
        for node in node_options(name, disk):
            await process.execute("blockdev-add", node)
        await process.execute("device_add", hotplug_disk(port, disk))
        undo.pop_all()


async def detach_disk(process: QemuProcess, disk: Disk) -> None:
    """See CanHotplug.detach_disk."""
    port = await _port(process, disk.port)
    await _unplug(process, f"{disk_name(port)}-dev")
    await _drop_nodes(process, disk_name(port))


async def _drop_nodes(process: QemuProcess, name: str) -> None:
    """Close the nodes of a disk that no device uses; those that are not there are gone."""
    nodes = await _nodes(process)
    # A device that is gone lets go of its disk a moment later (QEMU frees it by RCU).
    closing = AsyncRetrying(
        stop=stop_after_delay(_GUEST_LIMIT),
        wait=wait_fixed(_POLL),
        retry=retry_if_exception(lambda error: "is in use" in str(error)),
        reraise=True,
    )
    for node in (name, f"{name}-file"):
        if node in nodes:
            await closing(process.execute, "blockdev-del", {"node-name": node})


async def attach_nic(process: QemuProcess, nic: Nic, tap: int) -> None:
    """See CanHotplug.attach_nic."""
    port = await _port(process, nic.port)
    name = nic_name(port)
    # A card of an earlier try has a tap that is gone: the network has made another since.
    await _unplug(process, f"{name}-dev")
    async with contextlib.AsyncExitStack() as undo:
        await _drop_netdev(process, name)
        await process.give(name, tap)
        netdev = {"type": "tap", "id": name, "fd": name, "vhost": False}
        await process.execute("netdev_add", netdev)
        undo.push_async_callback(_drop_netdev, process, name)
        await process.execute("device_add", hotplug_nic(port, nic))
        undo.pop_all()


async def detach_nic(process: QemuProcess, nic: Nic) -> None:
    """See CanHotplug.detach_nic."""
    port = await _port(process, nic.port)
    await _unplug(process, f"{nic_name(port)}-dev")
    await _drop_netdev(process, nic_name(port))


async def _drop_netdev(process: QemuProcess, name: str) -> None:
    """Close what is behind a card that is gone, if it is there."""
    try:
        await process.execute("netdev_del", {"id": name})
    except HypervisorError as error:
        await process.check_alive()
        if "not found" not in error.message:
            raise


async def _port(process: QemuProcess, port: int | None) -> int:
    """Return a hot-plug port that the machine has. Raises NotLive when it has not."""
    if port is None:
        raise NotLive(f"it is in a place that a machine starts with; {_RESTART}")
    if port_name(port) not in await _devices(process):
        raise NotLive(
            "it was started without hot-plug ports (as mode full is, and VMs of an earlier"
            f" Hanok); {_RESTART}"
        )
    return port


async def _devices(process: QemuProcess) -> set[str]:
    """Return the names of all devices that have one."""
    answer = await process.execute("qom-list", {"path": _DEVICES})
    return {str(entry.get("name")) for entry in _list(answer)}


async def _unplug(process: QemuProcess, device: str) -> None:
    """Unplug a device; returns when the guest has let it go. Raises NotLive when it does not."""
    if device not in await _devices(process):
        return
    try:
        await process.execute("device_del", {"id": device})
    except HypervisorError as error:
        if "in the process of unplug" not in error.message:
            raise

    async def there() -> bool:
        return device in await _devices(process)

    if await _settled(there, wanted=False):
        raise NotLive(
            f"its guest has not let go of the device within {_GUEST_LIMIT:g} s: does it use it"
            " still? Ask again once it does not, or restart it"
        )


async def _settled(look: Callable[[], Awaitable[object]], wanted: object) -> Any:
    """Look until it is ``wanted``, for as long as a guest may take; return what was seen last."""
    waiting = AsyncRetrying(
        stop=stop_after_delay(_GUEST_LIMIT),
        wait=wait_fixed(_POLL),
        retry=retry_if_result(lambda seen: seen != wanted),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    return await waiting(look)
