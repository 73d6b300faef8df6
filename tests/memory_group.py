"""Control groups of tests with little memory: v1 or v2, whichever this machine has."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.harness import wait_until

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A control group; whoever is in it may take ``limit`` bytes."""

    folder: Path
    home: Path

    def take(self, pid: int) -> None:
        """Put a process into it: what it takes from now on is counted here."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def let_go(self) -> None:
        """Put whoever lives in it back where it came from."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self.home / "cgroup.procs").write_text(pid)


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """Make a group of ``limit`` bytes; skips the test where that cannot be."""
    old = (_ROOT / "memory" / "memory.limit_in_bytes").exists()
    root = _ROOT / "memory" if old else _ROOT
    name = "memory.limit_in_bytes" if old else "memory.max"
    folder = root / f"hanok-test-{uuid.uuid4().hex[:8]}"
    if os.geteuid() != 0:
        pytest.skip("control groups are root's")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    group = MemoryGroup(folder, root)
    try:
        try:
            (folder / name).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error.strerror}")
        yield group
    finally:
        group.let_go()
        wait_until(lambda: _remove(folder), 30, "whoever ended in it has been waited for")


def _remove(folder: Path) -> bool:
    """Remove a control group; False while one in it has ended and nobody has waited for it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
