"""Kernels of images are read in a process of its own that owns nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from hanok.errors import InvalidInput, NotFound, Unsupported
from hanok.images.sandbox import DEFAULT_ACCOUNT
from hanok.model.image import Image
from hanok.proc import SystemRunner
from tests.daemon.harness import new_daemon
from tests.fake_image import fake_images
from tests.kernels.samples import (
    ALL_NOTES,
    PVH_NOTES,
    VIRTIO,
    XEN,
    make_bzimage,
    make_elf,
    make_initrd,
)

ARGV = [sys.executable, "-P", "-m", "hanok.kernels", str(DEFAULT_ACCOUNT.uid)]


async def read(runner: SystemRunner, *words: str) -> list[dict[str, object]]:
    done = await runner.run([*ARGV, *words])
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_bad_kernel_does_not_hide_the_next(runner: SystemRunner, short_tmp: Path) -> None:
    short_tmp.chmod(0o755)
    (short_tmp / "bad").write_bytes(b"no kernel")
    (short_tmp / "good").write_bytes(make_elf(PVH_NOTES))
    (short_tmp / "initrd").write_bytes(make_initrd(*VIRTIO))
    bad = ("bad", f"{short_tmp}/bad", f"{short_tmp}/initrd")
    good = ("good", f"{short_tmp}/good", f"{short_tmp}/initrd")
    first, second = await read(runner, *bad, *good)
    assert first == {"name": "bad", "why": "this is no kernel that Hanok can read"}
    assert second["name"] == "good"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
async def test_it_owns_nothing(runner: SystemRunner, short_tmp: Path) -> None:
    short_tmp.chmod(0o755)
    secret = short_tmp / "secret"
    secret.write_bytes(make_elf(PVH_NOTES))
    secret.chmod(0o600)
    (found,) = await read(runner, "k", str(secret), "")
    assert "Permission denied" in str(found["why"])


def test_a_daemon_tells_what_it_could_not_read() -> None:
    with fake_images() as images, new_daemon("fake", images) as daemon:
        found = daemon.client.image_kernels("micro")
        assert found["kernels"] == []
        assert found["failures"] == [
            {"name": "none", "why": "this is no kernel that Hanok can read"}
        ]


def test_a_daemon_reads_the_kernels_of_an_image() -> None:
    with fake_images() as images, new_daemon("fake", images) as daemon:
        (folder,) = [path for path in images.iterdir() if path.is_dir() and path.name[0] != "."]
        (folder / "vmlinuz").write_bytes(make_bzimage(make_elf(ALL_NOTES)))
        (folder / "initrd").write_bytes(make_initrd(*VIRTIO, *XEN))
        (found,) = daemon.client.image_kernels("micro")["kernels"]
        can = {(one["hypervisor"], one["mode"]) for one in found["modes"] if one["can"] == "yes"}
        assert can == {("qemu", "para"), ("xen", "para"), ("xen", "hybrid")}


@pytest.mark.vm
async def test_the_kernels_of_micro(runner: SystemRunner, micro_image: tuple[Image, Path]) -> None:
    image, folder = micro_image
    words = [
        word
        for kernel in image.kernels
        for word in (kernel.name, str(folder / kernel.vmlinuz), str(folder / kernel.initrd))
    ]
    for found, kernel in zip(await read(runner, *words), image.kernels, strict=True):
        modes = found["modes"]
        assert isinstance(modes, list)
        can = {one["mode"] for one in modes if one["hypervisor"] == "qemu" and one["can"] == "yes"}
        assert can == {str(mode) for mode in kernel.modes} - {"hybrid"}
        xen = {one["mode"]: one["can"] for one in modes if one["hypervisor"] == "xen"}
        assert (xen["para"], xen["hybrid"]) == ("yes", "yes")


def test_what_cannot_be_paravirtualized_is_refused_at_once() -> None:
    with fake_images() as images, new_daemon("fake", images) as daemon:
        with pytest.raises(Unsupported, match="label hanok-root"):
            daemon.client.paravirtualize("micro", {})
        with pytest.raises(NotFound):
            daemon.client.paravirtualize("nothing", {})
        with pytest.raises(InvalidInput):
            daemon.client.paravirtualize("micro", {"hypervisor": "kvm"})
        with pytest.raises(NotFound, match="no image own:nothing"):
            daemon.run("x", image="own:nothing")
        assert daemon.client.vms() == []
