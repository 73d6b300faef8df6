"""Puts a kernel into a copy of a guest's disk, inside a small VM of its own.

The disk is foreign: the host never mounts it. The VM is started by the new kernel itself, so that
it has shown to boot by virtio before any image has it; it has no network, and its QEMU runs as an
unprivileged uid with QEMU's sandbox.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import CommandFailed, GuestError, TimedOut
from hanok.images.recipes import KERNEL, guest_files
from hanok.kernels.cpio import make_archive
from hanok.model.architecture import GUEST_ARCHITECTURES, Arch
from hanok.model.image import Image
from hanok.proc import Account, Limits, Runner, require_program
from hanok.units import GIB

_TIME_LIMIT = 15 * 60
_LIMITS = Limits(cpu_seconds=_TIME_LIMIT, memory=4 * GIB)
_SAID = "hanok-change: "
_DENIED = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_CMDLINE = "quiet loglevel=3 rdinit=/change panic=-1 cryptomgr.notests"


@dataclass(frozen=True)
class Emulator:
    """What runs the small VM: the program, its Debian package, its board and its CPU model."""

    program: str
    package: str
    board: str
    cpu: str


# Which emulator runs guests of an architecture; it raises HostError when there is none.
Emulators = Callable[[Arch], Emulator]


@dataclass(frozen=True)
class Kit:
    """A kernel to put in: its image and the folder of that."""

    image: Image
    folder: Path


@dataclass(frozen=True)
class Target:
    """The copy of a disk, and what its format is."""

    path: Path
    format: str


def change_argv(emulator: Emulator, kit: Kit, initrd: Path, target: Target) -> list[str]:
    """Return the command line of the small VM. Pure.

    Software emulation: it works everywhere and has nothing to measure first.
    """
    kernel = kit.image.kernels[0]
    console = GUEST_ARCHITECTURES[kit.image.architecture].console
    return [
        emulator.program,
        *("-machine", emulator.board, "-accel", "tcg,tb-size=256", "-cpu", emulator.cpu),
        *("-m", "512"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", _DENIED, "-serial", "stdio", "-monitor", "none"),
        *("-kernel", str(kit.folder / kernel.vmlinuz), "-initrd", str(initrd)),
        *("-append", f"console={console},115200 {_CMDLINE}"),
        *_disk("disk", target.path, target.format, read_only=False),
        *_disk("kit", kit.folder / kit.image.disk, str(kit.image.disk_format), read_only=True),
    ]


def _disk(name: str, path: Path, kind: str, *, read_only: bool) -> list[str]:
    # JSON, since a comma in a path would begin another option.
    file = {"driver": "file", "filename": str(path), "read-only": read_only}
    node = {"driver": kind, "node-name": name, "read-only": read_only, "file": file}
    return ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={name}"]


async def put_kernel(
    emulator: Emulator,
    kit: Kit,
    target: Target,
    folder: Path,
    account: Account | None,
    runner: Runner,
) -> tuple[str, ...]:
    """Put the kernel of ``kit`` onto the disk ``target``; ``folder`` is an empty one for our use.

    Returns the kernel releases that were put there. Raises GuestError when the disk has no file
    system that can be changed or no room, CommandFailed, TimedOut.
    """
    require_program(emulator.program, emulator.package)
    initrd = folder / "initrd"
    _write_initrd(kit, initrd)
    if account is not None and os.geteuid() == 0:
        os.chown(target.path, account.uid, account.gid)
    target.path.chmod(0o600)
    said: list[str] = []

    def hear(line: str) -> None:
        _, found, text = line.partition(_SAID)
        if found and len(said) < 64:
            said.append(text.strip())

    # It ends with the daemon: nobody would wait for it any more.
    argv = ["setpriv", "--pdeathsig", "KILL", *change_argv(emulator, kit, initrd, target)]
    try:
        await runner.run(
            argv, timeout=_TIME_LIMIT, account=account, limits=_LIMITS, cwd=Path("/"), on_line=hear
        )
    except TimedOut as error:
        raise TimedOut(
            f"putting a kernel onto the disk took longer than {_TIME_LIMIT // 60} minutes"
        ) from error
    return _outcome(said)


def _outcome(said: list[str]) -> tuple[str, ...]:
    last = said[-1] if said else ""
    if last.startswith("failed: "):
        reason = last.removeprefix("failed: ")
        hint = None
        if reason.startswith("no room"):
            hint = "a smaller kernel: --kernel-package linux-image-cloud-amd64"
        raise GuestError(f"the kernel could not be put onto the disk: {reason}", hint=hint)
    if last != "done":
        raise CommandFailed(
            "the small VM that changes the disk ended without a word",
            hint="'hanok image inspect' says whether its kernel can run in mode para",
        )
    return tuple(text.split()[1] for text in said if text.startswith("put "))


def _write_initrd(kit: Kit, path: Path) -> None:
    """Write the kit's initrd with the program that makes the change behind it."""
    script = guest_files(KERNEL)["change"]
    with path.open("wb") as file, (kit.folder / kit.image.kernels[0].initrd).open("rb") as initrd:
        shutil.copyfileobj(initrd, file)
        file.write(bytes(-file.tell() % 512))
        file.write(make_archive({"change": script}))
    path.chmod(0o644)
