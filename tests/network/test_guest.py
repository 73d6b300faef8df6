"""A real guest on a network: QEMU with nothing but the tap's descriptor."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hanok.errors import GuestError
from hanok.model.image import Image
from hanok.network.keepers import KeeperNetworks
from tests.network.conftest import RECORD, Bench, eventually, make_port
from tests.network.frames import FrameGuest

pytestmark = pytest.mark.vm


async def wait_for_refusal(networks: KeeperNetworks, address: str) -> None:
    """Return once a connection is refused: only a guest that has its address does that."""
    message = ""
    while "refused" not in message:
        with pytest.raises(GuestError) as caught:
            await networks.connect(RECORD.name, address, 9, 2)
        message = caught.value.message


@pytest.mark.parametrize("device", ["virtio-net-pci", "e1000e"])
def test_a_guest_gets_its_address_by_dhcp(
    bench: Bench, micro_image: tuple[Image, Path], device: str
) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs QEMU")
    image, folder = micro_image
    kernel = next(kernel for kernel in image.kernels if kernel.name == "generic")
    port = make_port(2)

    def argv(tap: int) -> list[str]:
        start = "qemu-system-x86_64 -M q35 -accel tcg,tb-size=64 -m 256 -nodefaults -nographic"
        return [
            *start.split(),
            *("-kernel", str(folder / kernel.vmlinuz), "-initrd", str(folder / kernel.initrd)),
            *("-append", kernel.cmdline, "-serial", "null", "-snapshot"),
            *("-drive", f"file={folder / image.disk},format={image.disk_format},if=virtio"),
            *("-netdev", f"tap,id=n0,fd={tap}", "-device", f"{device},netdev=n0,mac={port.mac}"),
        ]

    async def body(networks: KeeperNetworks) -> None:
        await networks.ensure(RECORD.model_copy(update={"outward": False}), [])
        other = make_port(3)
        neighbour = FrameGuest(await networks.attach(RECORD.name, other), other.mac, other.address)
        tap = await networks.attach(RECORD.name, port)
        qemu = subprocess.Popen(argv(tap), pass_fds=(tap,))
        os.close(tap)
        try:
            async with asyncio.timeout(90):
                await wait_for_refusal(networks, port.address)
            assert await asyncio.to_thread(neighbour.ping, port.address, port.mac)
        finally:
            neighbour.close()
            qemu.kill()
            qemu.wait()
        await eventually(lambda: "master br0" not in bench.inside("ip", "link"))

    bench.run(body)
