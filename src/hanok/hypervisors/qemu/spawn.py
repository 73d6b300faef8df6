"""The start of a QEMU process, of which nothing is left when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hanok.hypervisors.base import Machine
from hanok.hypervisors.qemu.argv import LOG_FILE
from hanok.hypervisors.qemu.folder import remove_files
from hanok.hypervisors.qemu.log import bounded_log, start_log
from hanok.hypervisors.qemu.process import QemuProcess
from hanok.proc import Account, Owner, Runner

OWNER_KIND = "vm"
# Sockets 0600: bind() makes them with all permissions but those of the umask.
_UMASK = 0o177


async def start_process(
    runner: Runner,
    machine: Machine,
    argv: Sequence[str],
    *,
    home: Path,
    account: Account | None,
    pass_fds: Sequence[int],
    kind: str = OWNER_KIND,
) -> QemuProcess:
    """Start QEMU and return it when it answers. Leaves nothing but its log when it fails.

    ``kind`` is what its mark says that it is. Raises HypervisorError, HostError.
    """
    remove_files(machine.folder)
    start_log(machine.folder / LOG_FILE)
    with _log_of(machine) as log:
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(remove_files, machine.folder)
            spawning = asyncio.ensure_future(
                runner.spawn(
                    argv,
                    owner=Owner(str(home), kind, machine.uuid),
                    output=machine.folder / LOG_FILE if log is None else log,
                    account=account,
                    pass_fds=pass_fds,
                    umask=_UMASK,
                )
            )
            process = await _surely(spawning, machine, log)
            undo.push_async_callback(process.kill)
            await process.wait_until_answering()
            undo.pop_all()
    return process


@contextlib.contextmanager
def _log_of(machine: Machine) -> Iterator[int | None]:
    """Give the bounded log of a clone; other machines write to the file."""
    log = bounded_log() if machine.frozen is not None else None
    try:
        yield log
    finally:
        if log is not None:
            os.close(log)


async def _surely(spawning: asyncio.Future[int], machine: Machine, log: int | None) -> QemuProcess:
    """Wait for the pid even when we are cancelled: else a process would be left behind."""
    try:
        return QemuProcess(machine, await asyncio.shield(spawning), log)
    except asyncio.CancelledError:
        await QemuProcess(machine, await spawning, log).kill()
        raise
