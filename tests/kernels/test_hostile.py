"""Whatever the bytes are: an answer or one of Hanok's errors, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hanok.errors import HanokError
from hanok.kernels.initrd import read_initrd
from hanok.kernels.inspect import inspect_files
from hanok.kernels.kernel import read_kernel
from hanok.model.image import Image
from tests.kernels.samples import (
    ALL_NOTES,
    COMPRESSORS,
    VIRTIO,
    cpio,
    make_bzimage,
    make_elf,
    make_initrd,
)

KERNELS = [make_elf(ALL_NOTES), *(make_bzimage(make_elf(ALL_NOTES), name) for name in COMPRESSORS)]
PLAIN = make_initrd(*VIRTIO)
INITRDS = [PLAIN, *(cpio({"early": b"1"}) + pack(PLAIN) for pack in COMPRESSORS.values())]


def survives(read: Callable[[bytes], object], data: bytes) -> None:
    with suppress(HanokError):
        read(data)


@st.composite
def mutated(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample with some bytes changed, a piece cut out or repeated, or its end missing."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(data)))
    length = draw(st.integers(0, 64))
    match draw(st.sampled_from(("keep", "cut", "repeat", "end"))):
        case "cut":
            del data[start : start + length]
        case "repeat":
            data[start:start] = data[start : start + length]
        case "end":
            del data[start:]
    return bytes(data)


@given(st.binary(max_size=4096))
@example(b"\x7fELF")
@example(b"\x7fELF" + b"\xff" * 200)
@example(b"070701" + b"F" * 200)
def test_any_bytes(data: bytes) -> None:
    survives(read_kernel, data)
    survives(read_initrd, data)


@given(mutated(KERNELS))
def test_changed_kernels(data: bytes) -> None:
    survives(read_kernel, data)


@given(mutated(INITRDS))
def test_changed_initrds(data: bytes) -> None:
    survives(read_initrd, data)


@pytest.mark.parametrize("sample", range(len(KERNELS)))
def test_kernels_cut_off_anywhere(sample: int) -> None:
    whole = KERNELS[sample]
    for end in range(0, len(whole), 7):
        survives(read_kernel, whole[:end])


def test_initrds_cut_off_anywhere() -> None:
    for whole in INITRDS:
        for end in range(0, len(whole), 11):
            survives(read_initrd, whole[:end])


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    names = ("../" * 20 + str(canary), str(canary), "/etc/hanok-canary")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(cpio({name: b"was here" for name in names}) + make_initrd(*VIRTIO))
    kernel = tmp_path / "kernel"
    kernel.write_bytes(make_elf(ALL_NOTES))
    inspect_files("k", kernel, initrd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["initrd", "kernel"]
    assert not Path("/etc/hanok-canary").exists()


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(HanokError):
            inspect_files("k", path, None)
    (tmp_path / "empty").touch()
    with pytest.raises(HanokError, match="is empty"):
        inspect_files("k", tmp_path / "empty", None)


@pytest.mark.vm
def test_real_files_changed_and_cut_off(micro_image: tuple[Image, Path]) -> None:
    image, folder = micro_image
    random = Random(20261129)
    for kernel in image.kernels:
        samples = ((read_kernel, kernel.vmlinuz), (read_initrd, kernel.initrd))
        for read, name in samples:
            whole = (folder / name).read_bytes()
            for _ in range(8):
                survives(read, whole[: random.randrange(len(whole))])
                changed = bytearray(whole)
                for _ in range(50):
                    changed[random.randrange(random.choice((4096, len(whole))))] ^= 0xFF
                survives(read, bytes(changed))
