"""Kernels and initrds made here: small, and with what a test asks for."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Mapping
from functools import partial

import lz4.block
import lz4.frame
import zstandard

RELEASE = "6.1.0-1-amd64"
BANNER = f"Linux version {RELEASE} (someone@somewhere) #1 SMP".encode()
PV_NOTES: dict[int, bytes] = {
    6: b"linux\0",
    7: b"2.6\0",
    5: b"xen-3.0\0",
    8: b"generic\0",
    1: struct.pack("<Q", 0xFFFFFFFF81000000),
    17: struct.pack("<I", 1 << 11),
}
PVH_NOTES: dict[int, bytes] = {18: struct.pack("<I", 0x1000000)}
ALL_NOTES = {**PV_NOTES, **PVH_NOTES}
VIRTIO = ("virtio_pci", "virtio_blk")
XEN = ("xen-blkfront",)
AHCI = ("ahci", "sd_mod")


def note(kind: int, desc: bytes, name: bytes = b"Xen\0") -> bytes:
    """Return an ELF note."""
    padded = desc + bytes(-len(desc) % 4)
    return struct.pack("<III", len(name), len(desc), kind) + name + padded


def make_elf(notes: Mapping[int, bytes], rest: bytes = BANNER, machine: int = 62) -> bytes:
    """Return an ELF file for x86-64 (62) with one segment of notes."""
    area = note(3, b"\1" * 20, b"GNU\0") + b"".join(note(kind, d) for kind, d in notes.items())
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(area), len(area), 4)
    return header + segment + area + rest


def _legacy(data: bytes) -> bytes:
    block: bytes = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
    "lz4": lz4.frame.compress,
    "lz4-legacy": _legacy,
    "zstd": zstandard.compress,
}


def make_bzimage(
    elf: bytes, compression: str = "gzip", release: str = RELEASE, protocol: int = 0x20F
) -> bytes:
    """Return a bzImage that unpacks to ``elf``; like real ones it ends with the unpacked size."""
    payload = COMPRESSORS[compression](elf) + struct.pack("<I", len(elf))
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, protocol)
    text = f"{release} (someone) #1".encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<H", head, 0x20E, 0x100)
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload


def cpio_entry(name: str, data: bytes = b"", mode: int = 0o100644) -> bytes:
    """Return one entry of a newc archive."""
    raw = name.encode() + b"\0"
    fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def cpio(entries: Mapping[str, bytes]) -> bytes:
    """Return a newc archive."""
    body = b"".join(cpio_entry(name, data) for name, data in entries.items())
    return body + cpio_entry("TRAILER!!!", mode=0)


def make_initrd(
    *modules: str, built_in: tuple[str, ...] | None = ("ext4",), release: str = RELEASE
) -> bytes:
    """Return an initrd, not compressed, with ``modules`` and a list of what is built in."""
    folder = f"lib/modules/{release}"
    files = {f"{folder}/kernel/drivers/{name}.ko": b"code" for name in modules}
    if built_in is not None:
        lines = "".join(f"kernel/fs/{name}.ko\n" for name in built_in)
        files[f"{folder}/modules.builtin"] = lines.encode()
    return cpio({"init": b"#!/bin/sh", **files})
