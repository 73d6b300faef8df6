"""Root disks: qcow2 overlays on an image's base, made under the VM's own uid.

The base is never written; its format is always named, never probed (CVE-2015-7548).
"""

from __future__ import annotations

import os
from pathlib import Path

from hanok.errors import InvalidInput
from hanok.model.image import Image
from hanok.proc import Account, Limits, Runner
from hanok.units import GIB, format_size

# OpenStack caps qemu-img so that a hostile header costs no more than this (CVE-2015-5162).
_IMG_LIMITS = Limits(cpu_seconds=30, memory=2 * GIB)


def check_disk_size(image: Image, size: int) -> None:
    """Raise InvalidInput when ``size`` bytes are less than the image's own disk."""
    if size < image.disk_size:
        raise InvalidInput(
            f"a disk of {format_size(size)} is smaller than the disk of {image.ref}",
            field="disk",
            expected=f"at least {format_size(image.disk_size)}",
        )


async def create_overlay(
    runner: Runner, *, base: Path, image: Image, path: Path, size: int, account: Account | None
) -> None:
    """Create the overlay ``path`` of ``size`` bytes on ``base``; nothing happens when it exists.

    It is made under another name and renamed, so a crash leaves no half disk.
    """
    if path.exists():
        return
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    await runner.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            str(base),
            "-F",
            image.disk_format.value,
            str(draft),
            str(size),
        ],
        timeout=60,
        account=account,
        limits=_IMG_LIMITS,
    )
    draft.chmod(0o600)
    draft.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
