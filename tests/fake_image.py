"""An image for the fake hypervisor: the right files, no guest in them."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanok.images.recipes import resolve
from hanok.model.image import DiskFormat, Image, Kernel
from hanok.model.vm import Mode
from hanok.units import MIB


def make_fake_image(folder: Path) -> Image:
    """Put an image called micro into the library at ``folder``."""
    recipe = resolve("micro")
    home = folder / recipe.id
    home.mkdir(mode=0o755)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(home / "disk.qcow2"), "64M"], check=True
    )
    for name in ("vmlinuz", "initrd"):
        (home / name).write_bytes(b"nothing")
    kernel = Kernel(
        name="none", vmlinuz="vmlinuz", initrd="initrd", cmdline="", modes=(Mode.FULL, Mode.PARA)
    )
    image = Image(
        id=recipe.id,
        ref="micro",
        os="none",
        disk_format=DiskFormat.QCOW2,
        disk_size=64 * MIB,
        kernels=(kernel,),
        minimum_memory=64 * MIB,
        checksums={
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in home.iterdir()
        },
    )
    (home / "image.json").write_text(image.model_dump_json())
    return image


@contextmanager
def fake_images() -> Iterator[Path]:
    """Give a library with that image alone."""
    # Not below pytest's own folder: that one keeps the VMs' accounts out.
    with tempfile.TemporaryDirectory(prefix="hk-images-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_fake_image(folder)
        yield folder
