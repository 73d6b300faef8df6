"""Import: files of one or several formats to one ``Usage`` a server."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.assess.base import Context, Format, Given, Importer
from hanok.assess.bitbrains import Bitbrains
from hanok.assess.limits import LIMITS, Limits
from hanok.assess.plain_csv import PlainCsv
from hanok.assess.planetlab import PlanetLab
from hanok.assess.prometheus import Prometheus
from hanok.assess.reading import BoundedFile, Tell, tell_nobody
from hanok.assess.recording import Recording, Recordings, Wanted, to_usage
from hanok.assess.sysstat import Sysstat
from hanok.errors import InvalidInput, NotFound
from hanok.model.usage import Usage

_IMPORTERS: Mapping[Format, Callable[[Context], Importer]] = {
    Format.SYSSTAT: Sysstat,
    Format.PROMETHEUS: Prometheus,
    Format.CSV: PlainCsv,
    Format.PLANETLAB: PlanetLab,
    Format.BITBRAINS: Bitbrains,
}
_HEAD = 64 * 1024


@dataclass(frozen=True)
class Imported:
    """What came of an import; ``skipped``: servers of which nothing could be used, and why."""

    usages: Iterator[Usage]
    servers: int
    skipped: Mapping[str, str]


def import_files(
    paths: Sequence[Path],
    kind: Format | None,
    given: Given,
    limits: Limits = LIMITS,
    tell: Tell = tell_nobody,
) -> Imported:
    """Read all of ``paths`` (folders: the files in them) and return the servers in them.

    ``kind`` None: each file is looked at. Several files of one server are put together. Raises
    NotFound, and InvalidInput naming the file, the line or the option that is wrong.
    """
    files = list(_files(paths, limits))
    recordings = Recordings(limits)
    formats = _sort(files, kind, given)
    for found, members in formats.items():
        importer = _IMPORTERS[found](Context(given, recordings, limits, tell))
        for path in members:
            importer.read(path)
        importer.finish()
    wanted = Wanted(
        source=f"import of {', '.join(formats)}",
        interval=given.interval,
        sizes=given.sizes,
        strict=Format.CSV in formats,
    )
    return _result(recordings, wanted)


def _result(recordings: Recordings, wanted: Wanted) -> Imported:
    used = [one for one in recordings if one.is_of_use]
    skipped = {one.server: _why_empty(one) for one in recordings if not one.is_of_use}
    if not used:
        told = next(iter(skipped.values()), "there is nothing in them")
        raise InvalidInput(f"nothing in these files could be used: {told}", field="FILE")
    return Imported((to_usage(one, wanted) for one in used), len(used), skipped)


def _why_empty(recording: Recording) -> str:
    return "; ".join(one.text for one in recording.notes.findings()) or "no samples"


def _files(paths: Sequence[Path], limits: Limits) -> Iterator[Path]:
    count = 0
    for path in paths:
        for file in _of_folder(path) if path.is_dir() else (path,):
            count += 1
            if count > limits.files:
                raise InvalidInput(
                    "there are too many files", field="FILE", expected=f"at most {limits.files}"
                )
            yield file


def _of_folder(folder: Path) -> list[Path]:
    """Return the regular files of a folder, by name; hidden ones and folders are none of them."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
        regular = sorted(path for path in found if stat.S_ISREG(path.stat().st_mode))
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be read: {error.strerror}", field="FILE") from None
    if not regular:
        raise NotFound(f"no file is in {folder}")
    return regular


def _sort(files: Sequence[Path], kind: Format | None, given: Given) -> dict[Format, list[Path]]:
    """Return the files by format, in the order in which they came."""
    found: dict[Format, list[Path]] = {}
    for path in files:
        found.setdefault(kind or guess(path, is_mapped=bool(given.maps)), []).append(path)
    return found


def guess(path: Path, *, is_mapped: bool = False) -> Format:
    """Return the format of a file by how it begins; a table is CSV if columns were named for it.

    Raises NotFound, and InvalidInput when it cannot be told.
    """
    with BoundedFile(path, 1 << 62) as file:
        head = file.read(_HEAD)
    if head.lstrip()[:1] == b"{":
        for mark, found in ((b'"sysstat"', Format.SYSSTAT), (b'"resultType"', Format.PROMETHEUS)):
            if mark in head:
                return found
    elif is_mapped:
        return Format.CSV
    elif (table := _guess_table(head.decode("utf-8", "replace"))) is not None:
        return table
    raise InvalidInput(
        f"nobody can tell what {path.name} is",
        field="--format",
        expected=f"one of {', '.join(Format)}",
        hint="a table of your own needs --map, see hanok assess import --help",
    )


def _guess_table(head: str) -> Format | None:
    first = head.partition("\n")[0].strip()
    if first.isdecimal():
        return Format.PLANETLAB
    cells = [one.strip().strip('"') for one in first.replace(";", ",").split(",")]
    if {"Timestamp [ms]", "CPU usage [MHZ]"} <= set(cells):
        return Format.BITBRAINS
    if cells[0] == "id" and {"cpu_count"} < set(cells):
        return Format.BITBRAINS
    if len(cells) > 2 and all(one.isdecimal() for one in cells[1:-1]):
        return Format.PLANETLAB
    return None
