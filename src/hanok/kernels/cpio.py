"""Archives in the format newc, as the kernel reads them from an initrd.

Source: Linux's Documentation/driver-api/early-userspace/buffer-format.rst. No kept library reads
what an initrd is: several archives one after another, each compressed in its own way or not at
all, with zeros between them. Entries are only listed and small ones read; nothing is unpacked to a
path.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hanok.errors import InvalidInput
from hanok.kernels.unpack import Budget, Buffer, Piece, compression_of, unpack

MAGICS = (b"070701", b"070702")
TRAILER = "TRAILER!!!"
_HEADER = 110
_LONGEST_NAME = 4096
_MOST_ENTRIES = 200_000
_MOST_ARCHIVES = 64
_MOST_BYTES = 2 * 1024**3
_MOST_KEPT = 64 * 1024**2  # bytes of names and contents
_ALIGNMENT = 4


@dataclass(frozen=True)
class Entry:
    """A file of an archive; ``data`` only when it was asked for."""

    name: str
    is_file: bool
    size: int
    data: bytes | None = None


@dataclass(frozen=True)
class Wanted:
    """Which entries' contents are read: those whose names end so, up to a size in bytes."""

    endings: tuple[str, ...]
    largest: int


@dataclass(frozen=True)
class Archive:
    """One archive of an initrd and how it is compressed (``none``)."""

    compression: str
    entries: tuple[Entry, ...]


def read_archives(data: Buffer, wanted: Wanted) -> Iterator[Archive]:
    """Yield the archives of the initrd ``data``.

    Raises InvalidInput when it is damaged, cut off, or larger than any initrd.
    """
    view, at = memoryview(data), 0
    limits = _Limits(Budget(_MOST_BYTES), Budget(_MOST_KEPT), _MOST_ENTRIES)
    for _ in range(_MOST_ARCHIVES):
        at = _skip_zeros(view, at)
        if at >= len(view):
            return
        if bytes(view[at : at + 6]) in MAGICS:
            stream = _Stream(_as_it_is(view[at:]))
            entries = tuple(_entries(stream, limits, wanted))
            yield Archive("none", entries)
            at += stream.position
            continue
        name = compression_of(view[at:])
        if name is None:
            raise _damaged(f"at byte {at} begins neither an archive nor compressed data")
        stream = _Stream(unpack(view[at:], name, limits.budget, "the initrd"))
        yield Archive(name, tuple(_all_entries(stream, limits, wanted)))
        at += stream.used
    raise _damaged(f"it has more than {_MOST_ARCHIVES} archives")


@dataclass
class _Limits:
    budget: Budget
    kept: Budget
    entries: int


class _Stream:
    """Reads pieces as one file. ``used``: how many bytes of the source they took."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._held = b""
        self._at = 0
        self.position = 0
        self.used = 0

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, or fewer at the end."""
        parts = list(self._take(count))
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Pass over ``count`` bytes; return how many there were."""
        return sum(len(part) for part in self._take(count))

    def _take(self, count: int) -> Iterator[bytes]:
        while count > 0:
            if self._at == len(self._held):
                piece = next(self._pieces, None)
                if piece is None:
                    return
                self._held, self._at, self.used = piece.data, 0, piece.used
                continue
            part = self._held[self._at : self._at + min(count, 65536)]
            self._at += len(part)
            self.position += len(part)
            count -= len(part)
            yield part


def _as_it_is(view: memoryview) -> Iterator[Piece]:
    for at in range(0, len(view), 65536):
        piece = bytes(view[at : at + 65536])
        yield Piece(piece, at + len(piece))


def _skip_zeros(view: memoryview, at: int) -> int:
    while at < len(view):
        piece = bytes(view[at : at + 65536])
        rest = piece.lstrip(b"\0")
        if rest:
            return at + len(piece) - len(rest)
        at += len(piece)
    return at


def _all_entries(stream: _Stream, limits: _Limits, wanted: Wanted) -> Iterator[Entry]:
    """Yield the entries of every archive in a compressed stream, and read it to its end."""
    while True:
        yield from _entries(stream, limits, wanted, may_end=True)
        head = b""
        while head in (b"", b"\0" * len(head)):
            head = stream.read(_ALIGNMENT)
            if not head:
                return
        if head != MAGICS[0][:_ALIGNMENT]:
            raise _damaged("something else than an archive follows an archive")
        yield from _entries(stream, limits, wanted, head=head)


def _entries(
    stream: _Stream,
    limits: _Limits,
    wanted: Wanted,
    *,
    head: bytes = b"",
    may_end: bool = False,
) -> Iterator[Entry]:
    start = stream.position - len(head)
    while True:
        header = head + stream.read(_HEADER - len(head))
        head = b""
        if not header and may_end:
            return
        may_end = False
        entry = _entry(stream, header, start, wanted)
        if entry.name == TRAILER:
            return
        limits.kept.take(len(entry.name) + len(entry.data or b""), "the initrd")
        limits.entries -= 1
        if limits.entries < 0:
            raise _damaged(f"it has more than {_MOST_ENTRIES} files")
        yield entry


def _entry(stream: _Stream, header: bytes, start: int, wanted: Wanted) -> Entry:
    if len(header) < _HEADER:
        raise _cut_off()
    if header[:6] not in MAGICS:
        raise _damaged("a file in it has no header")
    try:
        mode, size, name_size = (
            int(header[6 + 8 * field : 14 + 8 * field], 16) for field in (1, 6, 11)
        )
    except ValueError:
        raise _damaged("a header in it has something else than numbers") from None
    if not 0 < name_size <= _LONGEST_NAME or size < 0:
        raise _damaged("a file in it has an impossible name")
    raw = stream.read(name_size)
    if len(raw) < name_size:
        raise _cut_off()
    _align(stream, start)
    name = raw.rstrip(b"\0").decode("utf-8", "replace")
    is_file = stat.S_ISREG(mode)
    data = None
    if is_file and size <= wanted.largest and name.endswith(wanted.endings):
        data = stream.read(size)
        taken = len(data)
    else:
        taken = stream.skip(size)
    if taken < size:
        raise _cut_off()
    _align(stream, start)
    return Entry(name, is_file, size, data)


def _align(stream: _Stream, start: int) -> None:
    stream.skip(-(stream.position - start) % _ALIGNMENT)


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"the initrd is damaged: {why}",
        field="initrd",
        expected="cpio archives in the format newc, compressed or not",
    )


def _cut_off() -> InvalidInput:
    return InvalidInput("the initrd is cut off", field="initrd", expected="the whole file")


def make_archive(programs: Mapping[str, bytes]) -> bytes:
    """Return an archive, not compressed, with executable files of these names and contents."""
    body = b"".join(
        _packed(name, data, stat.S_IFREG | 0o755, at)
        for at, (name, data) in enumerate(programs.items(), start=1)
    )
    return body + _packed(TRAILER, b"", 0, 0)


def _packed(name: str, data: bytes, mode: int, inode: int) -> bytes:
    raw = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = MAGICS[0] + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % _ALIGNMENT) + data + bytes(-len(data) % _ALIGNMENT)
