"""Takes the dates out of an ISO 9660 image, so that the same content gives the same bytes.

Source: ECMA-119 (8.4 volume descriptors, 9.1 directory records) and IEEE P1282 (TF: time stamps).
The library that writes the image stamps it with the time of day and has no option for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from hanok.errors import HanokError

_SECTOR = 2048
_FIRST_DESCRIPTOR = 16
# Volume descriptors: the root's directory record, and four dates of 17 bytes.
_ROOT_RECORD = 156
_VOLUME_DATES = range(813, 881, 17)
_NO_VOLUME_DATE = b"0" * 16 + b"\0"
# Directory records: 1980-01-01 00:00:00 UTC, the first date that every system can show.
_RECORD_DATE = 18
_EPOCH = bytes((80, 1, 1, 0, 0, 0, 0))


def fix_dates(image: bytes) -> bytes:
    """Return ``image`` with all its dates set to 1980; its root folder has no folders in it."""
    fixed = bytearray(image)
    for start in _descriptors(image):
        for offset in _VOLUME_DATES:
            fixed[start + offset : start + offset + 17] = _NO_VOLUME_DATE
        root = start + _ROOT_RECORD
        _fix_record(fixed, root)
        extent = int.from_bytes(image[root + 2 : root + 6], "little") * _SECTOR
        size = int.from_bytes(image[root + 10 : root + 14], "little")
        for record in _records(image, extent, size):
            _fix_record(fixed, record)
    return bytes(fixed)


def _descriptors(image: bytes) -> Iterator[int]:
    """Yield where the primary and the Joliet descriptors are."""
    for start in range(_FIRST_DESCRIPTOR * _SECTOR, len(image), _SECTOR):
        if image[start + 1 : start + 6] != b"CD001":
            raise HanokError("the seed image has no end of its volume descriptors")
        if image[start] in (1, 2):
            yield start
        elif image[start] == 255:
            return


def _records(image: bytes, extent: int, size: int) -> Iterator[int]:
    """Yield where the records of the folder at ``extent`` are; none crosses a sector."""
    at = extent
    while at < extent + size:
        length = image[at]
        if length:
            yield at
            at += length
        else:
            at += _SECTOR - at % _SECTOR


def _fix_record(image: bytearray, record: int) -> None:
    image[record + _RECORD_DATE : record + _RECORD_DATE + 7] = _EPOCH
    end = record + image[record]
    at = record + 33 + image[record + 32]
    at += at % 2  # the system use area starts at an even offset
    while at + 4 <= end and image[at + 2] >= 4:
        if image[at : at + 2] == b"TF":
            dates = image[at + 4].bit_count()
            image[at + 5 : at + 5 + 7 * dates] = _EPOCH * dates
        at += image[at + 2]
