"""Small file systems for tests, which can be filled and emptied again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hanok.units import MIB
from tests.daemon.harness import wait_until

_PIECE = bytes(64 * 1024)


@dataclass(frozen=True)
class Small:
    """A file system at ``path``."""

    path: Path

    @property
    def filler(self) -> Path:
        """The file that fills it, where Hanok looks for nothing."""
        return self.path / "lost+found" / "filler"

    @property
    def free(self) -> int:
        """Bytes that are left."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Fill it, all but ``leave`` bytes."""
        self.filler.parent.mkdir(mode=0o700, exist_ok=True)
        with self.filler.open("ab", buffering=0) as file:
            try:
                while (room := self.free - leave) > 0 or leave == 0:
                    file.write(_PIECE[: min(len(_PIECE), room)] if leave else _PIECE)
                    if self.free == 0:
                        return
            except OSError:
                return

    def empty(self) -> None:
        """Give its room back."""
        self.filler.unlink(missing_ok=True)


@contextmanager
def small_file_system(path: Path, size: int = 64 * MIB, mode: str = "711") -> Iterator[Small]:
    """Mount one in memory of ``size`` bytes at ``path``, a folder that is made."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode={mode}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "hanok-test", path], check=True)
    try:
        yield Small(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def _has_loop(file: Path) -> bool:
    done = subprocess.run(["losetup", "-j", file], check=True, capture_output=True)
    return bool(done.stdout.strip())


@contextmanager
def small_disk(path: Path, file: Path, size: int) -> Iterator[Small]:
    """Mount an ext4 of ``size`` bytes in ``file`` at ``path``; checked when it is given back."""
    path.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.truncate(file, size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-F", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, path], check=True)
    path.chmod(0o711)
    try:
        yield Small(path)
    finally:
        subprocess.run(["umount", path], check=True)
    # Others that began meanwhile with mounts of their own, such as builds, have it until they end.
    wait_until(lambda: not _has_loop(file), 240, f"nobody has {file} mounted")
    subprocess.run(["e2fsck", "-fn", file], check=True, stdout=subprocess.DEVNULL)
