"""The way out of a network: pasta, attached to the keeper's namespaces from outside.

pasta runs in the host's network namespace as the network's own user and speaks ordinary
sockets there, so nothing of the host's network configuration changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import HanokError, HostError
from hanok.network.keeper.config import DNS_FORWARD, OUT, OUT_ADDRESS, OUT_GATEWAY, OUT_PREFIX
from hanok.proc import (
    Owner,
    Runner,
    find_owned,
    find_program,
    is_alive,
    kill_and_wait,
    reap,
    wait_for_exit,
)

KIND = "pasta"
_TIMEOUT = 10.0
_ASK_AGAIN = 0.005
_QUICK_DEATHS = 3  # of pasta in a row, before it is left alone
_STABLE = 60.0
_RTF_REJECT = 0x200  # linux/route.h
_LOG_LIMIT = 1024 * 1024
# pasta opens the device as the network's user: see keeper/namespace.py.
_PRIVATE_TUN = (
    "mount -t tmpfs -o mode=755,size=64k none /dev/net"
    ' && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"'
)


def pasta_argv(
    keeper: int, uid: int | None, mtu: int = 1500, pid_file: Path | None = None
) -> list[str]:
    """Return the command that attaches pasta to the namespaces of process ``keeper``.

    ``uid`` is the network's user, None when the daemon is not root; ``pid_file`` is for that: see
    ``find_hidden``. No port is forwarded in
    either direction, and no address in the namespace stands for the host's loopback.
    """
    argv = ["pasta", "--foreground", "--stderr", "--quiet", "--ipv4-only", "--config-net"]
    argv += ["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", "--no-ndp"]
    argv += ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
    argv += ["--userns", f"/proc/{keeper}/ns/user", "--netns", f"/proc/{keeper}/ns/net"]
    argv += ["--ns-ifname", OUT, "--mtu", str(mtu), "--dns-forward", DNS_FORWARD]
    argv += ["--address", OUT_ADDRESS, "--netmask", str(OUT_PREFIX), "--gateway", OUT_GATEWAY]
    if uid is None:
        return [*argv, *(("--pid", str(pid_file)) if pid_file is not None else ())]
    become = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    become.append("--no-new-privs")
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _PRIVATE_TUN, "sh"]
    return [*private, *become, *argv]


def default_route() -> bool:
    """Return whether this host has an IPv4 default route (the kernel's fib_trie.c: route)."""
    with open("/proc/thread-self/net/route") as file:
        routes = [line.split() for line in file.readlines()[1:]]
    # Interface, destination, gateway, flags, three counters, mask.
    return any(r[1] == r[7] == "00000000" and not int(r[3], 16) & _RTF_REJECT for r in routes)


async def host_routes(runner: Runner) -> tuple[str, ...]:
    """Return the IPv4 networks that this host has routes to, for ``base.free_subnet``."""
    done = await runner.run(["ip", "-j", "-4", "route", "show", "table", "all"], timeout=10)
    found = (str(route.get("dst", "default")) for route in json.loads(done.stdout or b"[]"))
    return tuple(sorted({route for route in found if route != "default"}))


def find_pasta(home: Path, network: str) -> list[int]:
    """Return the processes that are the way out of ``network``."""
    return [p.pid for p in find_owned(home, KIND) if p.owner.ident == network]


def find_hidden(pid_file: Path) -> list[int]:
    """Return the processes of ours that are pasta with this ``pid_file``.

    pasta hides its environment, and with it the mark, from all but root. What it was called with
    it cannot hide; and another user cannot have our uid.
    """
    if os.geteuid() == 0:
        return []
    wanted = b"\0--pid\0" + os.fsencode(pid_file) + b"\0"
    return [
        int(entry.name)
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and _is_ours(Path(entry.path), wanted)
    ]


def _is_ours(process: Path, wanted: bytes) -> bool:
    try:
        if wanted not in (process / "cmdline").read_bytes():
            return False
        status = (process / "status").read_text()
    except OSError:
        return False  # it has ended
    return f"\nUid:\t{os.geteuid()}\t" in status


def is_attached(keeper: int) -> bool:
    """Return whether the namespace of process ``keeper`` has its way out."""
    try:
        routes = Path(f"/proc/{keeper}/net/route").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[:2] == [OUT, "00000000"] for line in routes)


@dataclass(frozen=True)
class Target:
    """What pasta is attached to: the namespaces of process ``keeper``, as user ``uid``."""

    home: Path
    network: str
    keeper: int
    uid: int | None
    log: Path

    @property
    def pid_file(self) -> Path:
        """What an ordinary user's pasta is found by."""
        return self.log.with_suffix(".pid")


async def start_pasta(runner: Runner, target: Target) -> int:
    """Attach a new pasta to the keeper and return its pid once traffic can pass.

    Raises HostError with what pasta said when it cannot.
    """
    if find_program("pasta") is None:
        raise HostError("the program pasta is not installed (package passt)")
    if not default_route():
        raise HostError("this host has no default route")
    log = target.log
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        os.truncate(log, 0)
    start = log.stat().st_size if log.exists() else 0
    owner = Owner(home=str(target.home), kind=KIND, ident=target.network)
    argv = pasta_argv(target.keeper, target.uid, pid_file=target.pid_file)
    pid = await runner.spawn(argv, owner=owner, output=log)
    try:
        async with asyncio.timeout(_TIMEOUT):
            while not is_attached(target.keeper):
                if not is_alive(pid):
                    reap(pid)
                    raise HostError(f"pasta did not start: {_said(log, start)}")
                await asyncio.sleep(_ASK_AGAIN)
    except BaseException as error:
        await kill_and_wait(pid)
        if isinstance(error, TimeoutError):
            raise HostError(f"pasta did not attach within {_TIMEOUT:g} s") from None
        raise
    return pid


class WayOut:
    """Keeps pasta attached to a keeper, in the background, until it ends too quickly too often.

    ``tell`` is called with whether traffic can pass, each time that this changes; ``fresh`` says
    that the keeper cannot have a pasta yet. ``reason`` says why traffic cannot pass, None when
    it can.
    """

    def __init__(
        self,
        runner: Runner,
        target: Target,
        tell: Callable[[bool], Awaitable[None]],
        *,
        fresh: bool,
    ) -> None:
        self.reason: str | None = "the way out is being made"
        self._runner = runner
        self._target = target
        self._tell = tell
        self._decided = asyncio.Event()
        self._task = asyncio.create_task(self._hold(fresh))

    @property
    def given_up(self) -> bool:
        """Whether nothing will change any more."""
        return self._task.done()

    async def settle(self) -> None:
        """Return once there is a way out, or a reason why there is none."""
        await self._decided.wait()

    async def close(self) -> None:
        """Let go of pasta, which goes on."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        try:
            while deaths < _QUICK_DEATHS and is_alive(self._target.keeper):
                started = loop.time()
                pid = None if fresh else await self._find()
                if pid is None:
                    pid = await start_pasta(self._runner, self._target)
                fresh = False
                await self._tell(True)
                self.reason = None
                self._decided.set()
                await wait_for_exit(pid)
                self.reason = "pasta has ended"
                deaths = deaths + 1 if loop.time() - started < _STABLE else 1
        except HanokError as error:
            self.reason = error.message
        finally:
            self._decided.set()
        with contextlib.suppress(HanokError):
            await self._tell(False)

    async def _find(self) -> int | None:
        """Return the pasta that an earlier daemon has attached; one that is not attached ends."""
        target = self._target
        pids = find_pasta(target.home, target.network) or find_hidden(target.pid_file)
        if pids and is_attached(self._target.keeper):
            return pids[0]
        for pid in pids:
            await kill_and_wait(pid)
        return None


def _said(log: Path, start: int) -> str:
    """Return the last lines of the log, without pasta's complaints about a missing syslog."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read(65536).decode("utf-8", "replace").splitlines()
    kept = [line for line in lines if line and "to syslog" not in line]
    return "; ".join(kept[-3:]) or "it said nothing"
