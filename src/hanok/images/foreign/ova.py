"""OVA archives: a tar with a descriptor, its disks and, often, a manifest of hashes.

Nothing is unpacked: the archive is only looked through, and disks are read where they lie in it. So
no name in it becomes a path, and no link, device or size in it means anything.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from hanok.errors import InvalidInput
from hanok.images.foreign.ovf import LARGEST, Appliance, plain_name, read_ovf
from hanok.units import MIB

_BLOCK = 512
_MOST_MEMBERS = 64
_LARGEST_READ = 1 * MIB
_PIECE = 1 * MIB
_LINE = re.compile(r"\s*(SHA1|SHA256|SHA384|SHA512)\s*\((.+?)\)\s*=\s*([0-9a-f]+)\s*", re.I)


@dataclass(frozen=True)
class Region:
    """Where a file lies in the archive, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Archive:
    """What is in an OVA: the machine, and where its files are, by name."""

    appliance: Appliance
    files: dict[str, Region]


class Part(io.RawIOBase):
    """A part of a file that looks like a file: reads beyond its end give nothing."""

    def __init__(self, file: BinaryIO, region: Region) -> None:
        super().__init__()
        self._file = file
        self._region = region
        self._place = 0

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to ``place``, counted from the part's beginning."""
        self._place = place
        return place

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes."""
        left = max(0, self._region.size - self._place)
        self._file.seek(self._region.offset + self._place)
        data = self._file.read(left if size < 0 else min(size, left))
        self._place += len(data)
        return data


class _Bounded(io.RawIOBase):
    """A file for tarfile, which reads as much at once as a header tells it to."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise _bad("a header in it is absurdly large")
        return self._file.read(size)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


def is_ova(start: bytes) -> bool:
    """Return whether a file that begins with these 512 bytes is a tar archive."""
    return start[257:262] == b"ustar"


def read_ova(file: BinaryIO, length: int) -> Archive:
    """Return what is in the archive, its disks checked against the manifest, if it has one.

    ``length`` is the size of ``file`` in bytes. Blocks while it reads all of it. Raises
    InvalidInput.
    """
    files = _list(file, length)
    descriptors = [name for name in files if name.lower().endswith(".ovf")]
    if len(descriptors) != 1:
        raise _bad(f"it has {len(descriptors)} descriptors (.ovf), not one")
    (descriptor,) = descriptors
    if files[descriptor].size > LARGEST:
        raise _bad("its descriptor is larger than 4 MiB")
    appliance = read_ovf(Part(file, files[descriptor]).read())
    needed = [disk.file for disk in appliance.disks if disk.file is not None]
    for name in needed:
        if name not in files:
            raise _bad(f"the disk {name} that its descriptor names is not in it")
    _check_manifest(file, files, [descriptor, *needed])
    return Archive(appliance, files)


def _bad(why: str) -> InvalidInput:
    return InvalidInput(
        f"the archive cannot be taken: {why}",
        field="file",
        expected="an OVA: a tar with one descriptor and the disks that it names",
    )


def _list(file: BinaryIO, length: int) -> dict[str, Region]:
    """Return where the plain files of the archive are; everything else in it is refused."""
    found: dict[str, Region] = {}
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
            while (member := archive.next()) is not None:
                name = member.name.removeprefix("./")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise _bad(f"{name[:60]!r} in it is no plain file")
                if plain_name(name) in found:
                    raise _bad(f"{name[:60]!r} is in it twice")
                if not 0 <= member.size <= length - member.offset_data:
                    raise _bad(f"{name[:60]!r} in it is cut off")
                found[name] = Region(member.offset_data, member.size)
                if len(found) > _MOST_MEMBERS:
                    raise _bad(f"it has more than {_MOST_MEMBERS} files")
    except (tarfile.TarError, OverflowError, ValueError, OSError) as error:
        raise _bad(f"it is no tar that is whole ({error})") from None
    return found


def _check_manifest(file: BinaryIO, files: dict[str, Region], needed: list[str]) -> None:
    """Compare the hashes of a manifest. Raises InvalidInput: one differs, or one is missing."""
    manifests = [name for name in files if name.lower().endswith(".mf")]
    if not manifests:
        return
    region = files[manifests[0]]
    if region.size > LARGEST:
        raise _bad("its manifest is larger than 4 MiB")
    text = Part(file, region).read().decode("utf-8", "replace")
    told = {
        match[2]: (match[1], match[3]) for match in map(_LINE.fullmatch, text.splitlines()) if match
    }
    for name in needed:
        if name not in told:
            raise _bad(f"its manifest does not list {name}")
    for name, (kind, expected) in told.items():
        if name in files and _hash(file, files[name], kind) != expected.lower():
            raise _bad(f"{name} in it is damaged: its manifest has another {kind.upper()}")


def _hash(file: BinaryIO, region: Region, kind: str) -> str:
    part, digest = Part(file, region), hashlib.new(kind.lower(), usedforsecurity=False)
    while piece := part.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()
