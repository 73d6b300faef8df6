"""Kernels of strangers that need no boot loader."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from hanok.errors import InvalidInput
from hanok.images.foreign.bare import format_of
from hanok.images.foreign.take import ForeignOrder
from hanok.images.library import ImageLibrary
from hanok.model.image import ForeignFormat, ImportRequest
from hanok.model.kernel import KernelFormat
from hanok.model.vm import Mode
from hanok.proc import Account, SystemRunner
from hanok.units import MIB
from tests.conftest import BUILD_UID

MAGIC, FLAGS = 0x1BADB002, 3
HEADER = struct.pack("<III", MAGIC, FLAGS, -(MAGIC + FLAGS) & 0xFFFFFFFF)
ELF32, ELF64 = b"\x7fELF\x01" + bytes(47), b"\x7fELF\x02" + bytes(47)
BZIMAGE = bytes(0x202) + b"HdrS" + bytes(4000)


def test_how_kernels_are_started() -> None:
    assert format_of(BZIMAGE) is KernelFormat.BZIMAGE
    assert format_of(ELF32 + HEADER + bytes(100)) is KernelFormat.MULTIBOOT
    assert format_of(ELF32 + bytes(8128 - 52) + HEADER) is KernelFormat.MULTIBOOT
    assert format_of(bytes(64) + HEADER) is KernelFormat.MULTIBOOT  # no ELF: its header says where


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "no kernel"),
        (bytes(9000), "no kernel"),
        (ELF32 + bytes(9000), "no kernel"),
        (ELF32 + bytes(8192) + HEADER, "no kernel"),
        (ELF32 + b"\0" + HEADER, "no kernel"),  # not on a multiple of 4
        (ELF32 + HEADER[:-1] + b"\0", "no kernel"),
        (ELF64 + HEADER, "64-bit"),
        (b"\x1f\x8b" + bytes(100), "compressed"),
        (b"\xfd7zXZ\0" + bytes(100), "compressed"),
    ],
)
def test_what_is_refused(head: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        format_of(head)
    assert caught.value.field == "file"
    assert caught.value.expected


async def test_a_kernel_becomes_an_image(short_tmp: Path) -> None:
    library = ImageLibrary(short_tmp / "images", SystemRunner(), Account(BUILD_UID, BUILD_UID))
    source = short_tmp / "kernel-file"
    source.write_bytes(ELF32 + HEADER + b"the rest")
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    wanted = ImportRequest(name="bare", format=ForeignFormat.KERNEL, cmdline="console=com0")
    image = await library.take(ForeignOrder(source, sha256, wanted), lambda *_: None)
    (kernel,) = image.kernels
    assert (kernel.cmdline, kernel.modes, kernel.bare) == ("console=com0", (Mode.FULL,), True)
    assert (image.firmware, image.disk_size, image.agent) == ((), 64 * MIB, False)
    file = library.path(image) / kernel.vmlinuz
    assert file.read_bytes() == ELF32 + HEADER + b"the rest"
    assert file.stat().st_mode & 0o777 == 0o644
    assert library.find("own:bare", ()) == image
    line = ImportRequest(name="disk", cmdline="x")
    with pytest.raises(InvalidInput, match="only a kernel"):
        await library.take(ForeignOrder(source, sha256, line), lambda *_: None)
