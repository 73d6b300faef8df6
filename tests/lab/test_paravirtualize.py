"""A Debian without a single paravirtual driver becomes an image that boots in mode para."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.errors import Unsupported
from hanok.images.filing import hash_file
from hanok.images.library import ImageLibrary
from hanok.model.image import Image
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES
from tests.daemon.harness import Daemon, new_daemon
from tests.images.stripped import ID, make_stripped, share
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(1800)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """A library with a Debian that was stripped, a kernel, and what probing needs."""
    shared = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    library = ImageLibrary(shared, SystemRunner(), Account(BUILD_UID, BUILD_UID))

    async def build() -> list[Image]:
        wanted = (("debian:12", ()), ("kernel:12", ("linux-image-amd64",)), ("micro", ()))
        return [await library.ensure(ref, packages, lambda *_: None) for ref, packages in wanted]

    debian, *others = asyncio.run(build())
    # On the same file system as the images, so that they are shared and not copied.
    with tempfile.TemporaryDirectory(prefix=".hk-images-", dir=shared.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for image in others:
            share(library.path(image), folder / image.id)
        work = folder / ".work"
        work.mkdir()
        make_stripped(library.path(debian), debian, folder / ID, work)
        yield folder


@pytest.fixture(scope="module")
def daemon(images: Path) -> Iterator[Daemon]:
    """A daemon on QEMU with that library."""
    with new_daemon("qemu", images) as started:
        yield started


def para(daemon: Daemon, ref: str) -> tuple[str, str]:
    """Return whether the first kernel of ``ref`` can run in QEMU's mode para, and why not."""
    modes = daemon.client.image_kernels(ref)["kernels"][0]["modes"]
    (one,) = [mode for mode in modes if (mode["hypervisor"], mode["mode"]) == ("qemu", "para")]
    return one["can"], "; ".join(one["lacks"])


def test_a_stripped_image_is_made_to_run_in_mode_para(daemon: Daemon, images: Path) -> None:
    before = {path.name: hash_file(path) for path in (images / ID).iterdir()}

    can, why = para(daemon, "own:stripped")
    assert can == "no"
    assert "no driver virtio_blk" in why
    guest = {"image": "own:stripped", "memory": "512M", "disk": "4G", "mode": "para"}
    with pytest.raises(Unsupported, match="no kernel for mode para"):
        daemon.run("refused", **guest)

    wanted = {"hypervisor": "qemu", "name": "better"}
    made = daemon.done(daemon.client.paravirtualize("own:stripped", wanted))["result"]
    assert made["ref"] == "own:better"
    assert "para" in made["modes"]
    assert para(daemon, "own:better") == ("yes", "")

    vm = daemon.run("better", **{**guest, "image": "own:better"})
    assert vm["evidence"]["disk_driver"] == "virtio_blk"
    assert vm["evidence"]["nic_driver"] == "virtio_net"
    release = daemon.sh("better", "uname -r").strip()
    modules = daemon.sh("better", "cut -d' ' -f1 /proc/modules").split()
    assert {"virtio_blk", "virtio_net", "virtio_pci"} <= set(modules)
    # From the disk, not from the initrd, which has no network driver.
    daemon.sh("better", f"test -e /usr/lib/modules/{release}/kernel/drivers/net/virtio_net.ko")
    daemon.sh("better", f"test -e /boot/vmlinuz-{release}")
    daemon.sh("better", "ip -4 route show default | grep -q via")

    # The same request again finds it; the old one is what it was.
    again = daemon.done(daemon.client.paravirtualize("own:stripped", wanted))["result"]
    assert again["id"] == made["id"]
    assert {path.name: hash_file(path) for path in (images / ID).iterdir()} == before


def test_a_disk_without_room_says_what_would_fit(daemon: Daemon, images: Path) -> None:
    from hanok.errors import GuestError

    with pytest.raises(GuestError, match="no room: the kernel needs") as caught:
        daemon.done(daemon.client.paravirtualize("micro", {}))
    assert "linux-image-cloud-amd64" in str(caught.value.hint)
    assert not [path for path in images.iterdir() if path.name.startswith(".build-")]
