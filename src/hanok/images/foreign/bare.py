"""Kernels that QEMU starts by itself, without a boot loader: what a file says of itself. Pure.

Such a file is run as it is, in its VM's own process and no other; here only its first bytes are
looked at. Sources: Multiboot specification 0.6.96, 3.1; Linux, Documentation/arch/x86/boot.rst;
QEMU, hw/i386/multiboot.c, which takes 32-bit ELF files alone.
"""

from __future__ import annotations

import struct

from hanok.errors import InvalidInput
from hanok.kernels.unpack import compression_of
from hanok.model.kernel import KernelFormat
from hanok.units import MIB

LARGEST_BARE = 256 * MIB
HEAD_SIZE = 8192
_MULTIBOOT = 0x1BADB002
_ELF, _CLASS, _64_BIT = b"\x7fELF", 4, 2


def format_of(head: bytes) -> KernelFormat:
    """Return how a file that begins with ``head`` is started. Raises InvalidInput."""
    if (packed := compression_of(head)) is not None:
        raise InvalidInput(
            f"the kernel is compressed ({packed})",
            field="file",
            expected="a kernel as it is",
            hint="unpack it first: gunzip FILE" if packed == "gzip" else "unpack it first",
        )
    if head[0x202:0x206] == b"HdrS":
        return KernelFormat.BZIMAGE
    if _has_multiboot(head):
        if head.startswith(_ELF) and head[_CLASS] == _64_BIT:
            raise InvalidInput(
                "it is a 64-bit kernel, and QEMU starts multiboot kernels of 32 bits alone",
                field="file",
                expected="the 32-bit build of it (of a Debian package: that for i386)",
            )
        return KernelFormat.MULTIBOOT
    raise InvalidInput(
        "this is no kernel that QEMU starts by itself",
        field="file",
        expected="a 32-bit multiboot kernel, or one of Linux's boot protocol (bzImage)",
        hint="a disk with a boot loader is imported without --format kernel",
    )


def _has_multiboot(head: bytes) -> bool:
    """Whether a multiboot header is there: three numbers whose sum is 0."""
    for place in range(0, min(len(head), HEAD_SIZE) - 11, 4):
        magic, flags, check = struct.unpack_from("<III", head, place)
        if magic == _MULTIBOOT and (magic + flags + check) & 0xFFFFFFFF == 0:
            return True
    return False
