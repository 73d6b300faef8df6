"""A scope with limits of its own for each VM and each network, on a host with systemd.

It is made when the process runs already, aside, so that no start waits for it. A VM whose scope
cannot be made goes on without limits, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from hanok.errors import HanokError, HostError
from hanok.proc import Owner, Runner, find_owned, find_program, is_alive
from hanok.systemd.names import (
    NETWORK_LIMITS,
    SLICE,
    Limits,
    attach_argv,
    limit_in,
    network_scope,
    resize_argv,
    start_scope_argv,
    unit_in,
    vm_scope,
)

_log = logging.getLogger(__name__)
_VM = "vm"
_NETWORK = ("keeper", "dnsmasq", "pasta")
_CGROUPS = Path("/sys/fs/cgroup")
_RUNS = Path("/run/systemd/system")
_BUS = Path("/run/dbus/system_bus_socket")
_BUS_LIMIT = 60.0
_BUS_LOOK = 0.5
_CALL_LIMIT = 25.0
_OLD_SCOPE_LIMIT = 5.0
_OLD_SCOPE_LOOK = 0.1
_REASON = 300


@dataclass(frozen=True)
class Charge:
    """What a VM's scope may take, and the uid that its process has (None: any)."""

    limits: Limits
    uid: int | None


@dataclass(frozen=True)
class Held:
    """The limits that hold for a VM, read from its cgroup; ``reason`` says why some do not."""

    unit: str | None = None
    memory: int | None = None
    tasks: int | None = None
    cpu_weight: int | None = None
    reason: str | None = None


ChargeOf = Callable[[str], Awaitable[Charge | None]]


class Scopes(Protocol):
    """Where the processes of VMs and networks are put."""

    def put_soon(self, owner: Owner, pid: int) -> None:
        """Have a process that was just started put into its scope, without waiting for that."""
        ...

    async def resize(self, uuid: str) -> None:
        """Bring the limits of a VM that is up to what it may take now; never raises."""
        ...

    async def adopt(self, home: Path) -> None:
        """Put every process of a data directory that an earlier daemon left outside into one."""
        ...

    def held(self, uuid: str) -> Held:
        """Return the limits that hold for a VM that is up."""
        ...

    async def close(self) -> None:
        """End what goes on; what is left undone, the next daemon's ``adopt`` does."""
        ...


class NoScopes:
    """Scopes on a host that has none, because of ``reason``."""

    def __init__(self, reason: str = "nothing here sets limits") -> None:
        self._reason = reason

    def put_soon(self, owner: Owner, pid: int) -> None:
        """See Scopes.put_soon."""

    async def resize(self, uuid: str) -> None:
        """See Scopes.resize."""

    async def adopt(self, home: Path) -> None:
        """See Scopes.adopt."""

    def held(self, uuid: str) -> Held:
        """See Scopes.held."""
        return Held(reason=self._reason)

    async def close(self) -> None:
        """See Scopes.close."""


class SystemdScopes:
    """Scopes of systemd's manager, asked by ``busctl``.

    ``charge_of`` tells what the VM of a uuid may take, None when there is no such VM.
    """

    def __init__(
        self,
        runner: Runner,
        charge_of: ChargeOf,
        cgroups: Path = _CGROUPS,
        bus: Path = _BUS,
    ) -> None:
        self._runner = runner
        self._bus = bus
        self._charge_of = charge_of
        self._cgroups = cgroups
        self._daemon = own_unit()
        self._failures: dict[str, str] = {}
        self._waiting: asyncio.Queue[tuple[Owner, int]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    def put_soon(self, owner: Owner, pid: int) -> None:
        """See Scopes.put_soon. One after another: a hundred clones start beside it."""
        if owner.kind != _VM and owner.kind not in _NETWORK:
            return
        self._waiting.put_nowait((owner, pid))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="scopes")

    async def _work(self) -> None:
        await self._wait_for_bus()
        while not self._waiting.empty():
            owner, pid = self._waiting.get_nowait()
            await self._put(owner, pid)

    async def _wait_for_bus(self) -> None:
        """Wait a while until the bus is there: a daemon may start VMs while its host boots."""
        waiting = AsyncRetrying(
            stop=stop_after_delay(_BUS_LIMIT),
            wait=wait_fixed(_BUS_LOOK),
            retry=retry_if_result(lambda there: not there),
        )
        with contextlib.suppress(RetryError):  # then systemd's refusal tells why
            await waiting(self._has_bus)

    async def _has_bus(self) -> bool:
        return self._bus.exists()

    async def resize(self, uuid: str) -> None:
        """See Scopes.resize."""
        unit = vm_scope(uuid)
        charge = await self._charge_of(uuid)
        if charge is None or not (self._cgroups / SLICE / unit).is_dir():
            return
        try:
            await self._call(resize_argv(unit, charge.limits, self._controllers()))
        except HanokError as error:
            _log.warning("the limits of %s stay what they were: %s", unit, error.message)

    async def adopt(self, home: Path) -> None:
        """See Scopes.adopt."""
        for process in await asyncio.to_thread(lambda: list(find_owned(home))):
            if process.owner.kind == _VM or process.owner.kind in _NETWORK:
                await self._put(process.owner, process.pid)

    async def _put(self, owner: Owner, pid: int) -> None:
        try:
            if owner.kind == _VM:
                await self._put_vm(owner.ident, pid)
            else:
                await self._put_network(owner, pid)
        except HanokError as error:
            if is_alive(pid):
                _log.warning("process %s of %s has no scope: %s", pid, owner.ident, error.message)
                self._failures[owner.ident] = error.message[:_REASON]

    async def _put_vm(self, uuid: str, pid: int) -> None:
        unit = vm_scope(uuid)
        charge = await self._charge_of(uuid)
        if charge is None or unit_of(pid) == unit or not _has_uid(pid, charge.uid):
            return
        # The scope of this VM's last run may end a moment after its process.
        waiting = AsyncRetrying(
            stop=stop_after_delay(_OLD_SCOPE_LIMIT),
            wait=wait_fixed(_OLD_SCOPE_LOOK),
            retry=retry_if_exception_type(_Exists),
            reraise=True,
        )
        await waiting(self._start, unit, [pid], charge.limits)
        self._failures.pop(uuid, None)

    async def _put_network(self, owner: Owner, pid: int) -> None:
        unit = network_scope(owner.ident, owner.home)
        if unit_of(pid) == unit:
            return
        pids = [pid, *_children(pid)]
        try:
            await self._start(unit, pids, NETWORK_LIMITS, grows=True)
        except _Exists:
            await self._call(attach_argv(unit, pids))

    async def _start(
        self, unit: str, pids: Sequence[int], limits: Limits, *, grows: bool = False
    ) -> None:
        argv = start_scope_argv(
            unit, pids, limits, self._controllers(), daemon=self._daemon, grows=grows
        )
        await self._call(argv)

    async def _call(self, argv: Sequence[str]) -> None:
        done = await self._runner.run(argv, timeout=_CALL_LIMIT, check=False)
        if done.returncode == 0:
            return
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        if "already" in said:
            raise _Exists(f"systemd says: {said}")
        raise HostError(f"systemd makes no scope: {said}")

    def _controllers(self) -> frozenset[str]:
        with contextlib.suppress(OSError):
            return frozenset((self._cgroups / "cgroup.controllers").read_text().split())
        return frozenset()

    def held(self, uuid: str) -> Held:
        """See Scopes.held."""
        unit = vm_scope(uuid)
        if not self._controllers():
            return Held(unit=unit, reason="this host has no cgroup v2")
        folder = self._cgroups / SLICE / unit
        if not folder.is_dir():
            return Held(reason=self._failures.get(uuid, "it is not in its scope yet"))
        found: Mapping[str, int | None] = {
            field: _limit(folder, name)
            for field, name in (
                ("memory", "memory.max"),
                ("tasks", "pids.max"),
                ("cpu_weight", "cpu.weight"),
            )
        }
        missing = [field.replace("_", " ") for field, value in found.items() if value is None]
        reason = f"no controller for: {', '.join(missing)}" if missing else None
        return Held(unit=unit, reason=reason, **found)

    async def close(self) -> None:
        """See Scopes.close."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)


class _Exists(HostError):
    """There is a scope of that name."""


def find_scopes(runner: Runner, charge_of: ChargeOf) -> Scopes:
    """Return this host's scopes, or some that say why there are none."""
    if not _RUNS.is_dir():
        return NoScopes("this host does not run systemd")
    if os.geteuid() != 0:
        return NoScopes("hanokd does not run as root")
    if find_program("busctl") is None:
        return NoScopes("the program busctl is not installed")
    return SystemdScopes(runner, charge_of)


def own_unit() -> str | None:
    """Return the service that this process is the daemon of; None when it is none's."""
    unit = unit_of(os.getpid())
    return unit if unit is not None and unit.endswith(".service") else None


def unit_of(pid: int) -> str | None:
    """Return the unit that a process is in; None when it is gone or in none."""
    with contextlib.suppress(OSError):
        return unit_in(Path(f"/proc/{pid}/cgroup").read_text())
    return None


def _limit(folder: Path, name: str) -> int | None:
    with contextlib.suppress(OSError):
        return limit_in(folder, name)
    return None


def _has_uid(pid: int, uid: int | None) -> bool:
    """Whether the process is whose its mark says: that it could forge, its uid not."""
    try:
        return uid is None or psutil.Process(pid).uids().real == uid
    except psutil.Error:
        return False


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []
