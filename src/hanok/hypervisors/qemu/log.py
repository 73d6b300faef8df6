"""QEMU's own output: a file in a folder that its unprivileged account owns.

A hostile emulator may put a link there under the same name, so that nothing here follows one.

The guest of a clone can have QEMU complain without end: each page that its balloon hands back is
one that the sealed memory does not give away. So a clone writes to memory of a fixed size first,
also while no daemon runs, and the file gets that at its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

_LONGEST = 1024 * 1024
_KEPT = 64 * 1024
_TAIL = 2000
_BOUND = 64 * 1024
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
# Who speaks, and the option it is about: the cause comes after them.
_SPEAKER = re.compile(r"^qemu-system-\w+: ")
_OPTION = re.compile(r"^-(blockdev \{.*?\"node-name\": \"(?P<node>[^\"]*)\".*\}|\w+ \S+): ")


def start_log(path: Path) -> None:
    """Make an empty log; the last one is kept beside it, as ``*.1``. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.1"))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))


def bounded_log() -> int:
    """Return a memfd that takes the first 64 KiB written to it, and refuses the rest.

    The caller closes it. Raises OSError.
    """
    log = os.memfd_create("hanok-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(log, _BOUND)
        fcntl.fcntl(log, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(log)
        raise
    return log


def keep_log(log: int, path: Path) -> None:
    """Write what a bounded log took to the file; nothing happens when that cannot be written."""
    text = os.pread(log, _BOUND, 0).rstrip(b"\0")
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(0)
            file.write(text)


def last_words(path: Path) -> str:
    """Return the end of the log in one line, for an error message."""
    return summary(_read_end(path, _TAIL))


def summary(output: bytes) -> str:
    """Return the last of what QEMU said, in one line without what names itself."""
    text = output[-_TAIL:].decode("utf-8", "replace")
    lines = [_cause(line.strip()) for line in text.splitlines()]
    # TCG says at each start what of the CPU model it lacks; that is never why QEMU ended.
    told = [line for line in lines if line and "TCG doesn't support requested" not in line]
    return "; ".join(told[-5:]) or "it said nothing"


def _cause(line: str) -> str:
    """Return a line without its speaker and option; of a block node its name is kept."""
    told = _SPEAKER.sub("", line)
    option = _OPTION.match(told)
    if option is None:
        return told
    cause = told[option.end() :]
    return f"{option['node']}: {cause}" if option["node"] else cause


def trim_log(path: Path) -> None:
    """Cut the log to its end when it has grown; QEMU appends, so that it may go on meanwhile."""
    try:
        if path.lstat().st_size <= _LONGEST:
            return
        end = _read_end(path, _KEPT)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    except OSError:
        return
    with os.fdopen(descriptor, "ab") as file:
        file.truncate(0)
        file.write(b"(older output was cut off)\n" + end)


def _read_end(path: Path, size: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        with contextlib.suppress(OSError):
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
        return b""
