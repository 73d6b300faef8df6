"""Makes a new image of another: the same disk with a kernel on it that suits other modes."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import Unsupported
from hanok.images.builder import METADATA
from hanok.images.change import Emulator, Kit, Target, put_kernel
from hanok.images.filing import hash_file, take_file
from hanok.images.progress import Report
from hanok.images.qcow2 import read_virtual_size
from hanok.images.sandbox import DEFAULT_ACCOUNT
from hanok.model.image import DiskFormat, Image, Kernel
from hanok.model.vm import Mode
from hanok.proc import Account, Runner

_REVISION = 1
_ROOT = "root=LABEL=hanok-root"


@dataclass(frozen=True)
class Order:
    """What is to be made: of which image, by which name, with which kernel for which modes."""

    old: Image
    source: Path
    ref: str
    kit: Kit
    modes: tuple[Mode, ...]

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, of all that the content depends on."""
        text = f"{_REVISION} {self.old.id} {self.kit.image.id} {self.ref}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(image: Image) -> None:
    """Raise Unsupported for an image whose disk the new kernel would not find."""
    if not image.kernels:
        raise Unsupported(
            f"the image {image.ref} has no kernel beside its disk: its firmware boots the disk",
            field="image",
            expected="an image with a kernel and an initrd of its own",
        )
    if _ROOT not in image.kernels[0].cmdline.split():
        raise Unsupported(
            f"the root file system of {image.ref} is not found by the label hanok-root",
            field="image",
            expected=f"{_ROOT} in its kernel's command line",
        )


async def paravirtualize(
    order: Order,
    folder: Path,
    account: Account | None,
    runner: Runner,
    report: Report,
    emulator: Emulator,
) -> Path:
    """Return a finished image folder inside the new folder ``folder``.

    ``account``: the uid that works when we are root; ``emulator`` runs the kernel. Raises
    GuestError when the disk cannot be changed (no ext4, no room), CommandFailed, TimedOut,
    HostError when this disk is full.
    """
    account = account or DEFAULT_ACCOUNT
    target, work = folder / "image", folder / "change"
    for path in (target, work):
        path.mkdir()
        path.chmod(0o755)
    report("copying the disk", None)
    copy = Target(work / order.old.disk, str(order.old.disk_format))
    await asyncio.to_thread(shutil.copyfile, order.source / order.old.disk, copy.path)
    report("putting the kernel onto the disk", None)
    await put_kernel(emulator, order.kit, copy, work, account, runner)
    report("checking the result", 0.95)
    return await asyncio.to_thread(_take_over, order, copy.path, target)


def _take_over(order: Order, disk: Path, target: Path) -> Path:
    old, kit = order.old, order.kit
    take_file(disk, target / old.disk, disk.stat().st_uid)
    size = old.disk_size
    if old.disk_format is DiskFormat.QCOW2:
        size = read_virtual_size(target / old.disk)
    kernels = (_new_kernel(order), *_kept(order))
    for name in dict.fromkeys(name for one in kernels for name in (one.vmlinuz, one.initrd)):
        plain, is_new = name.removeprefix(_PREFIX), name.startswith(_PREFIX)
        _copy((kit.folder if is_new else order.source) / plain, target / name)
    for name in old.more_disks:
        _copy(order.source / name, target / name)
    files = sorted(target.iterdir())
    image = old.model_copy(
        update={
            "id": order.id,
            "ref": order.ref,
            "disk_size": size,
            "kernels": kernels,
            "made_from": old.id,
            "checksums": {path.name: hash_file(path) for path in files},
            "created": time.time(),
            "size": sum(path.stat().st_blocks * 512 for path in files),
        }
    )
    path = target / METADATA
    path.write_text(image.model_dump_json(indent=2) + "\n")
    path.chmod(0o644)
    for one in (*files, path, target):
        sync_path(one)
    return target


_PREFIX = "added-"


def _new_kernel(order: Order) -> Kernel:
    kernel = order.kit.image.kernels[0]
    return Kernel(
        name=f"{_PREFIX}{kernel.name}",
        vmlinuz=f"{_PREFIX}{kernel.vmlinuz}",
        initrd=f"{_PREFIX}{kernel.initrd}",
        cmdline=order.old.kernels[0].cmdline,
        modes=order.modes,
    )


def _kept(order: Order) -> list[Kernel]:
    """Return the old kernels, each with the modes that the new one does not take over."""
    kept = []
    for kernel in order.old.kernels:
        modes = tuple(mode for mode in kernel.modes if mode not in order.modes)
        if modes and not kernel.name.startswith(_PREFIX):
            kept.append(kernel.model_copy(update={"modes": modes}))
    return kept


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o644)
