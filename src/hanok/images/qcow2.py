"""The head of a qcow2 file, read with suspicion: it may have been written by foreign code.

Fields by QEMU's docs/interop/qcow2.txt. A backing file or an external data file would make QEMU
open a path that the image names, so neither is accepted.
"""

from __future__ import annotations

import struct
from pathlib import Path

from hanok.errors import HostError

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_MAGIC = b"QFI\xfb"
_FEATURES = struct.Struct(">Q")


def read_virtual_size(path: Path) -> int:
    """Return the virtual size in bytes of a qcow2 file that names no other file.

    Raises HostError when it is something else, encrypted, or names a backing or data file.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        features = file.read(_FEATURES.size)
    if len(features) < _FEATURES.size:
        raise HostError(f"{path.name} is not a qcow2 file")
    magic, version, backing, _, _, size, crypt, *_ = _HEADER.unpack(head)
    if magic != _MAGIC or version != 3:
        raise HostError(f"{path.name} is not a qcow2 file of version 3")
    # Incompatible features: bit 2 is an external data file; none of them is ever wanted here.
    if backing != 0 or crypt != 0 or _FEATURES.unpack(features)[0] != 0:
        raise HostError(f"{path.name} names another file or has features that are not allowed")
    return int(size)
