"""What a QEMU process leaves in its machine's folder, and what can be told from it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hanok.hypervisors.qemu.argv import (
    AGENT_SOCKET,
    CONSOLE_SOCKET,
    IDENTITY_SOCKET,
    PID_FILE,
    QMP_SOCKET,
    SCREEN_SOCKET,
)


def remove_files(folder: Path) -> None:
    """Remove what a QEMU process leaves in its folder besides its log."""
    sockets = (QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET, IDENTITY_SOCKET, SCREEN_SOCKET)
    for name in (*sockets, PID_FILE):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()


def process_uid(pid: int) -> int | None:
    """Return the uid that process ``pid`` runs as; None when it is gone."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_pid_file(folder: Path) -> int | None:
    """Return what the pid file says, which its process could have forged; None without one."""
    try:
        descriptor = os.open(folder / PID_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(16).strip()
    return int(text) if text.isdigit() else None
