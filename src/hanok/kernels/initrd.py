"""What an initrd holds: modules, for which kernels, and what its lists say is built in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hanok.errors import InvalidInput
from hanok.kernels.config import DRIVERS, module_name
from hanok.kernels.cpio import Archive, Entry, Wanted, read_archives
from hanok.kernels.unpack import Buffer
from hanok.model.kernel import InitrdFacts

LARGEST_INITRD = 512 * 1024**2
_WANTED = Wanted(("/modules.builtin",), largest=4 * 1024 * 1024)
_MODULES = "lib/modules/"
_SUFFIXES = ("", ".gz", ".xz", ".zst")
_LONGEST_NAME = 128
_BUILTIN_LINE = re.compile(rb"([^/\s]{1,128})\.ko$")
_MOST_MODULES = 20_000


def read_initrd(data: Buffer) -> InitrdFacts:
    """Return what the initrd ``data`` holds.

    Raises InvalidInput when it is damaged, cut off or unusually large.
    """
    if len(data) > LARGEST_INITRD:
        raise InvalidInput("the initrd is larger than any", field="initrd", expected="512 MiB")
    archives = tuple(read_archives(data, _WANTED))
    if not archives:
        raise InvalidInput("the initrd is empty", field="initrd", expected="a cpio archive")
    return _facts(archives)


def _facts(archives: tuple[Archive, ...]) -> InitrdFacts:
    entries = [entry for archive in archives for entry in archive.entries]
    modules, releases = set(), set()
    for entry in entries:
        if entry.is_file and (found := _module(entry.name)) is not None:
            releases.add(found.release)
            modules.add(found.name)
    if len(modules) > _MOST_MODULES:
        raise InvalidInput("the initrd has more modules than Linux", field="initrd")
    return InitrdFacts(
        archives=tuple(archive.compression for archive in archives),
        entries=len(entries),
        releases=tuple(sorted(releases)),
        modules=tuple(sorted(modules)),
        built_in=_built_in(entries),
    )


@dataclass(frozen=True)
class _Module:
    release: str
    name: str


def _module(path: str) -> _Module | None:
    """Return which module ``path`` is, such as lib/modules/6.1.0-1/kernel/fs/xfs/xfs.ko.xz."""
    start = path.find(_MODULES)
    if start < 0 or (start > 0 and path[start - 1] != "/"):
        return None
    release, _, rest = path[start + len(_MODULES) :].partition("/")
    stem, dot, suffix = rest.rpartition("/")[2].partition(".ko")
    if not dot or not stem or suffix not in _SUFFIXES or len(release + stem) > _LONGEST_NAME:
        return None
    return _Module(release, module_name(stem))


def _built_in(entries: Iterable[Entry]) -> tuple[str, ...] | None:
    lists = [entry.data for entry in entries if entry.data is not None]
    lines = (_BUILTIN_LINE.search(line) for data in lists for line in data.splitlines())
    names = {module_name(line[1].decode("utf-8", "replace")) for line in lines if line}
    known = (driver.module for driver in DRIVERS if driver.module in names)
    return tuple(known) if lists else None
