"""By which firmware a disk can be booted, as its first sectors tell. Pure.

Sources: UEFI specification 2.10, chapter 5 (GPT) and 13.3.1 (EFI system partitions); GNU GRUB
manual, "BIOS installation".
"""

from __future__ import annotations

import struct
import uuid

from hanok.model.vm import Firmware

HEAD_SIZE = 64 * 1024
_SECTOR = 512
_MARK = b"\x55\xaa"
_CODE_ENDS = 440
_TABLE = 446
_EFI_TYPE, _GPT_TYPE = 0xEF, 0xEE
_GPT = b"EFI PART"
_SYSTEM_PARTITION = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
_MOST_ENTRIES = 128
_ENTRY_SIZES = range(128, 4097)


def firmware_of(head: bytes) -> tuple[Firmware, ...]:
    """Return by what a disk that begins with ``head`` boots, the better known way first.

    BIOS where its first sector has a program, UEFI where it has an EFI system partition. Empty
    when neither was found.
    """
    if len(head) < _SECTOR or head[510:512] != _MARK:
        return ()
    types = [head[_TABLE + 16 * number + 4] for number in range(4)]
    found = []
    if any(head[:_CODE_ENDS]):
        found.append(Firmware.BIOS)
    if _EFI_TYPE in types or (_GPT_TYPE in types and _has_system_partition(head)):
        found.append(Firmware.UEFI)
    return tuple(found)


def _has_system_partition(head: bytes) -> bool:
    if head[_SECTOR : _SECTOR + 8] != _GPT:
        return False
    place, count, size = struct.unpack_from("<QII", head, _SECTOR + 72)
    if size not in _ENTRY_SIZES:
        return False
    start = place * _SECTOR
    return any(
        head[start + number * size :][:16] == _SYSTEM_PARTITION
        for number in range(min(count, _MOST_ENTRIES))
        if start + number * size < len(head)
    )
