"""What a disk file of a stranger says of itself, read before any other program opens it.

A qcow2 or VMDK file can name further files (a backing file, an external data file, extents), which
whoever opens it would read and give to the guest (CVE-2015-5163, -2022-47951, -2024-32498). Such
files are refused here; what opens the others is told their format and that nothing is below them.

Sources: QEMU, docs/interop/qcow2.txt; VMware, "Virtual Disk Format 5.0"; QEMU, block/vmdk.c.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Protocol

from hanok.errors import InvalidInput
from hanok.model.image import ForeignFormat
from hanok.units import KIB, TIB, format_size

LARGEST_DISK = 16 * TIB
_SECTOR = 512

_QCOW2 = b"QFI\xfb"
_QCOW2_HEAD = struct.Struct(">4sIQIIQI")
_QCOW2_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
# Incompatible features: 0 dirty, 1 corrupt, 2 external data file, 3 compression type, 4 extended
# L2 entries. The first is harmless to one who only reads; 1 and 2 are refused.
_KNOWN_FEATURES = 0b11001
_CORRUPT, _DATA_FILE = 0b10, 0b100
_BACKING_KINDS = (0xE2792ACA, 0x44415441)  # name of the backing format; of the data file
_MOST_EXTENSIONS = 64

_VMDK = b"KDMV"
_VMDK_HEAD = struct.Struct("<4sIIQQQQ")
_LONGEST_DESCRIPTOR = 64 * KIB
_LAST_PLACE = LARGEST_DISK // _SECTOR  # further on is nothing that a file could be asked for
_VMDK_TYPES = ("monolithicSparse", "streamOptimized")
_NO_PARENT = "ffffffff"
_EXTENT = re.compile(r"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\S+)", re.M)
_FIELD = re.compile(r'^\s*(\w+)\s*=\s*"?([^"\r\n]*?)"?\s*$', re.M)

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\x00": ("xz", "xz --decompress"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd --decompress"),
    b"BZh": ("bzip2", "bunzip2"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_OTHERS = {
    b"conectix": "a VHD disk",
    b"vhdxfile": "a VHDX disk",
    b"<<< ": "a VirtualBox disk",
    b"QED\0": "a QED disk",
    b"# Disk DescriptorFile": "a VMDK descriptor, whose data is in other files",
    b"COWD": "a VMDK disk of an old ESX",
}


@dataclass(frozen=True)
class ForeignDisk:
    """What was read of a disk file: its format, and the virtual size in bytes that it claims.

    ``place``: offset and length in bytes of the disk in a larger file.
    """

    format: ForeignFormat
    size: int
    place: tuple[int, int] | None = None


class Readable(Protocol):
    """What of a file is needed here."""

    def seek(self, place: int, /) -> object:
        """Go to a place, counted from the beginning."""
        ...

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes."""
        ...


def read_disk(file: Readable, length: int, wanted: ForeignFormat | None) -> ForeignDisk:
    """Return what the open ``file`` of ``length`` bytes is.

    ``wanted`` is what the user says that it is. Without it qcow2 and VMDK are known by their first
    bytes, and raw by the mark of a boot sector: a raw disk must not be taken for something else
    because its guest wrote that there, so what cannot be told is refused. Raises InvalidInput.
    """
    file.seek(0)
    start = file.read(_SECTOR)
    kind = wanted or _recognize(start)
    if kind is ForeignFormat.QCOW2:
        size = _read_qcow2(file, start)
    elif kind is ForeignFormat.VMDK:
        size = _read_vmdk(file, start)
    else:
        size = -(-length // _SECTOR) * _SECTOR
    check_size(size)
    return ForeignDisk(kind, size)


def check_size(size: int) -> None:
    """Raise InvalidInput for a virtual size that no disk of ours may have."""
    if not 0 < size <= LARGEST_DISK:
        raise InvalidInput(
            f"the disk says that it has {format_size(size)}",
            field="file",
            expected=f"a disk of at most {format_size(LARGEST_DISK)}, and not an empty one",
        )


def _recognize(start: bytes) -> ForeignFormat:
    if start.startswith(_QCOW2):
        return ForeignFormat.QCOW2
    if start.startswith(_VMDK):
        return ForeignFormat.VMDK
    for magic, (name, command) in _PACKED.items():
        if start.startswith(magic):
            raise InvalidInput(
                f"the file is compressed ({name})",
                field="file",
                expected="a disk as it is",
                hint=f"unpack it first: {command} FILE",
            )
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise InvalidInput(
                f"the file is {name}",
                field="file",
                expected="a qcow2, raw or VMDK disk in one file",
                hint="convert it first: qemu-img convert -O qcow2 FILE disk.qcow2",
            )
    if start[510:512] == b"\x55\xaa":
        return ForeignFormat.RAW
    raise InvalidInput(
        "the file is no qcow2 or VMDK disk, and no raw one that firmware boots",
        field="file",
        expected="a disk with a boot sector",
        hint="if it is a raw disk all the same: --format raw",
    )


def _refuse(message: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(
        message,
        field="file",
        expected="one file that has all of the disk in it",
        hint=hint or "where it was made: qemu-img convert -O qcow2 DISK whole.qcow2",
    )


def _read_qcow2(file: Readable, start: bytes) -> int:
    if len(start) < _FEATURES_AT or not start.startswith(_QCOW2):
        raise _not_a("qcow2")
    _, version, backing, _, _, size, crypt = _QCOW2_HEAD.unpack_from(start)
    if version not in (2, 3):
        raise InvalidInput(
            f"the qcow2 disk has version {version}", field="file", expected="version 2 or 3"
        )
    if backing != 0:
        raise _refuse("the qcow2 disk stands on another file, which is never opened")
    if crypt != 0:
        raise _refuse("the qcow2 disk is encrypted")
    if version == 3:
        _check_features(start)
        _check_extensions(file, start)
    return int(size)


def _check_features(start: bytes) -> None:
    if len(start) < _FEATURES_AT + 32:
        raise _not_a("qcow2")
    features = _QCOW2_FEATURES.unpack_from(start, _FEATURES_AT)[0]
    if features & _DATA_FILE:
        raise _refuse("the data of the qcow2 disk is in another file, which is never opened")
    if features & _CORRUPT:
        raise _refuse("the qcow2 disk is marked as corrupt", "qemu-img check -r all DISK")
    if features & ~_KNOWN_FEATURES:
        raise _refuse(f"the qcow2 disk has features that are not known ({features:#x})")


def _check_extensions(file: Readable, start: bytes) -> None:
    """Refuse names of other files behind the header, whatever its features say."""
    (place,) = struct.unpack_from(">I", start, 100)
    for _ in range(_MOST_EXTENSIONS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, length = struct.unpack(">II", head)
        if kind == 0:
            return
        if kind in _BACKING_KINDS:
            raise _refuse("the qcow2 disk names another file, which is never opened")
        place += 8 + -(-length // 8) * 8
    raise _refuse(f"the qcow2 disk has more than {_MOST_EXTENSIONS} extensions of its header")


def _read_vmdk(file: Readable, start: bytes) -> int:
    if len(start) < _SECTOR or not start.startswith(_VMDK):
        raise _not_a("VMDK")
    _, version, _, capacity, _, place, length = _VMDK_HEAD.unpack_from(start)
    # With a capacity of 0 QEMU would go by the descriptor, and open the files that it names.
    if capacity == 0 or not 1 <= version <= 3:
        raise _refuse("the VMDK disk is in other files, which are never opened", _HINT_VMDK)
    if not 0 < place < _LAST_PLACE or not 0 < length * _SECTOR <= _LONGEST_DESCRIPTOR:
        raise _refuse("the VMDK disk has no descriptor of a reasonable size in it", _HINT_VMDK)
    file.seek(place * _SECTOR)
    text = file.read(length * _SECTOR).partition(b"\0")[0].decode("latin-1")
    _check_descriptor(text)
    return int(capacity) * _SECTOR


_HINT_VMDK = "export it as one file, such as an OVA, or: qemu-img convert -O qcow2 DISK whole.qcow2"


def _check_descriptor(text: str) -> None:
    fields = {key.lower(): value for key, value in _FIELD.findall(text)}
    kind = fields.get("createtype", "")
    if kind not in _VMDK_TYPES:
        raise _refuse(
            f"the VMDK disk is of type {kind[:40]!r}, whose data is in other files", _HINT_VMDK
        )
    if fields.get("parentcid", _NO_PARENT).lower() != _NO_PARENT or "parentfilenamehint" in fields:
        raise _refuse("the VMDK disk stands on another file, which is never opened", _HINT_VMDK)
    if [extent.upper() for extent in _EXTENT.findall(text)] != ["SPARSE"]:
        raise _refuse("the VMDK disk names other files, which are never opened", _HINT_VMDK)


def _not_a(name: str) -> InvalidInput:
    return InvalidInput(
        f"the file is no {name} disk", field="format", expected="the format that the file has"
    )
