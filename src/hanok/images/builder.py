"""Builds an image: mmdebstrap in a sandbox, then the result checked and taken over."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import CommandFailed, HostError, InvalidInput, TimedOut
from hanok.images.debs import keep_debs, offer_debs
from hanok.images.filing import hash_file, take_file
from hanok.images.progress import BuildProgress, Report
from hanok.images.qcow2 import read_virtual_size
from hanok.images.recipes import (
    KERNEL,
    LAB_SYSTEM,
    LAB_XEN_SYSTEM,
    MICRO,
    Recipe,
    guest_files,
)
from hanok.images.sandbox import Sandbox, make_sandbox
from hanok.model.architecture import GUEST_ARCHITECTURES, Arch
from hanok.model.image import BareHypervisor, Image, Kernel
from hanok.model.vm import Mode
from hanok.proc import Account, Runner, require_program
from hanok.units import MIB

METADATA = "image.json"
DISK = "disk.qcow2"
_TIME_LIMIT = 20 * 60
_MINIMUM_MEMORY = {MICRO: 128, LAB_SYSTEM: 1024, LAB_XEN_SYSTEM: 2048}  # MiB
_FREE_SPACE = 512  # MiB left on a new Debian disk before it is grown
_MISSING_PACKAGE = re.compile(r"E: Unable to locate package (\S+)")
_NO_SUITE = re.compile(r"does not have a Release file|404 +Not Found|does not seem to be available")

_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "xz": "xz-utils",
    "lz4": "lz4",
    "zstd": "zstd",
}
# What puts an image together that cannot do it itself: see files/micro-arm64.
_PROGRAMS_HERE = {"depmod": "kmod", "cpio": "cpio"}
# cryptomgr.notests skips self-tests of ciphers (0.5 s of an emulated CPU); expedited RCU shortens
# waits in a boot that has one CPU. Without a watchdog over the TSC, which an emulated machine takes
# from the host's, an idle guest wakes up 1.7 times a second instead of 4.5. CPU mitigations stay as
# the kernel chooses: switching them off gained nothing that could be measured.
_FAST = "cryptomgr.notests rcupdate.rcu_expedited=1 audit=0 tsc=nowatchdog"
# Nothing in micro uses AppArmor, TOMOYO or pressure statistics, which each file and each wake-up
# would be checked and counted for.
_FASTER = f"{_FAST} lsm=landlock,yama psi=0"
_FASTER_ARM64 = _FASTER.replace(" tsc=nowatchdog", "")
# QEMU 7.2's emulation of XSAVE mixes registers where the emulated CPU virtualizes (seen below Xen,
# see hypervisors/qemu/arch.py), and kernels of hosts with several guests in KVM have crashed there.
_NESTING = "noxsave"
_CONSOLE = f"console={GUEST_ARCHITECTURES[Arch.AMD64].console},115200"
# Xen has the serial port, and Dom0's console is Xen's. Dom0 keeps its memory and never grows. Xen
# would write all free memory once, which a clone's host would then have to keep for it.
_XEN_LINE = (
    "console=com1 com1=115200,8n1 dom0_mem=1G,max:1G dom0_max_vcpus=1-2 bootscrub=0 loglvl=info"
)
_XEN_CONSOLE = "console=hvc0"


@dataclass(frozen=True)
class BuiltFiles:
    """What a build must leave in its output folder, and the kernels that are made of it."""

    kernels: tuple[Kernel, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """File names, the disk first."""
        found = [DISK]
        for kernel in self.kernels:
            found += kernel.files
        return tuple(found)


def kernels_of(recipe: Recipe) -> tuple[Kernel, ...]:
    """Return the kernels of an image, the fastest first."""
    if recipe.architecture is not Arch.AMD64:
        return (_foreign_kernel(recipe.architecture),)
    if recipe.kind == MICRO:
        line = f"{_CONSOLE} root=LABEL=hanok-root rw quiet {_FASTER}"
        cloud = "vmlinux-cloud"
    else:
        line = f"{_CONSOLE} root=LABEL=hanok-root rw quiet {_FAST} net.ifnames=0"
        cloud = "vmlinuz-cloud"
    if recipe.kind == KERNEL:
        cloud = "vmlinux-cloud"
    if recipe.kind == LAB_XEN_SYSTEM:
        return (_dom0_kernel(line.replace(_CONSOLE, _XEN_CONSOLE)),)
    full = (Mode.FULL, Mode.PARA, Mode.HYBRID)
    fast = Kernel(
        name="cloud",
        vmlinuz=cloud,
        initrd="initrd-cloud",
        cmdline=line,
        modes=(Mode.PARA, Mode.HYBRID),
    )
    if recipe.kind == LAB_SYSTEM:
        return (fast.model_copy(update={"cmdline": f"{line} {_NESTING}"}),)
    generic = Kernel(
        name="generic",
        vmlinuz="vmlinux-generic",
        bzimage="vmlinuz-generic",
        initrd="initrd-generic",
        cmdline=line,
        modes=full,
    )
    if recipe.kind == KERNEL:
        alone = generic.model_copy(update={"bzimage": None})
        return (fast if "-cloud-" in recipe.packages[0] else alone,)
    return (fast, generic)


def _foreign_kernel(arch: Arch) -> Kernel:
    """Return the one kernel of a guest of another architecture: its board has no old hardware."""
    console = f"console={GUEST_ARCHITECTURES[arch].console},115200"
    return Kernel(
        name="cloud",
        vmlinuz="vmlinuz-cloud",
        initrd="initrd-cloud",
        cmdline=f"{console} root=LABEL=hanok-root rw quiet {_FASTER_ARM64}",
        modes=(Mode.PARA,),
    )


def _dom0_kernel(line: str) -> Kernel:
    """Return the full kernel below Xen: the small one has no support for Dom0."""
    return Kernel(
        name="dom0",
        vmlinuz="dom0",
        initrd="initrd-generic",
        cmdline=line,
        modes=(Mode.PARA,),
        hypervisor=BareHypervisor(file="xen", cmdline=_XEN_LINE),
    )


def mmdebstrap_argv(recipe: Recipe, sandbox: Sandbox) -> list[str]:
    """Return the command that makes the image's files in ``sandbox.out``. Pure.

    Names in it come from a recipe, so they are validated; paths are quoted for the hooks' shell.
    """
    files, debs, out = (
        shlex.quote(str(path)) for path in (sandbox.files, sandbox.debs, sandbox.out)
    )
    is_foreign = recipe.architecture is not Arch.AMD64
    is_unpacked = recipe.kind in (MICRO, KERNEL)
    hook = "extract" if is_unpacked else "customize"
    shell = "busybox sh" if is_unpacked else "sh"
    packages = (*recipe.base_packages, *recipe.packages)
    # Variant extract has downloaded everything when its hooks run.
    fetched = "" if is_unpacked else " ".join(packages)
    more = [f"--{hook}-hook=sh {files}/pack-xen {out}"] if recipe.kind == LAB_XEN_SYSTEM else []
    making = [
        f'--{hook}-hook=chroot "$1" {shell} /var/tmp/hanok/files/assemble',
        f'--{hook}-hook=sh {files}/pack {out} "$1" {recipe.kind} {_FREE_SPACE}',
    ]
    if is_foreign:  # nothing of it can be run here
        making = [f'--{hook}-hook=sh {files}/assemble-here {out} "$1"']
    return [
        "mmdebstrap",
        "--mode=unshare",
        "--verbose",
        "--format=null",
        "--skip=cleanup",
        f"--variant={'extract' if is_unpacked else 'minbase'}",
        *([f"--architectures={recipe.architecture}"] if is_foreign else []),
        # A name that does not exist must not be taken for a regular expression.
        '--aptopt=APT::Cmd::Pattern-Only "true"',
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(packages)}",
        f'--setup-hook=sh {files}/offer {debs} "$1"',
        f'--extract-hook=sh {files}/fetch {out} "$1" {fetched}',
        f'--{hook}-hook=sh {files}/place {files} "$1"',
        *making,
        *more,
        recipe.suite,
        "-",
    ]


class Builder:
    """Builds images into folders."""

    def __init__(self, runner: Runner, account: Account | None, cache: Path) -> None:
        """``cache`` keeps downloaded packages between builds."""
        self._runner = runner
        self._account = account
        self._cache = cache

    async def build(
        self, recipe: Recipe, folder: Path, report: Report, lock: int, inside: Path | None = None
    ) -> Path:
        """Build ``recipe`` inside the new folder ``folder``; return the finished image folder.

        The processes of the build keep ``lock`` open, so that it is held until the last has ended.
        ``inside``: the folder of an image that is put into this one.
        Raises InvalidInput for a package that does not exist, CommandFailed with the last lines of
        output, TimedOut.
        """
        here = _PROGRAMS_HERE if recipe.architecture is not Arch.AMD64 else {}
        for program, package in {**_PROGRAMS, **here}.items():
            require_program(program, package)
        cache = self._cache / recipe.suite
        if recipe.architecture is not Arch.AMD64:
            cache = self._cache / f"{recipe.suite}-{recipe.architecture}"
        sandbox = make_sandbox(folder, self._account, guest_files(recipe.files_kind))
        await asyncio.to_thread(offer_debs, cache, sandbox.debs)
        if inside is not None:
            held = sandbox.files / "images" / inside.name
            await asyncio.to_thread(shutil.copytree, inside, held)
        progress = BuildProgress(report)
        await self._run(recipe, sandbox, progress, lock)
        report("checking the result", 0.97)
        finished = await asyncio.to_thread(self._take_over, recipe, sandbox, folder / "image")
        await asyncio.to_thread(keep_debs, cache, sandbox.out / "debs", progress.debs)
        return finished

    async def _run(
        self, recipe: Recipe, sandbox: Sandbox, progress: BuildProgress, lock: int
    ) -> None:
        try:
            await self._runner.run(
                sandbox.argv(mmdebstrap_argv(recipe, sandbox)),
                timeout=_TIME_LIMIT,
                env=sandbox.environment(),
                limits=sandbox.limits,
                pass_fds=(lock,),
                on_line=progress.feed,
            )
        except CommandFailed as error:
            raise _explain(recipe, progress.tail) from error
        except TimedOut as error:
            raise TimedOut(
                f"{recipe.ref} was not built within {_TIME_LIMIT // 60} minutes; its last lines:\n"
                f"{progress.tail}",
                hint="look whether the package mirror answers, then build again",
            ) from error

    def _take_over(self, recipe: Recipe, sandbox: Sandbox, target: Path) -> Path:
        """Move the checked files into ``target``, add the metadata, flush all to the disk."""
        built = BuiltFiles(kernels_of(recipe))
        target.mkdir()
        target.chmod(0o755)
        checksums = {}
        for name in built.names:
            take_file(sandbox.out / name, target / name, sandbox.owner)
            checksums[name] = hash_file(target / name)
        image = Image(
            id=recipe.id,
            ref=recipe.ref,
            os=recipe.os,
            packages=recipe.packages,
            architecture=recipe.architecture,
            disk=DISK,
            disk_size=read_virtual_size(target / DISK),
            kernels=built.kernels,
            ssh_user="debian" if recipe.kind == "debian" else None,
            cloud_init=recipe.kind == "debian",
            minimum_memory=_MINIMUM_MEMORY.get(recipe.kind, 384) * MIB,
            checksums=checksums,
            created=time.time(),
            size=sum((target / name).stat().st_blocks * 512 for name in built.names),
        )
        path = target / METADATA
        path.write_text(image.model_dump_json(indent=2) + "\n")
        path.chmod(0o644)
        for name in (*built.names, METADATA):
            sync_path(target / name)
        sync_path(target)
        return target


def _explain(recipe: Recipe, tail: str) -> HostError | InvalidInput:
    if found := _MISSING_PACKAGE.search(tail):
        return InvalidInput(
            f"{recipe.os} has no package {found[1]}",
            field="packages",
            expected=f"packages of {recipe.os}",
            hint=f"look it up with 'apt-cache search' on a {recipe.os}",
        )
    hint = "the last lines say what failed; when that is put right, build again"
    if _NO_SUITE.search(tail):
        hint = f"the package mirror does not serve {recipe.suite} (any more), or not all of it"
    return CommandFailed(f"{recipe.ref} could not be built; its last lines:\n{tail}", hint=hint)
