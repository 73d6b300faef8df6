"""Small steps on files that a build made."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from hanok.errors import HostError
from hanok.units import GIB, format_size

_BIGGEST_FILE = 64 * GIB


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_file(source: Path, target: Path, owner: int) -> None:
    """Move what foreign code running as uid ``owner`` wrote to ``target``, for all to read.

    Raises HostError when it is missing, not a plain file of that uid, or absurdly large.
    """
    try:
        found = source.lstat()
    except FileNotFoundError:
        raise HostError(f"the build left no {source.name}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != owner:
        raise HostError(f"the build left something else than a plain file as {source.name}")
    if found.st_size > _BIGGEST_FILE:
        raise HostError(f"the build left a {source.name} of {format_size(found.st_size)}")
    if os.geteuid() == 0:
        source.rename(target)
        os.chown(target, 0, 0)
    else:
        shutil.copyfile(source, target)
    target.chmod(0o644)
