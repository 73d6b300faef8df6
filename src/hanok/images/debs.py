"""The cache of downloaded packages: a second build with other packages need not fetch them again.

apt trusts a file in its archive folder by its size, so only files whose hash was printed before
the first maintainer script ran are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from hanok.images.filing import hash_file
from hanok.units import GIB

_LIMIT = 2 * GIB


def offer_debs(cache: Path, target: Path) -> None:
    """Put the packages of ``cache`` into the folder ``target``, for a build to read."""
    if not cache.is_dir():
        return
    for deb in cache.glob("*.deb"):
        with contextlib.suppress(FileNotFoundError):  # another build is pruning the cache
            try:
                os.link(deb, target / deb.name)
            except OSError:
                shutil.copyfile(deb, target / deb.name)


def keep_debs(cache: Path, source: Path, checksums: dict[str, str]) -> None:
    """Copy the packages named in ``checksums`` from ``source`` into ``cache``, if they are intact.

    The oldest go when the cache grows over 2 GiB.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for path in (cache.parent, cache):
        path.chmod(0o755)
    for name, expected in checksums.items():
        kept = cache / name
        if kept.exists():
            os.utime(kept)
            continue
        part = cache / f".{name}.{os.getpid()}"
        try:
            if (source / name).is_symlink():
                continue
            shutil.copyfile(source / name, part)
            if hash_file(part) == expected:
                part.chmod(0o644)
                part.rename(kept)
        except FileNotFoundError:
            continue
        finally:
            part.unlink(missing_ok=True)
    _prune(cache)


def _prune(cache: Path) -> None:
    found = sorted(
        ((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in cache.glob("*.deb")),
        key=lambda item: item[0],
        reverse=True,
    )
    total = 0
    for _, size, deb in found:
        total += size
        if total > _LIMIT:
            deb.unlink(missing_ok=True)
