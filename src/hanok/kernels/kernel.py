"""Kernel files: a bzImage (Linux's Documentation/arch/x86/boot.rst), an ELF file, or multiboot."""

from __future__ import annotations

import re
import struct
import zlib

from hanok.errors import InvalidInput
from hanok.kernels import elf
from hanok.kernels.config import drivers_built_in
from hanok.kernels.unpack import Budget, Buffer, compression_of, unpack
from hanok.model.kernel import KernelFacts, KernelFormat

LARGEST_KERNEL = 256 * 1024 * 1024
_LARGEST_CONFIG = 4 * 1024 * 1024
_HEADER_MAGIC = b"HdrS"
_LONGEST_VERSION = 256
# init/version.c; the release has no spaces.
_BANNER = re.compile(rb"Linux version (\d[\x21-\x7e]{0,127}) \(")
_CONFIG_START = b"IKCFG_ST"  # kernel/configs.c
# The multiboot header lies in the first 8192 bytes, on a multiple of 4 (specification 0.6.96, 3.1).
_MULTIBOOT = struct.pack("<I", 0x1BADB002)
_MULTIBOOT_AREA = 8192


def read_kernel(data: Buffer) -> KernelFacts:
    """Return what the kernel file ``data`` says of itself.

    Raises InvalidInput when it is no kernel that is known here, is damaged or is unusually large.
    """
    if len(data) > LARGEST_KERNEL:
        raise InvalidInput("the kernel is larger than any", field="kernel", expected="256 MiB")
    if bytes(data[0x202:0x206]) == _HEADER_MAGIC:
        return _read_bzimage(data)
    if bytes(data[:4]) == elf.MAGIC:
        whole = bytes(data)
        return _facts(whole, KernelFormat.VMLINUX, len(data))
    raise InvalidInput(
        "this is no kernel that Hanok can read",
        field="kernel",
        expected="a bzImage (vmlinuz of an x86 computer) or an ELF file (vmlinux)",
    )


def _read_bzimage(data: Buffer) -> KernelFacts:
    if len(data) < 0x260:
        raise _cut_off()
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    if protocol < 0x208:
        raise InvalidInput(
            f"the kernel has boot protocol {_dotted(protocol)}, which is from before 2008",
            field="kernel",
            expected="2.08 or newer",
        )
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = memoryview(data)[start : start + length]
    if length == 0 or len(payload) < length:
        raise _cut_off()
    name = compression_of(payload)
    if name is None:
        raise InvalidInput(
            "what the kernel unpacks is compressed in a way that is not known here", field="kernel"
        )
    pieces = unpack(payload, name, Budget(LARGEST_KERNEL), "the kernel")
    whole = b"".join(piece.data for piece in pieces)
    facts = _facts(whole, KernelFormat.BZIMAGE, len(data))
    return facts.model_copy(
        update={
            "boot_protocol": _dotted(protocol),
            "compression": name,
            "version": _version_of(data) or facts.version,
        }
    )


def _facts(whole: bytes, kind: KernelFormat, size: int) -> KernelFacts:
    found = elf.read_elf(whole)
    banner = _BANNER.search(whole)
    if kind is KernelFormat.VMLINUX and banner is None and _MULTIBOOT in whole[:_MULTIBOOT_AREA]:
        kind = KernelFormat.MULTIBOOT
    return KernelFacts(
        format=kind,
        arch=found.arch,
        version=banner[1].decode("ascii") if banner is not None else None,
        size=size,
        built_in=_own_config(whole),
        xen=found.xen,
    )


def _version_of(data: Buffer) -> str | None:
    """Return the release that the header points to: text up to the first space."""
    (pointer,) = struct.unpack_from("<H", data, 0x20E)
    if pointer == 0:
        return None
    text = bytes(data[pointer + 0x200 : pointer + 0x200 + _LONGEST_VERSION])
    release = text.split(b"\0", 1)[0].split(b" ", 1)[0].decode("ascii", "replace")
    return release if release.isprintable() and release else None


def _own_config(whole: bytes) -> tuple[str, ...] | None:
    """Return the built-in drivers by the configuration that the kernel carries, if it does."""
    start = whole.find(_CONFIG_START)
    if start < 0:
        return None
    tool = zlib.decompressobj(wbits=31)
    start += len(_CONFIG_START)
    try:
        text = tool.decompress(whole[start : start + _LARGEST_CONFIG], _LARGEST_CONFIG)
    except zlib.error:
        return None  # those eight letters can stand elsewhere too
    return drivers_built_in(text) if tool.eof else None


def _dotted(protocol: int) -> str:
    return f"{protocol >> 8}.{protocol & 0xFF:02d}"


def _cut_off() -> InvalidInput:
    return InvalidInput("the kernel is cut off", field="kernel", expected="the whole file")
