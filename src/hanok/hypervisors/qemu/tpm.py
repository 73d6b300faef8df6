"""A machine's TPM 2.0: one swtpm process beside its QEMU, as the same account.

It ends when QEMU's connection does (``--terminate``), so that a machine's end is its end too. What
it keeps is in a folder of its own, ``state`` in QEMU's words. Source: swtpm(8).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from hanok.errors import HostError, HypervisorError
from hanok.hypervisors.base import Machine
from hanok.hypervisors.qemu.argv import TPM_SOCKET
from hanok.proc import Account, Owner, Runner, find_owned, is_alive, kill_and_wait, require_program

OWNER_KIND = "tpm"
_START_LIMIT = 10.0
_LOOK = 0.02
# How long it has to write its state and end by itself.
_END_LIMIT = 3.0


def swtpm_argv(folder: Path) -> list[str]:
    """Return the command line of the TPM whose state is in ``folder``. Pure."""
    return [
        *("swtpm", "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={folder},mode=0600"),
        *("--ctrl", f"type=unixio,path={folder / TPM_SOCKET},mode=0600"),
    ]


async def start_tpm(
    runner: Runner, machine: Machine, folder: Path, home: Path, account: Account | None
) -> int:
    """Start the TPM of ``machine`` and return its pid when QEMU can connect to it.

    Its state is in ``folder``. Raises HostError (swtpm is missing, or cannot be told the folder),
    HypervisorError.
    """
    require_program("swtpm", "swtpm")
    if "," in str(folder):  # swtpm's options have no way to say it
        raise HostError(f"a TPM cannot keep its state in {folder}: there is a comma in its name")
    await end_tpm(home, machine.uuid)
    _make_folder(folder, account)
    owner = Owner(str(home), OWNER_KIND, machine.uuid)
    pid = await runner.spawn(swtpm_argv(folder), owner=owner, account=account, umask=0o077)
    waiting = AsyncRetrying(
        stop=stop_after_delay(_START_LIMIT),
        wait=wait_fixed(_LOOK),
        retry=retry_if_result(lambda is_there: not is_there),
        retry_error_callback=lambda _: False,
    )

    async def is_there_or_ended() -> bool:
        return (folder / TPM_SOCKET).is_socket() or not is_alive(pid)

    if not await waiting(is_there_or_ended) or not is_alive(pid):
        await end_tpm(home, machine.uuid)
        raise HypervisorError(
            f"the TPM of {machine.name} did not start",
            hint=f"see whether swtpm can use {folder}; without --tpm it needs none",
        )
    return pid


def _make_folder(folder: Path, account: Account | None) -> None:
    """Make the folder, inside one that is the daemon's: nobody can have put a link there."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is not None and os.geteuid() == 0:
        os.chown(folder, account.uid, account.gid)
    (folder / TPM_SOCKET).unlink(missing_ok=True)


async def end_tpm(home: Path, uuid: str, patience: float = 0.0) -> None:
    """End what is left of a machine's TPM, which has ``patience`` seconds to end by itself."""
    for pid in await asyncio.to_thread(_find, home, uuid):
        waiting = AsyncRetrying(
            stop=stop_after_delay(patience),
            wait=wait_fixed(_LOOK),
            retry=retry_if_result(bool),
            retry_error_callback=lambda _: None,
        )

        async def lives(pid: int = pid) -> bool:
            return is_alive(pid)

        await waiting(lives)
        await kill_and_wait(pid)


async def let_tpm_end(home: Path, uuid: str) -> None:
    """Return when the TPM of a machine whose QEMU has ended is gone too."""
    await end_tpm(home, uuid, _END_LIMIT)


def _find(home: Path, uuid: str) -> list[int]:
    return [one.pid for one in find_owned(home, OWNER_KIND) if one.owner.ident == uuid]
