"""``hanok image inspect`` of a file and of an image."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Hanok
from tests.kernels.samples import ALL_NOTES, VIRTIO, make_bzimage, make_elf, make_initrd


def test_a_file_is_read_without_a_daemon(hanok: Hanok, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(make_bzimage(make_elf(ALL_NOTES), "zstd"))
    initrd.write_bytes(make_initrd(*VIRTIO))
    words = ("image", "inspect", str(kernel), "--initrd", str(initrd))
    shown = hanok(*words).stdout
    assert "bzImage for x86-64" in shown
    assert "boot protocol 2.15, zstd inside" in shown
    assert "no driver xen_blkfront" in shown
    found = json.loads(hanok(*words, "--json").stdout)
    assert found["kernel"]["version"] == "6.1.0-1-amd64"
    assert {one["hypervisor"] for one in found["modes"]} == {"qemu", "xen"}


def test_what_is_no_kernel_says_so(hanok: Hanok, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    done = hanok("image", "inspect", f"{tmp_path}/text")
    assert done.returncode == 2
    assert "no kernel that Hanok can read" in done.stderr


def test_an_image_has_its_own_initrds(hanok: Hanok) -> None:
    done = hanok("image", "inspect", "micro", "--initrd", "x")
    assert done.returncode == 2
    assert "an image has initrds of its own" in done.stderr
