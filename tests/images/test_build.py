"""Real builds: micro boots in both modes with plain QEMU; a build that is killed leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hanok.guest.seed import SeedData, build_seed
from hanok.images.library import ImageLibrary
from hanok.images.locks import hold
from hanok.images.recipes import resolve
from hanok.model.image import Image
from hanok.model.vm import Mode
from hanok.proc import SystemRunner
from tests.images.plain import boot, press_power_button

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds as another uid need root"),
]

_SCRIPT = """#!/bin/sh
echo served > /srv/page
exec httpd -f -p 8000 -h /srv
"""
_BUILD = """
import asyncio, sys
from pathlib import Path
from hanok.images.library import ImageLibrary
from hanok.proc import SystemRunner
tell = lambda message, fraction: print(message, flush=True)
asyncio.run(ImageLibrary(Path(sys.argv[1]), SystemRunner()).ensure("micro", (), tell))
"""


async def test_micro_is_built_whole(short_tmp: Path, runner: SystemRunner) -> None:
    library = ImageLibrary(short_tmp / "images", runner)
    told: list[float] = []
    image = await library.ensure("micro", (), lambda _, fraction: told.append(fraction or 0))
    await library.verify(image)
    assert told == sorted(told)
    assert told[-1] == 1
    assert {path.name for path in (short_tmp / "images").iterdir()} == {".apt-cache", image.id}
    assert list((short_tmp / "images/.apt-cache").rglob("linux-image-*.deb"))


@pytest.mark.parametrize("mode", [Mode.PARA, Mode.FULL])
async def test_micro_boots(
    micro_image: tuple[Image, Path], mode: Mode, short_tmp: Path, runner: SystemRunner
) -> None:
    image, folder = micro_image
    disk, seed = short_tmp / "disk.qcow2", short_tmp / "seed.iso"
    base = ["-b", str(folder / image.disk), "-F", "qcow2"]
    await runner.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk), "256M"])
    data = SeedData(instance_id="one", host_name="house", user_data=_SCRIPT, cloud_init=False)
    seed.write_bytes(build_seed(data))
    memory = image.minimum_memory >> 20

    async with boot(image, folder, mode, disk, seed, short_tmp, memory) as (guest, ended):
        fetch = "until wget -qO- http://127.0.0.1:8000/page 2>/dev/null; do sleep 0.1; done"
        assert await guest.shell(fetch) == "served\n"
        assert await guest.shell("hostname") == "house\n"
        virtio = await guest.shell("ls /sys/bus/virtio/devices 2>/dev/null; true")
        assert bool(virtio) == (mode is Mode.PARA)
        assert "10.0.2.15/24" in await guest.shell("ip -4 addr show eth0")
        await guest.shell("until [ $(df -m / | awk 'END{print $2}') -gt 200 ]; do sleep 0.1; done")
        await guest.shell("echo kept > /root/file && sync")
        await press_power_button(short_tmp)
        async with asyncio.timeout(60):
            await asyncio.shield(ended)

    async with boot(image, folder, mode, disk, seed, short_tmp, memory) as (guest, ended):
        assert await guest.shell("cat /root/file") == "kept\n"
        guest.send("guest-shutdown")
        async with asyncio.timeout(60):
            await asyncio.shield(ended)


@pytest.mark.parametrize("moment", ["unpacking the base system", "writing the disk"])
async def test_a_killed_build_leaves_nothing(short_tmp: Path, moment: str) -> None:
    images = short_tmp / "images"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _BUILD, str(images)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    while moment.encode() not in (line := await process.stdout.readline()):
        assert line, "the build ended early"
    process.send_signal(signal.SIGKILL)
    await process.wait()

    # The lock is held until the last process of the build has ended.
    lock = images / f".lock-{resolve('micro').id}"
    async with asyncio.timeout(60), hold(lock):
        pass
    assert list(images.glob(".build-*"))
    library = ImageLibrary(images, SystemRunner())
    library.sweep()
    assert list(images.iterdir()) == []
    assert library.list() == []
