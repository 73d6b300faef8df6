"""What a guest may write in place of a read-only disk, and that the disk itself stays as it is."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from hanok.hypervisors.base import Disk
from hanok.hypervisors.xen.backing import Backing, check_backing, read_backing
from hanok.hypervisors.xen.covers import cover, remove_covers
from hanok.model.image import DiskFormat
from hanok.proc import SystemRunner
from tests.hypervisors.xen.test_config import FULL, HYBRID

pytestmark = pytest.mark.vm  # needs qemu-img


async def test_a_read_only_disk_is_covered_and_never_written(tmp_path: Path) -> None:
    content = bytes(range(256)) * 256
    seed = Disk("seed", tmp_path / "seed.iso", DiskFormat.RAW, read_only=True)
    seed.path.write_bytes(content)
    machine = dataclasses.replace(HYBRID, folder=tmp_path, disks=(seed,))
    covered = await cover(machine, SystemRunner())
    (disk,) = covered.disks
    check_backing(disk)
    assert read_backing(disk.path) == Backing(str(seed.path), "raw")
    assert not disk.read_only
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 0xaa 0 64k", str(disk.path)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert seed.path.read_bytes() == content

    # What a guest wrote is gone at the next start.
    (again,) = (await cover(machine, SystemRunner())).disks
    assert again == disk
    shown = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x00 0 1", str(disk.path)],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "Pattern verification failed" not in shown.stdout
    remove_covers(tmp_path)
    assert list(tmp_path.iterdir()) == [seed.path]


async def test_disks_that_a_guest_may_write_and_those_of_mode_full_stay(tmp_path: Path) -> None:
    disk = Disk("root", tmp_path / "disk.raw", DiskFormat.RAW)
    para = dataclasses.replace(HYBRID, folder=tmp_path, disks=(disk,))
    assert await cover(para, SystemRunner()) == para
    assert await cover(FULL, SystemRunner()) == FULL
    assert list(tmp_path.iterdir()) == []
