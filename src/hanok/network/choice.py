"""Which networks this user can have on this host: found out by trying."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path

from hanok.durable import give_file
from hanok.errors import CommandFailed, HanokError, InvalidInput
from hanok.proc import Runner, find_owned, find_program

NAMESPACE = "namespace"
USER = "user"
_TUN = Path("/dev/net/tun")
_LIMIT = 10.0


async def choose_networks(wanted: str, home: Path, runner: Runner) -> tuple[str, str]:
    """Return NAMESPACE or USER, and why.

    ``wanted`` is what the administrator said: one of them, or auto. While anything of the data
    directory ``home`` runs, what was chosen for it stays: a VM cannot change its network's kind.
    Raises InvalidInput for another word.
    """
    if wanted not in ("auto", NAMESPACE, USER):
        raise InvalidInput(
            f"HANOK_NETWORK is {wanted!r}",
            field="HANOK_NETWORK",
            expected=f"auto, {NAMESPACE} or {USER}",
        )
    kept = home / "networking"
    if kept.exists() and any(find_owned(home)):
        kind, _, reason = kept.read_text().strip().partition("\n")
        if kind in (NAMESPACE, USER):
            return kind, reason
    if wanted != "auto":
        kind, reason = wanted, "HANOK_NETWORK says so"
    else:
        obstacle = await find_obstacle(runner)
        kind, reason = (NAMESPACE, "") if obstacle is None else (USER, obstacle)
    give_file(kept, f"{kind}\n{reason}\n".encode(), None)
    return kind, reason


async def find_obstacle(runner: Runner, tun: Path = _TUN) -> str | None:
    """Return why this user can have no networks in namespaces, for people; None when he can.

    As root there is none that is not better told when a network is started.
    """
    if os.geteuid() == 0:
        return None
    try:
        os.close(os.open(tun, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return (
            f"{tun} cannot be opened ({error.strerror}); as root 'chmod 0666 {tun}' opens it to"
            " all, as Debian does by itself"
        )
    try:
        argv = ["unshare", "--user", "--map-root-user", "--net", "true"]
        await runner.run(argv, timeout=_LIMIT)
    except CommandFailed as error:
        return f"this user may make no user namespace ({error.message})"
    except HanokError as error:
        return error.message
    if find_program("dnsmasq") is None:
        return "the program dnsmasq is not installed (apt-get install dnsmasq-base)"
    if ctypes.util.find_library("nftables") is None:
        return "the library libnftables is not installed (apt-get install nftables)"
    return None
