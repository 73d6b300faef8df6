"""A runner whose mmdebstrap leaves a small image at once, for tests of what is around a build."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanok.errors import CommandFailed
from hanok.proc import Completed, SystemRunner

_DISK = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(16) + (60 << 20).to_bytes(8, "big") + bytes(80)


class QuickBuilds(SystemRunner):
    """Counts builds; ``spoil`` may change the output folder, ``failure`` is what a build prints
    before it fails."""

    def __init__(self, spoil: Callable[[Path], None] | None = None, failure: str = "") -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._spoil = spoil
        self._failure = failure

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> Completed:
        """Make the files of an image instead of running mmdebstrap."""
        if "--format=null" not in argv:
            return await super().run(argv, env=env, **options)
        self.count += 1
        await self.gate.wait()
        assert env is not None
        if self._failure:
            for line in self._failure.splitlines():
                options["on_line"](line)
            raise CommandFailed("mmdebstrap ended with status 1")
        self._fill(Path(env["TMPDIR"]).parent / "out")
        return Completed(tuple(argv), 0, b"", b"")

    def _fill(self, out: Path) -> None:
        (out / "disk.qcow2").write_bytes(_DISK)
        for name in (
            "vmlinux-cloud",
            "vmlinuz-cloud",
            "vmlinux-generic",
            "vmlinuz-generic",
            "initrd-cloud",
            "initrd-generic",
        ):
            (out / name).write_text(name)
        owner = out.stat().st_uid
        if os.geteuid() == 0:
            for path in out.iterdir():
                os.chown(path, owner, owner)
        if self._spoil is not None:
            self._spoil(out)
