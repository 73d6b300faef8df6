"""Files that are whole after a power cut, or are not there."""

from __future__ import annotations

import os
from pathlib import Path

from hanok.proc import Account


def give_file(
    path: Path,
    data: bytes,
    account: Account | None,
    *,
    size: int = 0,
    mode: int = 0o600,
    draft: Path | None = None,
) -> None:
    """Write ``data`` to ``path``, owned by ``account``; whole or not at all.

    Zeros follow up to ``size`` bytes. ``draft``: what it is called until it is whole, in the same
    folder. Raises OSError.
    """
    draft = path.with_suffix(".new") if draft is None else draft
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.truncate(max(size, len(data)))
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
    draft.rename(path)


def sync_path(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
