"""Decompression of what strangers made: every byte that comes out is counted against a budget.

The formats are those that Linux takes for kernels and initrds (lib/decompress.c). LZO is known by
its first bytes and refused: no kept Python library reads the form that kernels use.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import lz4.block
import lz4.frame
import zstandard

from hanok.errors import InvalidInput

Buffer = bytes | memoryview
_PIECE = 64 * 1024
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 * 1024 * 1024  # of the legacy format: lz4's doc/lz4_Frame_format.md
_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x89LZO": "lzo",
    _LZ4_LEGACY: "lz4-legacy",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_FAILURES = (
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    lz4.block.LZ4BlockError,
    RuntimeError,  # lz4.frame's own, for frames that are damaged
    OSError,  # bz2's
    EOFError,
    ValueError,
    MemoryError,  # a window of gigabytes that the data asks for
)


@dataclass
class Budget:
    """How many bytes may still come out."""

    left: int

    def take(self, count: int, what: str) -> None:
        """Count ``count`` bytes. Raises InvalidInput when that is more than is left."""
        self.left -= count
        if self.left < 0:
            raise InvalidInput(
                f"{what} unpacks to more than Hanok reads", expected="an ordinary Linux file"
            )


@dataclass(frozen=True)
class Piece:
    """Some unpacked bytes, and how many bytes of the source were used up so far."""

    data: bytes
    used: int


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def feed(self, data: Buffer, most: int) -> bytes: ...

    @property
    def wants_input(self) -> bool: ...


def compression_of(data: Buffer) -> str | None:
    """Return the name of the compression that ``data`` begins with, or None."""
    head = bytes(data[:8])
    return next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)


def unpack(data: Buffer, name: str, budget: Budget, what: str) -> Iterator[Piece]:
    """Yield what the stream at the start of ``data`` unpacks to, in small pieces.

    Stops at the end of that stream; ``used`` of the last piece says where. Raises InvalidInput when
    it is damaged, cut off, of a kind that is not read, or larger than the budget.
    """
    try:
        if name == "lz4-legacy":
            yield from _legacy_blocks(data, budget, what)
        else:
            yield from _stream(data, _decompressor(name, what), budget, what)
    except _FAILURES as error:
        raise InvalidInput(
            f"{what} is damaged: its {name} data does not unpack", expected=f"whole {name} data"
        ) from error


def _stream(data: Buffer, tool: _Decompressor, budget: Budget, what: str) -> Iterator[Piece]:
    view, at = memoryview(data), 0
    while not tool.eof:
        chunk = view[at : at + _PIECE] if tool.wants_input else b""
        if tool.wants_input and not len(chunk):
            raise InvalidInput(f"{what} is cut off", expected="the whole file")
        at += len(chunk)
        out = tool.feed(chunk, _PIECE)
        budget.take(len(out), what)
        unused = len(tool.unused_data or b"") if tool.eof else 0
        yield Piece(out, at - unused)


def _legacy_blocks(data: Buffer, budget: Budget, what: str) -> Iterator[Piece]:
    view, at = memoryview(data), 4
    # Linux stops at a size of nothing or at the end (lib/decompress_unlz4.c); another magic number
    # begins another archive of the same kind.
    while at + 4 <= len(view):
        if bytes(view[at : at + 4]) == _LZ4_LEGACY:
            at += 4
            continue
        (size,) = struct.unpack_from("<I", view, at)
        if size == 0 or size > lz4_bound(_LZ4_BLOCK):
            return
        block = view[at + 4 : at + 4 + size]
        if len(block) < size:
            if not _is_length(view, at):
                raise InvalidInput(f"{what} is cut off", expected="the whole file")
            return
        out = lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        budget.take(len(out), what)
        at += 4 + size
        yield Piece(out, at)


def lz4_bound(size: int) -> int:
    """Return the most bytes that ``size`` bytes compress to (LZ4_COMPRESSBOUND)."""
    return size + size // 255 + 16


def _is_length(view: memoryview, at: int) -> bool:
    """Whether these are the last four bytes: a kernel's payload ends with its unpacked size."""
    return at + 4 == len(view)


def _decompressor(name: str, what: str) -> _Decompressor:
    match name:
        case "gzip":
            return _Zlib()
        case "bzip2":
            return _Bounded(bz2.BZ2Decompressor())
        case "xz" | "lzma":
            # The largest dictionary of xz -9 is 64 MiB.
            return _Bounded(lzma.LZMADecompressor(memlimit=128 * 1024 * 1024))
        case "lz4":
            return _Bounded(lz4.frame.LZ4FrameDecompressor())
        case "zstd":
            return _Zstd()
    raise InvalidInput(
        f"{what} is compressed by {name}, which Hanok does not read",
        expected="gzip, bzip2, lzma, xz, lz4 or zstd",
        hint="unpack it first",
    )


class _Limited(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Bounded:
    """Libraries that give at most as much as they are asked for."""

    def __init__(self, tool: _Limited) -> None:
        self._tool = tool

    @property
    def eof(self) -> bool:
        return self._tool.eof

    @property
    def unused_data(self) -> bytes | None:
        return self._tool.unused_data

    @property
    def wants_input(self) -> bool:
        return self._tool.needs_input

    def feed(self, data: Buffer, most: int) -> bytes:
        return self._tool.decompress(bytes(data), most)


class _Zlib:
    def __init__(self) -> None:
        self._tool = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._tool.eof

    @property
    def unused_data(self) -> bytes:
        return self._tool.unused_data

    @property
    def wants_input(self) -> bool:
        return not self._tool.unconsumed_tail

    def feed(self, data: Buffer, most: int) -> bytes:
        return self._tool.decompress(bytes(data) or self._tool.unconsumed_tail, most)


class _Zstd:
    """Cannot be told how much to give: fed so little that a piece stays bounded.

    A block gives at most 128 KiB (RFC 8878, 3.1.1.2.4) and takes at least 4 bytes.
    """

    _FEED = 256

    def __init__(self) -> None:
        self._tool = zstandard.ZstdDecompressor(max_window_size=128 * 1024 * 1024).decompressobj()
        self._waiting = b""

    @property
    def eof(self) -> bool:
        return self._tool.eof

    @property
    def unused_data(self) -> bytes:
        return self._tool.unused_data + self._waiting

    @property
    def wants_input(self) -> bool:
        return not self._waiting

    def feed(self, data: Buffer, most: int) -> bytes:
        data = bytes(data) or self._waiting
        head, self._waiting = data[: self._FEED], data[self._FEED :]
        return self._tool.decompress(head)
