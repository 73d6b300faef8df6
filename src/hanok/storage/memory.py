"""Frozen guest RAM: a sealed memfd while it is used, a sparse checked file to keep.

Machines map the memfd privately. It is sealed (man 2 fcntl, "File Sealing"), so that nobody who
holds a descriptor, a hostile clone's process least of all, can write it, punch holes in it or
change its size. The checksum is SHA-256 over the size and every 64 KiB chunk that is not all zero,
each led by its offset, so it is the same however the zeros are kept: as holes, or written out.

All functions block: callers use a thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hanok.errors import HostError
from hanok.storage.sparse import data_extents, opened_plain, telling, write_all, written_whole
from hanok.units import KIB, format_size

_NAME = "hanok-"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CHUNK = 64 * KIB
_PAGE = 4 * KIB
_ZEROS = bytes(_CHUNK)
_ZERO_PAGE = bytes(_PAGE)
_MAKE_ANEW = "delete the template and make it again from a VM"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class MemoryFacts:
    """What was saved: its checksum, and the bytes in pages of 4 KiB that are not all zero."""

    checksum: str
    used: int


def new_memory(size: int, name: str) -> int:
    """Return a new memfd of ``size`` zero bytes, ``hanok-NAME`` in /proc; the caller closes it.

    Raises HostError.
    """
    with telling(f"no memory of {format_size(size)} could be made"):
        fd = os.memfd_create(_NAME + name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
    return fd


def seal_memory(fd: int) -> None:
    """Make sure that the memfd never changes again; nothing happens when it is sealed.

    Raises HostError when that is not possible, as while somebody still has it mapped to write.
    """
    if is_sealed(fd):
        return
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        why = "a process can still write it" if error.errno == errno.EBUSY else error.strerror
        raise HostError(f"the frozen memory could not be sealed: {why}") from error


def is_sealed(fd: int) -> bool:
    """Return whether ``fd`` is a memfd that nobody can ever change."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # EINVAL: not a memfd
        return False


def save_memory(fd: int, path: Path) -> MemoryFacts:
    """Write the memfd ``fd`` to the file ``path`` (0600), whole or not at all; zeros take no room.

    Raises HostError, as when the disk is full.
    """
    size = os.fstat(fd).st_size
    total, used = _start_hash(size), 0
    with telling(f"{path} could not be written"), written_whole(path, 0o600) as file:
        os.ftruncate(file, size)
        for offset, chunk in _used_chunks(fd, size):
            _add_chunk(total, offset, chunk)
            write_all(file, chunk, offset)
            used += _used_bytes(chunk)
    return MemoryFacts(checksum=total.hexdigest(), used=used)


def load_memory(path: Path, size: int, checksum: str) -> int:
    """Return a sealed memfd with the content of ``path``; the caller closes it.

    Raises HostError, naming the file, when it is missing, no plain file, or not what was saved.
    """
    with opened_plain(path) as file:
        _check_size(path, os.fstat(file).st_size, size)
        fd = new_memory(size, path.parent.name[:64])
        try:
            _fill(fd, file, path, size, checksum)
            seal_memory(fd)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _check_size(path: Path, found: int, wanted: int) -> None:
    if found == wanted:
        return
    how = "truncated" if found < wanted else "too long"
    raise HostError(
        f"{path} is {how}: it has {found} bytes, the frozen memory had {wanted}", hint=_MAKE_ANEW
    )


def _fill(fd: int, file: int, path: Path, size: int, checksum: str) -> None:
    total = _start_hash(size)
    with telling(f"{path} could not be read into memory"):
        for offset, chunk in _used_chunks(file, size):
            _add_chunk(total, offset, chunk)
            write_all(fd, chunk, offset)
    if total.hexdigest() != checksum:
        raise HostError(
            f"{path} is damaged: its checksum is not the one that was recorded", hint=_MAKE_ANEW
        )


def check_memory(fd: int, size: int, checksum: str) -> bool:
    """Return whether ``fd`` is sealed and holds what was saved with ``checksum``.

    For a memfd of a process that is not trusted: once it is sealed, what is true now stays true.
    """
    if not is_sealed(fd) or os.fstat(fd).st_size != size:
        return False
    total = _start_hash(size)
    for offset, chunk in _used_chunks(fd, size):
        _add_chunk(total, offset, chunk)
    return total.hexdigest() == checksum


def find_in_process(pid: int, size: int) -> int | None:
    """Return a sealed memfd of ``size`` bytes that process ``pid`` has open, read-only, or None.

    So memory stays shared with machines that started before this daemon. The process may be
    hostile: what it holds must pass ``check_memory`` before it is used. The caller closes it.
    """
    folder = f"/proc/{pid}/fd"
    try:
        names = [entry.name for entry in os.scandir(folder)]
        home = _home_of_memfds()
    except OSError:  # it is gone, or another user's
        return None
    for name in names:
        fd = _reopen(f"{folder}/{name}", home)
        if fd is None:
            continue
        if is_sealed(fd) and os.fstat(fd).st_size == size:
            return fd
        os.close(fd)
    return None


def _reopen(entry: str, home: str) -> int | None:
    """Return a descriptor of our own for ``entry`` of a process when it is a memfd of ours.

    Names prove nothing, and descriptors change between two looks. So the file is pinned first
    without opening it (O_PATH): nothing of a FIFO, a device or a FUSE server runs. Then the place
    where it lives is compared, and only a memfd is opened.
    """
    try:
        if not os.readlink(entry).startswith(f"/memfd:{_NAME}"):  # noqa: PTH115 - pathlib is slow
            return None
        pinned = os.open(entry, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _mount_of(pinned) != home:
            return None
        return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(pinned)


def _home_of_memfds() -> str:
    """Return the id of the kernel's own mount where all memfds live; nobody else can put any."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        return _mount_of(fd)
    finally:
        os.close(fd)


def _mount_of(fd: int) -> str:
    """Return the mount id of an open file (man 5 proc, fdinfo). Raises OSError."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return line.split()[1]
    raise OSError("no mnt_id in fdinfo")


def _start_hash(size: int) -> _Hash:
    total = hashlib.sha256()
    total.update(b"hanok memory 1\0" + size.to_bytes(8, "little"))
    return total


def _add_chunk(total: _Hash, offset: int, chunk: bytes) -> None:
    total.update(offset.to_bytes(8, "little"))
    total.update(chunk)


def _used_chunks(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of every chunk that is not all zero; holes are not read."""
    done = 0
    for start, end in data_extents(fd, size):
        first = max(done, start - start % _CHUNK)
        for offset in range(first, end, _CHUNK):
            done = offset + _CHUNK
            chunk = os.pread(fd, min(_CHUNK, size - offset), offset)
            if len(chunk) != min(_CHUNK, size - offset):
                raise OSError(errno.EIO, "it became shorter while it was read")
            if chunk != (_ZEROS if len(chunk) == _CHUNK else _ZEROS[: len(chunk)]):
                yield offset, chunk


def _used_bytes(chunk: bytes) -> int:
    pages = (chunk[start : start + _PAGE] for start in range(0, len(chunk), _PAGE))
    return sum(len(page) for page in pages if page != _ZERO_PAGE[: len(page)])
