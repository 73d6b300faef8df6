"""From files to a report. They are read whole, up to a size; nothing is ever written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hanok.errors import InvalidInput, NotFound
from hanok.kernels.initrd import LARGEST_INITRD, read_initrd
from hanok.kernels.kernel import LARGEST_KERNEL, read_kernel
from hanok.kernels.modes import report
from hanok.model.kernel import KernelReport


def inspect_files(name: str, kernel: Path, initrd: Path | None) -> KernelReport:
    """Return what the kernel in the file ``kernel`` can do with its initrd, if it has one.

    Raises NotFound, and InvalidInput for files that are not what they should be.
    """
    facts = read_kernel(_read(kernel, "kernel", LARGEST_KERNEL))
    found = None if initrd is None else read_initrd(_read(initrd, "initrd", LARGEST_INITRD))
    return report(name, facts, found)


def _read(path: Path, field: str, largest: int) -> bytes:
    """Return the content of a plain file; a FIFO would be waited for, a device never end."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidInput(f"{path} is no plain file", field=field, expected="a file")
            data = file.read(largest + 1)
    except (OSError, ValueError) as error:
        raise NotFound(f"{path} cannot be read: {error}", field=field) from error
    if not 0 < len(data) <= largest:
        raise InvalidInput(
            f"{path} is {'too large' if data else 'empty'}",
            field=field,
            expected=f"1 byte to {largest // 1024**2} MiB",
        )
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
