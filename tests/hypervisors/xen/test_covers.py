"""What a guest may write in place of a read-only disk, and that the disk itself stays as it is."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from hanok.errors import HostError
from hanok.hypervisors.base import Disk
from hanok.hypervisors.xen.backing import Backing, check_backing, read_backing
from hanok.hypervisors.xen.covers import cover, remove_covers
from hanok.model.image import DiskFormat
from hanok.proc import SystemRunner
from hanok.units import MIB
from tests.hypervisors.xen.test_config import FULL, HYBRID

pytestmark = pytest.mark.vm  # needs qemu-img


@pytest.mark.parametrize("format", [DiskFormat.RAW, DiskFormat.QCOW2])
async def test_a_read_only_disk_is_covered_and_never_written(
    tmp_path: Path, format: DiskFormat
) -> None:
    seed = _read_only(tmp_path, format, 1 * MIB)
    seed.path.chmod(0o640)
    content = seed.path.read_bytes()
    machine = dataclasses.replace(HYBRID, folder=tmp_path, disks=(seed,))
    (disk,) = (await cover(machine, SystemRunner())).disks
    check_backing(disk)
    assert not disk.read_only
    assert disk.format is format
    if format is DiskFormat.RAW:  # a copy, of what may be secret
        assert disk.path.read_bytes() == content
        assert disk.path.stat().st_mode & 0o777 == 0o600
    _io(disk, "write -P 0xaa 0 64k")
    assert seed.path.read_bytes() == content

    # What a guest wrote is gone at the next start.
    (again,) = (await cover(machine, SystemRunner())).disks
    assert again == disk
    assert "failed" not in _io(again, "read -P 0x17 0 64k")
    remove_covers(tmp_path)
    assert list(tmp_path.iterdir()) == [seed.path]


async def test_a_large_disk_is_not_copied(tmp_path: Path) -> None:
    large = _read_only(tmp_path, DiskFormat.RAW, 17 * MIB)
    machine = dataclasses.replace(HYBRID, folder=tmp_path, disks=(large,))
    (disk,) = (await cover(machine, SystemRunner())).disks
    check_backing(disk)
    assert read_backing(disk.path) == Backing(str(large.path), "raw")
    assert disk.path.stat().st_blocks * 512 < 1 * MIB
    assert "failed" not in _io(disk, "read -P 0x17 0 64k")


async def test_a_copy_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    seed = _read_only(tmp_path, DiskFormat.RAW, 1 * MIB)
    machine = dataclasses.replace(HYBRID, folder=tmp_path / "gone", disks=(seed,))
    with pytest.raises(HostError, match=r"gone/seed.cover.raw could not be written: No such"):
        await cover(machine, SystemRunner())


def _read_only(folder: Path, format: DiskFormat, size: int) -> Disk:
    """Return a disk that begins with 64 KiB of 0x17."""
    disk = Disk("seed", folder / f"seed.{format}", format, read_only=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", str(format), disk.path, str(size)], check=True
    )
    _io(disk, "write -P 0x17 0 64k")
    return disk


def _io(disk: Disk, command: str) -> str:
    done = subprocess.run(
        ["qemu-io", "-f", str(disk.format), "-c", command, str(disk.path)],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


async def test_disks_that_a_guest_may_write_and_those_of_mode_full_stay(tmp_path: Path) -> None:
    disk = Disk("root", tmp_path / "disk.raw", DiskFormat.RAW)
    para = dataclasses.replace(HYBRID, folder=tmp_path, disks=(disk,))
    assert await cover(para, SystemRunner()) == para
    assert await cover(FULL, SystemRunner()) == FULL
    assert list(tmp_path.iterdir()) == []
