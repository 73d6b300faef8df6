"""What an overlay's header names is compared with what it should, on files of qemu-img."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Base, Disk
from hanok.hypervisors.xen.backing import Backing, check_backing, read_backing
from hanok.model.image import DiskFormat


def make(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), "1M"], check=True)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    lowest = make(tmp_path / "lowest.img", "-f", "raw")
    base = make(tmp_path / "base.qcow2", "-f", "qcow2", "-F", "raw", "-b", str(lowest))
    top = make(tmp_path / "top.qcow2", "-f", "qcow2", "-F", "qcow2", "-b", str(base))
    bases = (Base(base, DiskFormat.QCOW2), Base(lowest, DiskFormat.RAW))
    return Disk("root", top, DiskFormat.QCOW2, bases=bases)


def test_what_stands_as_it_should_passes(disk: Disk) -> None:
    check_backing(disk)
    assert read_backing(disk.path) == Backing(str(disk.bases[0].path), "qcow2")


def test_a_raw_disk_has_no_header_that_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw")
    check_backing(Disk("d", path, DiskFormat.RAW))


def test_another_file_is_refused(disk: Disk) -> None:
    make(disk.path, "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw")
    with pytest.raises(HypervisorError, match="/etc/shadow"):
        check_backing(disk)


def test_a_base_that_names_another_file_is_refused(disk: Disk) -> None:
    make(disk.bases[0].path, "-f", "qcow2", "-u", "-b", "json:{}", "-F", "raw")
    with pytest.raises(HypervisorError, match="json:"):
        check_backing(disk)


def test_a_base_where_there_should_be_none_is_refused(disk: Disk) -> None:
    with pytest.raises(HypervisorError, match="not nothing"):
        check_backing(dataclasses.replace(disk, bases=()))


def test_another_format_is_refused(disk: Disk) -> None:
    make(disk.path, "-f", "qcow2", "-F", "raw", "-u", "-b", str(disk.bases[0].path))
    with pytest.raises(HypervisorError, match="raw"):
        check_backing(disk)


def test_a_data_file_is_refused(tmp_path: Path) -> None:
    options = f"data_file={tmp_path / 'data'}"
    path = make(tmp_path / "x.qcow2", "-f", "qcow2", "-o", options)
    with pytest.raises(HypervisorError, match="not allowed"):
        check_backing(Disk("d", path, DiskFormat.QCOW2))


@pytest.mark.parametrize("data", [b"", b"QFI", b"QFI\xfb" + b"\xff" * 200, b"x" * 70000])
def test_nonsense_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.qcow2"
    path.write_bytes(data)
    with pytest.raises(HypervisorError):
        check_backing(Disk("d", path, DiskFormat.QCOW2))


def test_a_missing_file_and_a_link_are_refused(tmp_path: Path, disk: Disk) -> None:
    with pytest.raises(HypervisorError, match="missing"):
        read_backing(tmp_path / "missing.qcow2")
    link = tmp_path / "link.qcow2"
    link.symlink_to(disk.path)
    with pytest.raises(HypervisorError):
        read_backing(link)
