"""Images: what a guest boots from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from hanok.model.architecture import Arch
from hanok.model.base import Frozen, Name
from hanok.model.vm import Firmware, ImageRef, Mode


class DiskFormat(StrEnum):
    """Formats that Hanok reads and writes; always named, never probed."""

    QCOW2 = "qcow2"
    RAW = "raw"


class ForeignFormat(StrEnum):
    """Formats of files that are imported; what is kept of disks is qcow2."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"
    OVA = "ova"
    KERNEL = "kernel"


class ExportFormat(StrEnum):
    """Formats that a disk can be exported in; VMDK is ``monolithicSparse``."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"


@dataclass(frozen=True)
class Base:
    """A disk file that an overlay stands on; never written."""

    path: Path
    format: DiskFormat


class BareHypervisor(Frozen):
    """A Type 1 hypervisor that boots first, a multiboot file of the image's folder.

    The kernel that comes with it is that of its management domain, Dom0.
    """

    file: str
    cmdline: str


class Kernel(Frozen):
    """A kernel for direct boot, its files relative to the image's folder."""

    name: str
    vmlinuz: str
    initrd: str
    cmdline: str
    modes: tuple[Mode, ...]
    hypervisor: BareHypervisor | None = None
    bzimage: str | None = Field(
        default=None,
        description="the same as a PC's firmware starts it, where vmlinuz is an ELF file",
    )
    bare: bool = Field(
        default=False, description="a stranger's, of any system: started as it is, without disks"
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all its files."""
        below = () if self.hypervisor is None else (self.hypervisor.file,)
        other = () if self.bzimage is None else (self.bzimage,)
        initrd = (self.initrd,) if self.initrd else ()
        return (self.vmlinuz, *initrd, *other, *below)


class ImportRequest(Frozen):
    """What is said of a disk that others made, besides its bytes."""

    name: Name = Field(description="the new image is called own:NAME")
    file: str = Field(default="disk", max_length=255, description="what the file was called")
    format: ForeignFormat | None = Field(
        default=None,
        description="null: OVA, qcow2, VMDK or a raw disk with a boot sector, as it says",
    )
    firmware: Firmware | None = Field(
        default=None, description="what boots it; null: as its first sectors say"
    )
    os: str | None = Field(default=None, max_length=100, description="what system it is")
    ssh_user: str | None = Field(
        default=None, pattern=r"^[a-z_][a-z0-9_-]{0,31}$", description="whom its cloud-init lets in"
    )
    cloud_init: bool = Field(default=True, description="whether it may have cloud-init")
    agent: bool = Field(default=False, description="whether qemu-guest-agent answers in it")
    cmdline: str | None = Field(
        default=None, max_length=1024, pattern=r"^[ -~]*$", description="of a file that is a kernel"
    )


class ExportRequest(Frozen):
    """How a disk is to be exported."""

    format: ExportFormat = ExportFormat.QCOW2


class PullRequest(Frozen):
    """An image of the catalog to download."""

    image: ImageRef
    name: Name | None = Field(
        default=None, description="it is called own:NAME; null: by its name in the catalog"
    )


class Imported(Frozen):
    """Where an image came from: the file's name, its format and SHA-256.

    ``pulled``: the digest that the catalog pins, for one that was downloaded.
    """

    file: str
    format: ForeignFormat
    sha256: str
    pulled: str | None = None


class Appliance(Frozen):
    """What the descriptor of an appliance asks for, where the user says nothing else."""

    cpus: int | None = None
    memory: int | None = Field(default=None, description="bytes")
    nics: tuple[str, ...] = Field(default=(), description="the networks that its cards were on")


class DataDisk(Frozen):
    """A disk besides the root disk, of which each VM has a copy of its own: qcow2."""

    file: str
    size: int = Field(description="virtual size in bytes")


class Image(Frozen):
    """A built or imported image: one folder with these files."""

    id: str = Field(description="hash of everything the content depends on")
    ref: str = Field(description="what users call it: micro, debian:12")
    os: str
    packages: tuple[str, ...] = ()
    architecture: Arch = Arch.AMD64
    disk: str = "disk.qcow2"
    disk_format: DiskFormat = DiskFormat.QCOW2
    disk_size: int = Field(description="virtual size in bytes")
    more_disks: tuple[str, ...] = Field(
        default=(), description="files of raw disks besides the root disk; only ever read"
    )
    data_disks: tuple[DataDisk, ...] = Field(
        default=(), description="further disks, each VM's to write"
    )
    kernels: tuple[Kernel, ...] = Field(
        default=(), description="the fastest first; empty: the firmware boots the disk"
    )
    made_from: str | None = Field(
        default=None, description="id of the image that this one was made of; null: it was built"
    )
    imported: Imported | None = Field(default=None, description="null: it was made by Hanok")
    appliance: Appliance | None = Field(default=None, description="of an OVA or OVF")
    firmware: tuple[Firmware, ...] = Field(
        default=(), description="what can boot its disk, the first by default; with kernels: none"
    )
    agent: bool = Field(default=True, description="whether an agent is expected in its guests")
    ssh_user: str | None = None
    cloud_init: bool = False
    minimum_memory: int = Field(description="bytes that the guest needs to boot")
    checksums: dict[str, str] = Field(default_factory=dict, description="sha256 by file name")
    created: float = 0
    size: int = Field(default=0, description="bytes on disk")
