"""Kernels: what is read from a bzImage and from an ELF file."""

from __future__ import annotations

import gzip
import struct

import pytest

from hanok.errors import InvalidInput
from hanok.kernels.kernel import read_kernel
from hanok.model.kernel import KernelFormat
from tests.kernels.samples import (
    ALL_NOTES,
    BANNER,
    COMPRESSORS,
    PV_NOTES,
    PVH_NOTES,
    RELEASE,
    make_bzimage,
    make_elf,
)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_bzimage_is_read_whatever_compresses_it(compression: str) -> None:
    found = read_kernel(make_bzimage(make_elf(ALL_NOTES), compression))
    assert (found.format, found.arch, found.version) == (KernelFormat.BZIMAGE, "x86-64", RELEASE)
    assert (found.boot_protocol, found.compression) == ("2.15", compression)
    assert found.xen is not None
    assert (found.xen.guest_os, found.xen.xen_version) == ("linux", "xen-3.0")
    assert found.xen.pv_entry == 0xFFFFFFFF81000000
    assert found.xen.pvh_entry == 0x1000000
    assert found.xen.dom0 is True


def test_an_unpacked_kernel_tells_its_release_in_its_banner() -> None:
    found = read_kernel(make_elf(PVH_NOTES))
    assert (found.format, found.version) == (KernelFormat.VMLINUX, RELEASE)
    assert found.xen is not None
    assert (found.xen.pv_entry, found.xen.pvh_entry, found.xen.dom0) == (None, 0x1000000, None)


def test_a_kernel_without_notes_for_xen_has_none() -> None:
    assert read_kernel(make_elf({})).xen is None


def test_notes_of_others_do_not_count() -> None:
    # GNU's build id has type 3 and GNU's properties type 5, which is Xen's version.
    found = read_kernel(make_elf(PV_NOTES)).xen
    assert found is not None
    assert found.xen_version == "xen-3.0"


def test_a_kernel_that_carries_its_configuration_tells_its_drivers() -> None:
    config = (
        b"CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=m\n# CONFIG_E1000 is not set\nCONFIG_EXT4_FS=y\n"
    )
    whole = make_elf({}, BANNER + b"IKCFG_ST" + gzip.compress(config) + b"IKCFG_ED")
    assert read_kernel(whole).built_in == ("virtio_pci", "ext4")


def test_no_configuration_is_not_an_empty_one() -> None:
    assert read_kernel(make_elf({})).built_in is None
    assert read_kernel(make_elf({}, BANNER + b"IKCFG_ST is only text here")).built_in is None


def test_a_kernel_of_another_computer_is_said_to_be_one() -> None:
    assert read_kernel(make_elf({}, machine=183)).arch == "arm64"


def test_a_multiboot_kernel_is_not_taken_for_linux() -> None:
    found = read_kernel(make_elf({}, struct.pack("<III", 0x1BADB002, 0, 0xE4524FFE)))
    assert (found.format, found.version) == (KernelFormat.MULTIBOOT, None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no kernel that Hanok can read"),
        (b"MZ" + bytes(4096), "no kernel that Hanok can read"),
        (make_bzimage(make_elf({}), protocol=0x204), "boot protocol 2.04"),
        (make_bzimage(make_elf({}))[:-100], "cut off"),
        (make_bzimage(make_elf({}))[:0x250], "cut off"),
        (make_bzimage(b"no ELF at all"), "not those of an ELF"),
        (make_elf(ALL_NOTES)[:150], "notes lie outside"),
        (make_elf({})[:100], "headers"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        read_kernel(data)
    assert caught.value.field == "kernel"


def test_a_kernel_in_lzo_says_that_this_is_not_read() -> None:
    image = bytearray(make_bzimage(make_elf({})))
    image[1040:1044] = b"\x89LZO"
    with pytest.raises(InvalidInput, match="compressed by lzo"):
        read_kernel(bytes(image))


def test_a_note_longer_than_all_notes_is_refused() -> None:
    whole = bytearray(make_elf(ALL_NOTES))
    struct.pack_into("<I", whole, 124, 0xFFFFFFF0)
    with pytest.raises(InvalidInput, match="longer than all notes"):
        read_kernel(bytes(whole))


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "bzip2", "lz4"])
def test_a_bomb_is_stopped(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanok.kernels.kernel.LARGEST_KERNEL", 1024 * 1024)
    bomb = make_bzimage(bytes(64 * 1024 * 1024), compression)
    with pytest.raises(InvalidInput, match="more than Hanok reads"):
        read_kernel(bomb)
