"""What was read from a kernel and its initrd, and the modes that a guest with them can run in."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from hanok.model.base import Frozen, Name
from hanok.model.vm import Mode, Package


class KernelFormat(StrEnum):
    """Files that hypervisors start."""

    BZIMAGE = "bzImage"
    VMLINUX = "vmlinux"
    MULTIBOOT = "multiboot"


class Found(StrEnum):
    """Where a driver is."""

    BUILT_IN = "built-in"
    INITRD = "initrd"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Answer(StrEnum):
    """Whether a guest can run in a mode; unknown when the files do not tell."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Platform(StrEnum):
    """Hypervisors whose demands on a kernel are known."""

    QEMU = "qemu"
    XEN = "xen"


class XenNotes(Frozen):
    """The ELF notes with the name Xen (xen/include/public/elfnote.h)."""

    guest_os: str | None = None
    guest_version: str | None = None
    xen_version: str | None = None
    loader: str | None = None
    features: str | None = None
    pv_entry: int | None = Field(default=None, description="virtual address of the PV entry")
    hypercall_page: int | None = None
    pvh_entry: int | None = Field(default=None, description="physical address, PHYS32_ENTRY")
    dom0: bool | None = Field(default=None, description="whether its notes say that it can be Dom0")


class KernelFacts(Frozen):
    """What a kernel says of itself."""

    format: KernelFormat
    arch: str
    version: str | None = None
    boot_protocol: str | None = Field(default=None, description="Linux boot protocol, bzImage only")
    compression: str | None = None
    size: int = Field(description="bytes of the file")
    built_in: tuple[str, ...] | None = Field(
        default=None, description="drivers that its own configuration names; null: it has none"
    )
    xen: XenNotes | None = None


class InitrdFacts(Frozen):
    """What an initrd holds."""

    archives: tuple[str, ...] = Field(description="how each is compressed; none: not at all")
    entries: int
    releases: tuple[str, ...] = Field(description="kernel releases that its modules are for")
    modules: tuple[str, ...]
    built_in: tuple[str, ...] | None = Field(
        default=None, description="drivers that its modules.builtin names; null: no such list"
    )


class DriverFacts(Frozen):
    """A driver that some mode asks for."""

    name: str
    purpose: str
    found: Found


class ModeVerdict(Frozen):
    """Whether a guest can run in one mode of one hypervisor."""

    hypervisor: Platform
    mode: Mode
    can: Answer
    lacks: tuple[str, ...] = Field(default=(), description="why not, or why it is not known")
    notes: tuple[str, ...] = ()


class KernelReport(Frozen):
    """Everything about one kernel with its initrd."""

    name: str
    kernel: KernelFacts
    initrd: InitrdFacts | None
    drivers: tuple[DriverFacts, ...]
    modes: tuple[ModeVerdict, ...]


class KernelFailure(Frozen):
    """A kernel that could not be read, and why."""

    name: str
    why: str


class ImageKernels(Frozen):
    """What was read from all kernels of an image."""

    image: str
    kernels: tuple[KernelReport, ...] = ()
    failures: tuple[KernelFailure, ...] = ()


class Paravirtualization(Frozen):
    """What is asked of a new image that is made of another."""

    hypervisor: Platform | None = Field(
        default=None, description="whose paravirtualization it must suit; null: of all"
    )
    kernel_package: Package = Field(
        default="linux-image-amd64", description="a Debian package with a kernel"
    )
    name: Name | None = Field(default=None, description="the new image is called own:NAME")
