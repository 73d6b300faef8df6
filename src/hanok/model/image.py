"""Images: what a guest boots from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from hanok.model.base import Frozen
from hanok.model.vm import Mode


class DiskFormat(StrEnum):
    """Formats that Hanok reads and writes; always named, never probed."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True)
class Base:
    """A disk file that an overlay stands on; never written."""

    path: Path
    format: DiskFormat


class Kernel(Frozen):
    """A kernel for direct boot, its files relative to the image's folder."""

    name: str
    vmlinuz: str
    initrd: str
    cmdline: str
    modes: tuple[Mode, ...]


class Image(Frozen):
    """A built or imported image: one folder with these files."""

    id: str = Field(description="hash of everything the content depends on")
    ref: str = Field(description="what users call it: micro, debian:12")
    os: str
    packages: tuple[str, ...] = ()
    disk: str = "disk.qcow2"
    disk_format: DiskFormat = DiskFormat.QCOW2
    disk_size: int = Field(description="virtual size in bytes")
    more_disks: tuple[str, ...] = Field(
        default=(), description="files of raw disks besides the root disk; only ever read"
    )
    kernels: tuple[Kernel, ...] = Field(
        default=(), description="the fastest first; empty: the firmware boots the disk"
    )
    agent: bool = True
    ssh_user: str | None = None
    cloud_init: bool = False
    minimum_memory: int = Field(description="bytes that the guest needs to boot")
    checksums: dict[str, str] = Field(default_factory=dict, description="sha256 by file name")
    created: float = 0
    size: int = Field(default=0, description="bytes on disk")
