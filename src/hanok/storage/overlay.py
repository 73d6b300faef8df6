"""An empty qcow2 overlay, written without qemu-img: a start waits for it.

It is a header and three small tables, which say that nothing is allocated. Unlike ``qemu-img
create`` this starts no program and does not open the base. Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from hanok.errors import InvalidInput
from hanok.model.image import DiskFormat
from hanok.proc import Account

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_ENTRY = 8
# What one entry of the first table (L1) maps: a cluster full of entries, each of a cluster.
_MAPPED = _CLUSTER // _ENTRY * _CLUSTER
_SECTOR = 512
_LONGEST_NAME = 1023
_LARGEST_L1 = 32 * 1024 * 1024  # bytes, as QEMU opens them (block/qcow2.h)
# Magic, version, where the base's name lies and its length, bits of a cluster, virtual size,
# encryption, entries of L1 and where it lies, where the table of reference counts lies and its
# clusters, snapshots and where they lie; features that are incompatible, compatible and for
# clearing, the power of two of a reference count's bits, the length of this header.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC, _VERSION = b"QFI\xfb", 3
_COUNT_ORDER = 4
_BACKING_FORMAT = 0xE2792ACA
_EXTENSION = struct.Struct(">II")
_TABLE_AT, _COUNTS_AT, _L1_AT = 1 * _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER


def overlay_parts(base: Path, base_format: DiskFormat, size: int) -> dict[int, bytes]:
    """Return an empty overlay's bytes by where they lie; all between them is zeros. Pure.

    ``size``: virtual bytes, rounded up to whole sectors. The last part is empty and lies at the
    file's end. Raises InvalidInput for a size or a path that no qcow2 file can have.
    """
    name = os.fsencode(base)
    if len(name) > _LONGEST_NAME:
        raise InvalidInput(
            f"the path of the base has {len(name)} bytes",
            field="base",
            expected=f"at most {_LONGEST_NAME}",
        )
    entries = -(-size // _MAPPED)
    if size <= 0 or entries * _ENTRY > _LARGEST_L1:
        raise InvalidInput(
            f"no disk can have {size} bytes",
            field="disk",
            expected=f"1 to {_LARGEST_L1 // _ENTRY * _MAPPED}",
        )
    clusters = 3 + -(-entries * _ENTRY // _CLUSTER)
    return {
        0: _head(name, base_format, -(-size // _SECTOR) * _SECTOR, entries),
        _TABLE_AT: struct.pack(">Q", _COUNTS_AT),
        _COUNTS_AT: struct.pack(">H", 1) * clusters,
        clusters * _CLUSTER: b"",
    }


def _head(name: bytes, base_format: DiskFormat, size: int, entries: int) -> bytes:
    format = base_format.value.encode()
    padded = format.ljust(-(-len(format) // 8) * 8, b"\0")
    extensions = _EXTENSION.pack(_BACKING_FORMAT, len(format)) + padded + _EXTENSION.pack(0, 0)
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, _HEADER.size + len(extensions), len(name), _CLUSTER_BITS, size),
        *(0, entries, _L1_AT, _TABLE_AT, 1, 0, 0, 0, 0, 0, _COUNT_ORDER, _HEADER.size),
    )
    return header + extensions + name


def write_overlay(
    path: Path, base: Path, base_format: DiskFormat, size: int, account: Account | None
) -> None:
    """Write an empty overlay to ``path``, durably, for ``account`` alone where we are root.

    Raises OSError, FileExistsError among them, and what overlay_parts does.
    """
    parts = overlay_parts(base, base_format, size)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
        file.truncate(max(parts))
        file.flush()
        if account is not None and os.geteuid() == 0:
            os.fchown(file.fileno(), account.uid, account.gid)
        os.fsync(file.fileno())
