"""What an overlay's header says that it stands on, compared with what it is to stand on.

xl cannot tell a device model the backing file of a disk: the one that the header names is opened.
So before a domain starts, each header must name exactly what Hanok would. Nothing writes headers
in between: the file belongs to the VM, and the VM does not run. Fields: docs/interop/qcow2.txt of
QEMU. This keeps a file of the host, named in a header by hostile code, out of a guest.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Disk
from hanok.model.image import Base, DiskFormat

_MAGIC = b"QFI\xfb"
# Magic, version, offset and length of the backing file's name, cluster bits, size, encryption.
_START = struct.Struct(">4sIQIIQI")
_FEATURES_AT = 72
_LENGTH_AT = 100
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_LONGEST_NAME = 1023
_CLUSTER = 65536
# Of the incompatible features only the first, "not closed cleanly": others name other files or
# change the format (an external data file is the third).
_HARMLESS = 0x1


@dataclass(frozen=True)
class Backing:
    """What a header names; ``format`` None when it leaves it to a guess."""

    name: str
    format: str | None


def check_backing(disk: Disk) -> None:
    """Raise HypervisorError unless the headers of ``disk`` and its bases name just its bases."""
    files = [Base(disk.path, disk.format), *disk.bases]
    for file, below in zip(files, [*files[1:], None], strict=True):
        if file.format is not DiskFormat.QCOW2:
            continue
        named = read_backing(file.path)
        wanted = Backing(str(below.path), str(below.format)) if below is not None else None
        if named != wanted:
            raise HypervisorError(
                f"the disk {file.path} names {_words(named)} as what it stands on, not"
                f" {_words(wanted)}",
                hint="it was changed by something else than Hanok; do not trust it",
            )


def _words(backing: Backing | None) -> str:
    return f"{backing.name} ({backing.format or 'no format'})" if backing else "nothing"


def read_backing(path: Path) -> Backing | None:
    """Return what the header of a qcow2 file names. Raises HypervisorError for a bad one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return _parse(file.read(_CLUSTER))
    except OSError as error:
        raise HypervisorError(f"the disk {path} cannot be opened: {error.strerror}") from error
    except (struct.error, ValueError) as error:
        raise HypervisorError(f"the disk {path} is no qcow2 file that Hanok runs: {error}") from (
            error
        )


def _parse(head: bytes) -> Backing | None:
    magic, version, offset, length, _, _, encryption = _START.unpack_from(head)
    if magic != _MAGIC or version != 3:
        raise ValueError("it is not of version 3")
    features = struct.unpack_from(">Q", head, _FEATURES_AT)[0]
    if encryption or features & ~_HARMLESS:
        raise ValueError("it is encrypted or has features that are not allowed")
    if offset == 0:
        return None
    if length > _LONGEST_NAME or offset + length > len(head):
        raise ValueError("the name of its backing file lies outside its header")
    name = head[offset : offset + length].decode()
    return Backing(name, _backing_format(head))


def _backing_format(head: bytes) -> str | None:
    at = struct.unpack_from(">I", head, _LENGTH_AT)[0]
    while at + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, at)
        at += _EXTENSION.size
        if kind == 0:
            return None
        if kind == _BACKING_FORMAT:
            return head[at : at + length].decode()
        at += (length + 7) & ~7
    return None
