"""Bounded reading of text and JSON, plain or gzip'd, from files of strangers."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pydantic_core import from_json

from hanok.assess.limits import LIMITS, Limits
from hanok.errors import InvalidInput, NotFound
from hanok.units import format_size

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
_TOLD_EVERY = 5000  # lines

# Is told a message and which part of the work is done, 0 to 1 (None: nobody knows).
Tell = Callable[[str, float | None], None]


def tell_nobody(_message: str, _fraction: float | None) -> None:
    """Show no progress."""


class BoundedFile:
    """A regular file, unpacked on the fly, of which at most ``most`` bytes can be read.

    Raises NotFound when it is not there and InvalidInput, naming the file, for all else that is
    wrong with it; use it as a context manager.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self._read = 0
        self._raw = _open_regular(path)
        self._size = os.fstat(self._raw.fileno()).st_size
        packed = self._raw.peek(2)[:2] == _GZIP_MAGIC
        if not packed and self._size > most:
            self._raw.close()
            raise self._too_large()
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=self._raw)) if packed else self._raw

    def __enter__(self) -> BoundedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    @property
    def fraction(self) -> float:
        """Which part of the file on disk has been read."""
        return min(1.0, self._raw.tell() / self._size) if self._size else 1.0

    def readline(self, most: int) -> bytes:
        """Return the next line with its end, at most ``most`` bytes of it; empty at the end."""
        return self._counted(lambda: self._file.readline(most))

    def read(self, most: int) -> bytes:
        """Return the next at most ``most`` bytes; empty at the end."""
        return self._counted(lambda: self._file.read(most))

    def _counted(self, read: Callable[[], bytes]) -> bytes:
        try:
            data = read()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InvalidInput(
                f"{self.path.name} is packed by gzip, and damaged: {error}", field=self.path.name
            ) from None
        except OSError as error:
            raise InvalidInput(
                f"{self.path.name} cannot be read: {error.strerror}", field=self.path.name
            ) from None
        self._read += len(data)
        if self._read > self._most:
            raise self._too_large()
        return data

    def _too_large(self) -> InvalidInput:
        return InvalidInput(
            f"{self.path.name} is too large",
            field=self.path.name,
            expected=f"at most {format_size(self._most)}, unpacked",
            hint="cut it into parts, by server or by time",
        )


def _open_regular(path: Path) -> io.BufferedReader:
    """Open ``path`` unless it is a pipe, a device or a folder: those may never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field=path.name) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{path} is no file", field=path.name, expected="a regular file")
    return io.BufferedReader(io.FileIO(descriptor, "r"), _CHUNK)


def read_lines(path: Path, limits: Limits = LIMITS, tell: Tell = tell_nobody) -> Iterator[str]:
    """Yield the lines of a text in UTF-8 without their ends.

    Raises NotFound, and InvalidInput for what is no text or beyond ``limits``.
    """
    with BoundedFile(path, limits.text_bytes) as file:
        number = 0
        while data := file.readline(limits.line + 1):
            number += 1
            yield _as_text(data, f"{path.name}:{number}", limits, first=number == 1)
            if number % _TOLD_EVERY == 0:
                tell(f"{path.name}: {number} lines", file.fraction)


def _as_text(data: bytes, place: str, limits: Limits, *, first: bool) -> str:
    if len(data) > limits.line:
        raise InvalidInput(
            "a line is too long", field=place, expected=f"at most {limits.line} bytes"
        )
    try:
        text = data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError:
        raise InvalidInput("this is no text in UTF-8", field=place) from None
    if "\0" in text:
        raise InvalidInput("a NUL is in it", field=place, expected="a text in UTF-8")
    return text.rstrip("\r\n")


def read_whole(path: Path, most: int, tell: Tell = tell_nobody) -> bytes:
    """Return what is in a file of at most ``most`` bytes, unpacked. Raises as BoundedFile does."""
    parts = []
    with BoundedFile(path, most) as file:
        while data := file.read(_CHUNK):
            parts.append(data)
            tell(f"{path.name}: reading", file.fraction)
    return b"".join(parts)


def read_json(
    path: Path, limits: Limits = LIMITS, tell: Tell = tell_nobody, most: int | None = None
) -> object:
    """Return what a JSON file holds.

    Raises NotFound, and InvalidInput for what is no JSON or beyond ``limits`` (``most``: bytes).
    """
    data = read_whole(path, limits.json_bytes if most is None else most, tell)
    parts = data.count(b"[") + data.count(b"{") + data.count(b'"') // 2
    if parts > limits.json_parts:
        raise InvalidInput(
            f"{path.name} has too many parts: {parts} lists, objects and texts",
            field=path.name,
            expected=f"at most {limits.json_parts}",
            hint="cut it into parts, by server or by time",
        )
    try:
        return cast(object, from_json(data))
    except ValueError as error:
        raise InvalidInput(f"{path.name} is no JSON: {error}", field=path.name) from None
