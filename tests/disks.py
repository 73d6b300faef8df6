"""Disks of a Debian with a boot loader of its own, built once and kept beside the test images."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hanok.images.filing import take_file
from hanok.images.sandbox import Sandbox, make_sandbox, remove_foreign
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES

_GRUB_DISK = Path(__file__).parent / "foreign" / "grub-disk"
_TIME_LIMIT = 1200


@dataclass(frozen=True)
class DiskSet:
    """Disks (qcow2, without that ending) that one mmdebstrap makes.

    ``folder`` has two scripts: ``assemble UUID`` for the chroot and the hook ``pack OUT ROOT UUID``
    that makes the disks. ``cached`` are packages that are only downloaded into the guest's cache.
    """

    name: str
    folder: Path
    uuid: str
    packages: tuple[str, ...]
    disks: tuple[str, ...]
    cached: tuple[str, ...] = ()

    def files(self) -> dict[str, bytes]:
        """Return the scripts, by name."""
        found = {name: (self.folder / name).read_bytes() for name in ("assemble", "pack")}
        return {**found, "grub-disk": _GRUB_DISK.read_bytes()}

    def digest(self) -> str:
        """Return a hash of all that the disks are made of."""
        what = (self.uuid, self.packages, self.cached, self.disks, sorted(self.files().items()))
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def disks_of(wanted: DiskSet) -> dict[str, Path]:
    """Return the disks of a set, building them when they are not there."""
    folder = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES)).parent / "servers"
    digest = wanted.digest()
    found = {disk: folder / f"{wanted.name}-{disk}-{digest}.qcow2" for disk in wanted.disks}
    if not all(path.exists() for path in found.values()):
        folder.mkdir(parents=True, exist_ok=True)
        # A thread of its own, since an async test may be the first to ask.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: asyncio.run(_build(wanted, found))).result()
    return found


async def _build(wanted: DiskSet, found: dict[str, Path]) -> None:
    folder = next(iter(found.values())).parent
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
    work.chmod(0o755)
    runner = SystemRunner()
    try:
        sandbox = make_sandbox(work, Account(BUILD_UID, BUILD_UID), wanted.files())
        environ = {**sandbox.environment(), "INITRD": "Yes"}
        argv = sandbox.argv(_mmdebstrap(wanted, sandbox))
        await runner.run(argv, timeout=_TIME_LIMIT, env=environ, limits=sandbox.limits)
        for disk, path in found.items():
            take_file(sandbox.out / f"{disk}.qcow2", work / path.name, sandbox.owner)
            shutil.move(work / path.name, path)
    finally:
        await remove_foreign(work, runner)


def _mmdebstrap(wanted: DiskSet, sandbox: Sandbox) -> Sequence[str]:
    files, out = sandbox.files, sandbox.out
    fetch = "apt-get install --yes --no-install-recommends --download-only "
    cached = f"--customize-hook=APT_CONFIG=$MMDEBSTRAP_APT_CONFIG {fetch}{' '.join(wanted.cached)}"
    return [
        *("mmdebstrap", "--mode=unshare", "--format=null", "--variant=minbase"),
        *("--skip=cleanup", "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"'),
        f"--include={','.join(wanted.packages)}",
        *((cached,) if wanted.cached else ()),
        f'--customize-hook=cp {files}/assemble "$1/var/tmp/assemble"',
        f'--customize-hook=chroot "$1" sh /var/tmp/assemble {wanted.uuid}',
        f'--customize-hook=sh {files}/pack {out} "$1" {wanted.uuid}',
        "bookworm",
        "-",
    ]
