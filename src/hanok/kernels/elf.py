"""ELF files of kernels: for which machine, and the notes for Xen.

Segments by pyelftools. The notes themselves are read here, since their names decide what their
types mean: layout by the System V ABI ("Note Section"), types by xen/include/public/elfnote.h.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.construct.core import ConstructError
from elftools.elf.elffile import ELFFile

from hanok.errors import InvalidInput
from hanok.model.kernel import XenNotes

MAGIC = b"\x7fELF"
_ARCHES = {"EM_X86_64": "x86-64", "EM_386": "i386", "EM_AARCH64": "arm64"}
_MOST_SEGMENTS = 64
_LARGEST_NOTES = 1024 * 1024
_LONGEST_TEXT = 256
_NOTE = struct.Struct("<III")

_ENTRY, _HYPERCALL_PAGE, _XEN_VERSION, _GUEST_OS, _GUEST_VERSION = 1, 2, 5, 6, 7
_LOADER, _FEATURES, _SUPPORTED_FEATURES, _PHYS32_ENTRY = 8, 10, 17, 18
_FEATURE_DOM0 = 11  # xen/include/public/features.h: XENFEAT_dom0


@dataclass(frozen=True)
class Elf:
    """The parts of a kernel's ELF file that matter here."""

    arch: str
    xen: XenNotes | None


def read_elf(data: bytes) -> Elf:
    """Return what the ELF file ``data`` says. Raises InvalidInput when it is damaged."""
    try:
        elf = ELFFile(io.BytesIO(data))
        if elf.num_segments() > _MOST_SEGMENTS or not elf.little_endian:
            raise _damaged("it has too many segments, or is for another kind of computer")
        arch = _ARCHES.get(elf["e_machine"], "another computer")
        spans = [
            (int(segment["p_offset"]), int(segment["p_filesz"]))
            for segment in elf.iter_segments()
            if segment["p_type"] == "PT_NOTE"
        ]
    # The library meets damaged files with all of these.
    except (ELFError, ConstructError, ValueError, LookupError, TypeError, OSError) as error:
        raise _damaged("its headers are not those of an ELF file") from error
    except (AttributeError, OverflowError, AssertionError, MemoryError) as error:
        raise _damaged("its headers contradict themselves") from error
    found: dict[int, bytes] = {}
    for start, size in spans:
        if size > _LARGEST_NOTES or start + size > len(data):
            raise _damaged("its notes lie outside the file")
        found.update(_xen_notes(data[start : start + size]))
    return Elf(arch, _understand(found) if found else None)


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"the kernel is damaged: {why}", field="kernel", expected="a bzImage or an ELF file"
    )


def _xen_notes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, size, kind = _NOTE.unpack_from(data, at)
        name_at = at + _NOTE.size
        desc_at = name_at + _padded(name_size)
        if desc_at + size > len(data):
            raise _damaged("a note is longer than all notes")
        if data[name_at : name_at + name_size] == b"Xen\0":
            yield kind, data[desc_at : desc_at + size]
        at = desc_at + _padded(size)


def _padded(size: int) -> int:
    return size + -size % 4


def _understand(notes: dict[int, bytes]) -> XenNotes:
    supported = _number(notes.get(_SUPPORTED_FEATURES))
    features = _text(notes.get(_FEATURES))
    dom0 = None if supported is None else bool(supported >> _FEATURE_DOM0 & 1)
    return XenNotes(
        guest_os=_text(notes.get(_GUEST_OS)),
        guest_version=_text(notes.get(_GUEST_VERSION)),
        xen_version=_text(notes.get(_XEN_VERSION)),
        loader=_text(notes.get(_LOADER)),
        features=features,
        pv_entry=_number(notes.get(_ENTRY)),
        hypercall_page=_number(notes.get(_HYPERCALL_PAGE)),
        pvh_entry=_number(notes.get(_PHYS32_ENTRY)),
        dom0=dom0,
    )


def _text(desc: bytes | None) -> str | None:
    if desc is None:
        return None
    return desc.split(b"\0", 1)[0][:_LONGEST_TEXT].decode("ascii", "replace")


def _number(desc: bytes | None) -> int | None:
    """Notes hold numbers of 4 or 8 bytes, whichever the compiler made of them."""
    if desc is None or len(desc) not in (4, 8):
        return None
    return int.from_bytes(desc, "little")
