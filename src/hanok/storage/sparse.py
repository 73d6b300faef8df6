"""Sparse files: what is data in them, and copies that keep the holes.

All functions block: callers use a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import HostError

_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file until one is written
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_BLOCK = 1024 * 1024


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what may hold data in the first ``size`` bytes of a file.

    What lies between is holes. A file system that knows none gives one extent. Raises OSError.
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if start >= size:
            return
        end = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, end


@contextlib.contextmanager
def telling(doing: str) -> Iterator[None]:
    """Raise HostError, its message starting with ``doing``, where an OSError is raised inside."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise HostError(
            f"{doing}: {error.strerror}",
            hint="free some of the disk; nothing was left behind" if full else None,
        ) from error


@contextlib.contextmanager
def written_whole(path: Path, mode: int) -> Iterator[int]:
    """Give a descriptor of a new empty file that gets the name ``path`` once it is durable.

    When the block fails, or the machine dies in it, ``path`` is what it was before. Raises OSError.
    """
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
        os.fchmod(fd, mode)
        os.fsync(fd)
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_path(path.parent)


@contextlib.contextmanager
def opened_plain(path: Path) -> Iterator[int]:
    """Give a descriptor to read ``path``: it may lie in the folder of a process that is hostile.

    Raises HostError when it is missing or no plain file: a link would have this process read what
    the other may not, and a FIFO would have it wait for ever.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        what = "is a symbolic link" if error.errno == errno.ELOOP else f"({error.strerror})"
        missing = error.errno == errno.ENOENT
        raise HostError(
            f"{path} is missing" if missing else f"{path} cannot be read: it {what}"
        ) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise HostError(f"{path} is not a plain file")
        if found.st_nlink != 1:
            raise HostError(f"{path} has a second name (a hard link)")
        yield fd
    finally:
        os.close(fd)


def copy_sparse(source: Path, target: Path, mode: int) -> None:
    """Copy a file to ``target`` with permissions ``mode``, holes and all, whole or not at all.

    Where the file system can, both share their blocks until one is written. ``source`` must not
    be written meanwhile. Raises HostError when it is no plain file, shrinks, or the disk is full.
    """
    with (
        telling(f"{source} could not be copied to {target}"),
        opened_plain(source) as old,
        written_whole(target, mode) as new,
    ):
        if _share_blocks(old, new):
            return
        size = os.fstat(old).st_size
        os.ftruncate(new, size)
        for start, end in data_extents(old, size):
            _copy_extent(old, new, start, end)


def _share_blocks(old: int, new: int) -> bool:
    try:
        fcntl.ioctl(new, _FICLONE, old)
    except OSError:  # another or an older file system; a full disk shows again in the copy
        return False
    return True


def _copy_extent(old: int, new: int, start: int, end: int) -> None:
    """Copy bytes start to end, inside the kernel where it can between these file systems."""
    while start < end:
        try:
            done = os.copy_file_range(old, new, end - start, start, start)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            done = write_all(new, os.pread(old, min(_BLOCK, end - start), start), start)
        if done == 0:
            raise HostError("the file became shorter while it was copied")
        start += done


def write_all(fd: int, data: bytes, offset: int) -> int:
    """Write all of ``data`` at ``offset`` and return its length. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
    return len(data)
