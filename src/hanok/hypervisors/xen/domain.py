"""One domain: found, asked, watched and cleaned up after."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from hanok.errors import AgentUnavailable, HypervisorError, TimedOut
from hanok.hypervisors.base import Machine, MachineEvent, Statistics
from hanok.hypervisors.optional import Stream
from hanok.hypervisors.xen.bootdisc import BOOT_DISC
from hanok.hypervisors.xen.config import AGENT_SOCKET, CONSOLE_SOCKET, domain_name
from hanok.hypervisors.xen.covers import remove_covers
from hanok.hypervisors.xen.parse import ShutdownReason, find_crash
from hanok.hypervisors.xen.streams import consoles_served, open_socket, open_terminal
from hanok.hypervisors.xen.toolstack import Toolstack
from hanok.model.vm import Mode
from hanok.proc import kill_and_wait, owner_of, wait_for_exit

Notify = Callable[[MachineEvent], None]

# xl writes a log of each domain's device model and of the domain itself here, and keeps ten old
# ones of each name.
LOGS = Path("/var/log/xen")
_END_LIMIT = 30.0
_POLL = 0.1
_TAIL = 2000
_CRASHES = {
    ShutdownReason.CRASH: "the guest's kernel crashed",
    ShutdownReason.WATCHDOG: "the guest's watchdog ran out",
}


@dataclass(frozen=True)
class Place:
    """Where a running machine is: its domain's number, and its device model's process."""

    domid: int
    device_model: int | None


class Domain:
    """A machine that runs as a domain. ``exited`` is set once nothing of it is left.

    ``paused``: what was told last of its vCPUs; Xen says what is.
    """

    def __init__(self, machine: Machine, place: Place, xen: Toolstack, notify: Notify) -> None:
        self.machine = machine
        self.place = place
        self.exited = asyncio.Event()
        self.paused = False
        self.killed = False
        self.crash = ""
        self._xen = xen
        self._notify = notify
        self._watcher: asyncio.Task[None] | None = None
        self.watch()

    @property
    def uuid(self) -> str:
        """The machine's uuid."""
        return self.machine.uuid

    @property
    def domid(self) -> int:
        """The domain's number; another one after a restart of the guest."""
        return self.place.domid

    def emit(self, name: str, detail: str = "") -> None:
        """Tell what happened."""
        self._notify(MachineEvent(self.uuid, name, detail))

    # --- its device model -------------------------------------------------------------------

    def watch(self) -> None:
        """Watch the device model: without it disks and agent are dead, and nobody says so."""
        self.unwatch()
        if self.place.device_model is not None:
            watching = self._watch(self.place.device_model)
            self._watcher = asyncio.create_task(watching, name=f"watch-{self.machine.name}")

    def unwatch(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._watcher = None

    async def _watch(self, pid: int) -> None:
        await wait_for_exit(pid)
        seen = await self._xen.find(self.uuid)
        if seen is None or seen.dying or seen.shutdown or self.killed:
            return  # it ended with its domain, whose end is told
        words = await asyncio.to_thread(last_words, domain_name(self.machine.name, self.uuid))
        self.crashed(f"its device model ended by itself: {words or 'it said nothing'}")

    def crashed(self, why: str) -> None:
        """Remember and tell that the machine crashed; only the first cause counts."""
        if not self.crash:
            self.crash = why
            self.emit("crashed", why)

    # --- why it ended -----------------------------------------------------------------------

    async def crash_of(self, reason: ShutdownReason | None) -> str:
        """Return in words why the guest is shut down, when that is a crash; else nothing."""
        if reason not in _CRASHES:
            return ""
        said = find_crash(await self._xen.log(), self.domid)
        return f"{_CRASHES[reason]}{f' ({said})' if said else ''}"

    # --- streams ----------------------------------------------------------------------------

    async def open_console(self) -> Stream:
        """Connect to the console. Raises HypervisorError."""
        if self.machine.mode is Mode.FULL:
            return await open_socket(self.machine.folder / CONSOLE_SOCKET)
        # Xenstore's word outlives the daemon that had the terminal: its number is another's then.
        served = await asyncio.to_thread(consoles_served)
        terminal = served and await self._xen.read(f"/local/domain/{self.domid}/console/tty")
        if not terminal:
            raise HypervisorError(
                f"{self.machine.name} has no console: xenconsoled does not serve it",
                hint="'systemctl status xen' in Dom0 tells whether it runs",
            )
        return await open_terminal(terminal)

    async def open_agent(self) -> Stream:
        """Connect to the agent's channel. Raises AgentUnavailable."""
        if not self.machine.agent:
            raise AgentUnavailable(
                f"{self.machine.name} has no channel for a guest agent",
                hint="use its console, or SSH",
            )
        try:
            # In mode full it is a serial port, and Xen asks Dom0 about each byte.
            slow = self.machine.mode is Mode.FULL
            return await open_socket(self.machine.folder / AGENT_SOCKET, slow=slow)
        except HypervisorError as error:
            raise AgentUnavailable(error.message) from error

    async def statistics(self) -> Statistics:
        """Return what it uses: the domain's and its device model's time; RAM and that process."""
        seen = await self._xen.find(self.uuid)
        if seen is None:
            raise HypervisorError(f"{self.machine.name} does not run")
        if self.place.device_model is None:
            return Statistics(seen.cpu_seconds, seen.memory)
        try:
            process = psutil.Process(self.place.device_model)
            times, memory = process.cpu_times(), process.memory_info().rss
        except psutil.Error:  # it has just ended, which the watcher tells
            return Statistics(seen.cpu_seconds, seen.memory)
        taken = times.user + times.system
        return Statistics(
            cpu_seconds=seen.cpu_seconds + taken,
            resident=seen.memory + memory,
            backend_seconds=taken,
            backend_memory=memory,
        )

    # --- its end ----------------------------------------------------------------------------

    async def destroy(self) -> None:
        """End the domain; returns when it, its device model and its files are gone.

        Raises TimedOut when Xen does not end it.
        """
        self.unwatch()
        await end_domain(self._xen, self.uuid, self.place)
        await asyncio.to_thread(remove_traces, self.machine)


async def place_of(xen: Toolstack, domid: int) -> Place:
    """Return where the domain's device model is."""
    text = await xen.read(f"/local/domain/{domid}/image/device-model-pid")
    return Place(domid, int(text) if text and text.isdigit() else None)


async def end_domain(xen: Toolstack, uuid: str, place: Place | None) -> None:
    """Destroy whatever domain has this uuid and wait until it is gone. Raises TimedOut."""
    try:
        async with asyncio.timeout(_END_LIMIT):
            while (seen := await xen.find(uuid)) is not None:
                if place is None or place.domid != seen.domid:
                    place = await place_of(xen, seen.domid)
                if not seen.dying:
                    await xen.destroy(seen.domid)
                else:
                    await asyncio.sleep(_POLL)
    except TimeoutError:
        raise TimedOut(
            f"Xen did not end the domain {uuid} within {_END_LIMIT:g} s",
            hint="a back end in Dom0 still holds pages of it; 'xl list' shows it as dying",
        ) from None
    if place is not None and place.device_model is not None:
        await _end_device_model(place.device_model, uuid)


async def _end_device_model(pid: int, uuid: str) -> None:
    """Wait for the device model of a domain that is gone; end it when it stays."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_LIMIT / 3):
            await wait_for_exit(pid)
        return
    owner = owner_of(pid)
    if owner is not None and owner.ident == uuid:
        await kill_and_wait(pid)


def has_traces(machine: Machine) -> bool:
    """Whether there are files that a domain leaves: each has some, from its first second on."""
    return any(path.exists() for path in _traces_of(machine))


def remove_traces(machine: Machine) -> None:
    """Remove what a domain leaves in files: sockets, covers, boot disc, and logs that xl made."""
    for path in _traces_of(machine):
        path.unlink(missing_ok=True)
    remove_covers(machine.folder)


def _traces_of(machine: Machine) -> list[Path]:
    files = [machine.folder / name for name in (CONSOLE_SOCKET, AGENT_SOCKET, BOOT_DISC)]
    return [*files, *_logs_of(domain_name(machine.name, machine.uuid))]


def _logs_of(name: str) -> list[Path]:
    found = [*LOGS.glob(f"qemu-dm-{name}.log*"), *LOGS.glob(f"xl-{name}.log*")]
    return sorted(found)


def last_words(name: str) -> str:
    """Return the end of the device model's log in one line; nothing when it said nothing."""
    try:
        data = (LOGS / f"qemu-dm-{name}.log").read_bytes()[-_TAIL:]
    except OSError:
        return ""
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    # The back end of a channel says this until the guest connects.
    told = [line for line in lines if line and "initialise() failed" not in line]
    return "; ".join(told[-4:])
