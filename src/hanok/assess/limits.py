"""How much is read of files whose origin nobody vouches for."""

from __future__ import annotations

from dataclasses import dataclass

from hanok.units import GIB, KIB, MIB


@dataclass(frozen=True)
class Limits:
    """Bounds of what is read; beyond one of them a file is refused.

    ``text_bytes``: of a file that is read line by line, ``json_bytes``: of one that is read whole,
    both also after unpacking. ``json_parts``: lists, objects and texts in it, of which each takes
    much more memory than disk. ``line``: characters of a line. ``points``: numbers kept in memory
    while files are imported, 20 bytes each. ``folder_values``: numbers of all files of a folder
    that are read at once, about 32 bytes each.
    """

    text_bytes: int = 4 * GIB
    json_bytes: int = 128 * MIB
    json_parts: int = 12_000_000
    usage_bytes: int = 64 * MIB
    journal_bytes: int = 8 * MIB
    line: int = 64 * KIB
    columns: int = 4096
    rows: int = 50_000_000
    servers: int = 20_000
    points: int = 20_000_000
    files: int = 50_000
    folder_values: int = 30_000_000


LIMITS = Limits()
