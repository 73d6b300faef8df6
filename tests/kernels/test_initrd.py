"""Initrds: archives one after another, each compressed in its own way."""

from __future__ import annotations

import gzip

import pytest

from hanok.errors import InvalidInput
from hanok.kernels.initrd import read_initrd
from tests.kernels.samples import COMPRESSORS, RELEASE, VIRTIO, cpio, cpio_entry, make_initrd

MICROCODE = cpio({"kernel/x86/microcode/GenuineIntel.bin": bytes(5000)})


@pytest.mark.parametrize("compression", ["none", *COMPRESSORS])
def test_modules_are_found_whatever_compresses_the_archive(compression: str) -> None:
    plain = make_initrd(*VIRTIO, "crc-t10dif", built_in=("ext4", "md-mod"))
    data = plain if compression == "none" else COMPRESSORS[compression](plain)
    found = read_initrd(data)
    assert found.archives == (compression,)
    assert found.modules == ("crc_t10dif", "virtio_blk", "virtio_pci")
    assert found.releases == (RELEASE,)
    assert found.built_in == ("ext4",)


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("padding", [0, 512])
def test_early_microcode_comes_first(compression: str, padding: int) -> None:
    packed = COMPRESSORS[compression](make_initrd(*VIRTIO))
    found = read_initrd(MICROCODE + bytes(padding) + packed)
    assert found.archives == ("none", compression)
    assert "virtio_blk" in found.modules


def test_many_archives_of_different_kinds() -> None:
    parts = [compress(make_initrd(f"driver_{name}")) for name, compress in COMPRESSORS.items()]
    parts.insert(3, MICROCODE)
    found = read_initrd(bytes(8).join(parts))
    assert len(found.archives) == len(parts)
    assert len(found.modules) == len(COMPRESSORS)


def test_two_archives_in_one_compressed_stream() -> None:
    found = read_initrd(gzip.compress(make_initrd("one") + bytes(512) + make_initrd("two")))
    assert found.modules == ("one", "two")


def test_compressed_modules_count_and_other_files_do_not() -> None:
    folder = f"usr/lib/modules/{RELEASE}"
    names = ("a.ko.xz", "b.ko.zst", "c.ko.gz", "d.ko.txt", "e.o", ".ko")
    files = {f"{folder}/kernel/{name}": b"" for name in names}
    files |= {f"xlib/modules/{RELEASE}/f.ko": b"", "lib/modules/g.ko": b""}
    assert read_initrd(cpio(files)).modules == ("a", "b", "c")


def test_no_list_of_built_in_drivers_is_not_an_empty_one() -> None:
    assert read_initrd(make_initrd(built_in=None)).built_in is None
    assert read_initrd(make_initrd(built_in=())).built_in == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(1024), "empty"),
        (b"what is this", "begins neither an archive"),
        (make_initrd("a")[:-40], "cut off"),
        (make_initrd("a")[:50], "cut off"),
        (gzip.compress(make_initrd("a"))[:-20], "cut off"),
        (gzip.compress(make_initrd("a")[:-60]), "cut off"),
        (gzip.compress(make_initrd("a"))[:60] + bytes(400), "damaged"),
        (gzip.compress(make_initrd("a") + b"junk"), "something else than an archive"),
        (gzip.compress(b"no archive" * 20), "has no header"),
        (cpio_entry("x").replace(b"000081A4", b"zzzzzzzz"), "something else than numbers"),
        (cpio_entry("x" * 5000), "impossible name"),
    ],
)
def test_what_is_no_initrd_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_initrd(data)


def test_too_many_files_and_too_many_archives_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hanok.kernels.cpio._MOST_ENTRIES", 10)
    with pytest.raises(InvalidInput, match="more than 10 files"):
        read_initrd(cpio({str(at): b"" for at in range(11)}))
    with pytest.raises(InvalidInput, match="more than 64 archives"):
        read_initrd(cpio({}) * 65)


def test_a_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanok.kernels.cpio._MOST_BYTES", 1024 * 1024)
    bomb = cpio({"zeros": bytes(64 * 1024 * 1024)})
    for compress in (gzip.compress, COMPRESSORS["zstd"], COMPRESSORS["xz"]):
        with pytest.raises(InvalidInput, match="more than Hanok reads"):
            read_initrd(compress(bomb))


def test_names_that_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanok.kernels.cpio._MOST_KEPT", 10_000)
    with pytest.raises(InvalidInput, match="more than Hanok reads"):
        read_initrd(cpio({f"{at:04}" + "x" * 4000: b"" for at in range(5)}))
