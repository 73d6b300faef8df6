"""A lock per image that holds across tasks, processes and the sudden end of either."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

_RETRY = 0.1


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock file ``path``, or None when another holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder removed the file meanwhile: take the new one


def unlock(path: Path, descriptor: int) -> None:
    """Remove the lock file ``path`` and let go of it."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


@contextlib.asynccontextmanager
async def hold(path: Path, waiting: Callable[[], None] | None = None) -> AsyncIterator[int]:
    """Hold the lock file ``path``; ``waiting`` is called once when another has it."""
    told = False
    while (descriptor := try_lock(path)) is None:
        if waiting is not None and not told:
            waiting()
            told = True
        await asyncio.sleep(_RETRY)
    try:
        yield descriptor
    finally:
        unlock(path, descriptor)
