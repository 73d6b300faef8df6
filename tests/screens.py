"""What tests see of screens: pictures taken apart by another library, and a viewer by VNC."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from PIL import Image

from tests.machine import patient

_VNC_AUTHENTICATION = 2


@dataclass(frozen=True)
class Picture:
    """A picture: its size in pixels, its colours, and how many of its pixels are not black."""

    width: int
    height: int
    colours: int
    lit: int


def look(png: bytes) -> Picture:
    """Return what is in a PNG, all of which must be there."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        image.load()
        found = image.convert("RGB").getcolors(image.width * image.height)
        assert found is not None
        lit = sum(count for count, colour in found if colour != (0, 0, 0))
        return Picture(image.width, image.height, len(found), lit)


def lit_in(pixels: bytes) -> int:
    """Return how many pixels of four bytes are not black."""
    return sum(pixels[at : at + 3] != b"\0\0\0" for at in range(0, len(pixels), 4))


def alike(one: int, other: int) -> bool:
    """Whether two counts of lit pixels may be of the same screen: its cursor blinks."""
    return abs(one - other) < 100


class WrongPasswordError(Exception):
    """The server does not let us in, and says why."""


@dataclass(frozen=True)
class Seen:
    """What a viewer was shown: the desktop's name, its size, its pixels (4 bytes each)."""

    name: str
    width: int
    height: int
    pixels: bytes


def view(address: str, port: int, password: str) -> Seen:
    """Look at a screen once as a viewer does (RFC 6143). Raises WrongPasswordError."""
    with _connected(address, port) as (connection, take):
        assert take(12) == b"RFB 003.008\n"
        connection.sendall(b"RFB 003.008\n")
        kinds = take(take(1)[0])
        assert kinds == bytes([_VNC_AUTHENTICATION]), "nobody may get in without the password"
        connection.sendall(kinds)
        connection.sendall(_answer(take(16), password))
        (refused,) = struct.unpack(">I", take(4))
        if refused:
            (length,) = struct.unpack(">I", take(4))
            raise WrongPasswordError(take(length).decode())
        connection.sendall(b"\x01")  # others may look on too
        width, height = struct.unpack(">HH", take(4))
        bits = take(16)[0]
        (length,) = struct.unpack(">I", take(4))
        name = take(length).decode()
        connection.sendall(struct.pack(">BBHi", 2, 0, 1, 0))  # raw pixels alone
        connection.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        return Seen(name, width, height, _pixels(take, width * height, bits // 8))


def _pixels(take: _Take, wanted: int, size: int) -> bytes:
    """Return the pixels of as many rectangles as make up the whole screen."""
    found = bytearray()
    while len(found) < wanted * size:
        kind, count = struct.unpack(">BxH", take(4))
        assert kind == 0, "a framebuffer update"
        for _ in range(count):
            _, _, width, height, encoding = struct.unpack(">HHHHi", take(12))
            assert encoding == 0
            found += take(width * height * size)
    return bytes(found)


def _answer(challenge: bytes, password: str) -> bytes:
    """Return a challenge encrypted by DES, each byte of the key with its bits turned round."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:8].ljust(8, b"\0"))
    # Three times the same key is DES itself.
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()


class _Take:
    """Reads exactly as many bytes as asked for."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")

    def __call__(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ConnectionError(f"{len(data)} of {size} bytes came")
        return data


@contextmanager
def _connected(address: str, port: int) -> Iterator[tuple[socket.socket, _Take]]:
    with socket.create_connection((address, port), patient(30)) as connection:
        yield connection, _Take(connection)
