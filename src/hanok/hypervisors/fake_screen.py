"""The screen of the fake hypervisor's machines: one black pixel, and a server that echoes."""

from __future__ import annotations

import asyncio
import struct
import zlib

GREETING = b"RFB 003.008\n"
_HEAD = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


PICTURE = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", _HEAD),
        _chunk(b"IDAT", zlib.compress(b"\0\0")),
        _chunk(b"IEND", b""),
    )
)


async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what is said, until that ends."""
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
