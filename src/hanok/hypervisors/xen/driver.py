"""Xen as a hypervisor: see ``hypervisors/base.py`` for the contract.

A domain with paravirtual cards is created paused, they are plugged into their networks, then it
goes on; others run from the start, which is one program less. Nobody but this driver decides what
becomes of a domain whose guest has ended: it stays as it is, while no daemon runs too, until the
next one looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import psutil

from hanok.errors import HanokError, HostError, HypervisorError, Unsupported
from hanok.hypervisors.base import Disk, Machine, MachineEvent, Nic, RunState, Statistics
from hanok.hypervisors.events import EventQueue
from hanok.hypervisors.finish import to_its_end
from hanok.hypervisors.optional import Stream
from hanok.hypervisors.taps import descriptors
from hanok.hypervisors.xen import change, firmware
from hanok.hypervisors.xen.backing import check_backing
from hanok.hypervisors.xen.bootdisc import Loader, make_boot_disc
from hanok.hypervisors.xen.config import HOTPLUG_PORTS, build_config, domain_name
from hanok.hypervisors.xen.confinement import Confinement, find_confinement
from hanok.hypervisors.xen.covers import cover
from hanok.hypervisors.xen.domain import (
    Domain,
    Place,
    end_domain,
    has_traces,
    last_words,
    place_of,
    remove_traces,
)
from hanok.hypervisors.xen.overhead import check_dom0, overhead
from hanok.hypervisors.xen.parse import DomainState, ShutdownReason, XenInfo
from hanok.hypervisors.xen.toolstack import Toolstack, is_dom0
from hanok.hypervisors.xen.wiring import Wiring
from hanok.hypervisors.xen.xenstore import SOCKET
from hanok.model.host import HostShare, HypervisorFacts
from hanok.model.network import Plug
from hanok.model.vm import Mode
from hanok.proc import Owner, Runner

_log = logging.getLogger(__name__)
OWNER_KIND = "vm"
# Xenstore tells of ends; this is for what it may have failed to tell.
_LOOK = 15.0
_CRASHED = (ShutdownReason.CRASH, ShutdownReason.WATCHDOG)


class XenHypervisor:
    """Runs machines as domains: PV (para), PVH (hybrid) and HVM (full). Wants root in Dom0.

    ``home`` is the data directory that marks the device models' processes; ``wiring`` plugs cards
    into networks, and is not needed by machines without any. ``confinement``: what this host has
    to confine device models, looked for when it is None. ``loader``: the host's ISOLINUX. ``uefi``:
    the files that may be its UEFI firmware for domains. ``xenstore``: the socket of its daemon.
    """

    name: ClassVar[str] = "xen"
    hotplug_ports: ClassVar[int] = HOTPLUG_PORTS

    def __init__(
        self,
        runner: Runner,
        home: Path,
        wiring: Wiring | None = None,
        confinement: Confinement | None = None,
        loader: Loader | None = None,
        uefi: Sequence[Path] = firmware.FILES,
        xenstore: Path = SOCKET,
    ) -> None:
        self._confinement = find_confinement() if confinement is None else confinement
        self._loader = Loader() if loader is None else loader
        self._uefi = uefi
        self._runner = runner
        self._xen = Toolstack(runner, xenstore)
        self._home = home
        self._wiring = wiring
        self._info: XenInfo | None = None
        self._dom0: DomainState | None = None
        self._seen_at = 0.0
        self._domains: dict[str, Domain] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._events = EventQueue()
        self._looking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # --- what it can do ---------------------------------------------------------------------

    async def probe(self) -> HypervisorFacts:
        """See Hypervisor.probe."""
        if not is_dom0():
            raise HostError(
                "this system is no management domain (Dom0) of Xen",
                hint="boot it with Xen, or set HANOK_HYPERVISOR=qemu",
            )
        info = self._info
        if info is None:
            info = await self._look_at_host()
        return HypervisorFacts(
            name=self.name,
            version=info.version,
            accelerator="xen",
            type=1,
            isolation="xen",
            modes=tuple(str(mode) for mode in modes_of(info)),
            confinement=self._confinement.summary,
            reason=f"this is its Dom0, and it offers {', '.join(info.capabilities)}",
        )

    async def _look_at_host(self) -> XenInfo:
        """Return what the host is, and remember how it is divided now."""
        info, domains = await asyncio.gather(self._xen.info(), self._xen.domains())
        self._dom0 = next(domain for domain in domains if domain.domid == 0)
        self._info, self._seen_at = info, time.monotonic()
        return info

    async def look(self, age: float) -> None:
        """See OwnsHost.look: two programs, which take half a second in an emulated Dom0."""
        if self._info is None or time.monotonic() - self._seen_at >= age:
            await self._look_at_host()

    def share(self) -> HostShare | None:
        """See OwnsHost.share."""
        info, dom0 = self._info, self._dom0
        if info is None or dom0 is None:
            return None
        return HostShare(
            memory=info.memory,
            free=info.free,
            cpus=info.cpus,
            scheduler=info.scheduler,
            capabilities=info.capabilities,
            own_memory=dom0.memory,
            own_cpus=dom0.cpus,
            own_cpu_seconds=dom0.cpu_seconds,
        )

    def choose_mode(self, mode: Mode) -> Mode:
        """See Hypervisor.choose_mode: auto is hybrid where the CPU can virtualize, else para."""
        offered = modes_of(self._info)
        if mode is Mode.AUTO:
            return Mode.HYBRID if Mode.HYBRID in offered else Mode.PARA
        if mode not in offered:
            raise Unsupported(
                f"this host's CPU has no hardware virtualization, which mode {mode} needs on Xen",
                field="mode",
                expected=" or ".join(offered),
                hint="para needs none",
            )
        return mode

    def overhead(self, cpus: int, memory: int, tcg_buffer: int | None) -> int:
        """See Hypervisor.overhead; there is no TCG buffer here."""
        return overhead(cpus, memory)

    # --- life -------------------------------------------------------------------------------

    async def start(self, machine: Machine, taps: tuple[Plug, ...] = ()) -> None:
        """See Hypervisor.start. Raises InvalidInput too, for what cannot be said to xl."""
        async with self._locks[machine.uuid]:
            if await self._find(machine) is not None:
                return
            place = await to_its_end(self._create(machine, descriptors(taps)))
            self._keep(machine, place)

    async def _create(self, machine: Machine, taps: Sequence[int]) -> Place:
        """Create the domain and let it go; nothing of it is left when that fails."""
        fds = taps if machine.mode is Mode.FULL else ()
        uefi = firmware.find_uefi(self._uefi)
        # What cannot be said is refused first.
        build_config(machine, fds, self._confinement, uefi=uefi)
        await asyncio.to_thread(_check_disks, machine)
        check_dom0(psutil.virtual_memory().available)
        remove_traces(machine)
        try:
            covered = await cover(machine, self._runner)
            disc = await asyncio.to_thread(make_boot_disc, machine, self._loader)
            config = build_config(covered, fds, self._confinement, disc, uefi)
            owner = Owner(str(self._home), OWNER_KIND, machine.uuid)
            plugs = _has_plugs(machine)
            await self._xen.create(config, owner, fds, paused=plugs)
            domid = await self._xen.domid_of(machine.uuid)
            if domid is None:
                raise HypervisorError(f"the domain of {machine.name} was gone at once")
            place = await place_of(self._xen, domid)
            await self._plug(machine, domid)
            await self._mark(machine, domid)
            if plugs:
                await self._xen.unpause(domid)
        except BaseException as error:
            await end_domain(self._xen, machine.uuid, None)
            words = last_words(domain_name(machine.name, machine.uuid))
            await asyncio.to_thread(remove_traces, machine)
            if words and isinstance(error, HypervisorError):
                raise HypervisorError(f"{error.message}; its device model: {words}") from error
            raise
        return place

    async def _plug(self, machine: Machine, domid: int) -> None:
        """Plug a domain's paravirtual cards in; those of mode full are taps already."""
        if not _has_plugs(machine):
            return
        for index, nic in enumerate(machine.nics):
            await self._plug_card(machine, domid, index, nic)

    async def _mark(self, machine: Machine, domid: int) -> None:
        """Say in xenstore whose a domain is: from then on it is a machine."""
        await self._xen.write(_mark_path(domid), f"{machine.uuid}:{self._home}")

    async def _plug_card(self, machine: Machine, domid: int, number: int, nic: Nic) -> None:
        """Plug a domain's card of this number into its network."""
        wiring = self._wires(machine)
        await wiring.plug_link(nic.network, machine.uuid, f"vif{domid}.{number}")
        # What a hotplug script would say: the back end goes on once the card is plugged in.
        backend = f"/local/domain/0/backend/vif/{domid}/{number}"
        await self._xen.write(f"{backend}/hotplug-status", "connected")

    def _wires(self, machine: Machine) -> Wiring:
        if self._wiring is None:
            raise HypervisorError(f"{machine.name} has network cards, and there are no networks")
        return self._wiring

    async def adopt(self, machine: Machine) -> RunState:
        """See Hypervisor.adopt."""
        async with self._locks[machine.uuid]:
            domain = await self._find(machine)
        if domain is None:
            await asyncio.to_thread(remove_traces, machine)
            return RunState.ABSENT
        return await self.state(machine.uuid)

    async def _find(self, machine: Machine) -> Domain | None:
        """Return the machine's domain, known or left by an earlier daemon.

        One that was never let go, since its daemon died while it made it, is no machine: it is
        paused and has no mark.
        """
        known = self._domains.get(machine.uuid)
        if known is not None and not known.exited.is_set():
            return known
        # A new machine's start need not wait for xl, which also knows of what xenstore has lost.
        if not has_traces(machine) and await self._xen.domid_of(machine.uuid) is None:
            return None
        seen = await self._xen.find(machine.uuid)
        if seen is None:
            return None
        place = await place_of(self._xen, seen.domid)
        marked = await self._xen.read(_mark_path(seen.domid)) is not None
        if seen.dying or (seen.paused and not marked):
            await end_domain(self._xen, machine.uuid, place)
            return None
        if not marked:
            await self._mark(machine, seen.domid)
        domain = self._keep(machine, place)
        domain.paused = seen.paused
        return domain

    async def sweep(self, known: Collection[str]) -> None:
        """See CanSweep.sweep."""
        try:
            marks = await self._xen.tree("/libxl")
        except HostError as error:  # no Xen here: whoever probes is told what to do
            _log.warning("no domain was looked for: %s", error.message)
            return
        for domid, mark in _marks(marks):
            uuid, _, home = mark.partition(":")
            if home == str(self._home) and uuid not in known:
                _log.warning("ending the domain %s of a VM that is gone", domid)
                await end_domain(self._xen, uuid, await place_of(self._xen, domid))

    def _keep(self, machine: Machine, place: Place) -> Domain:
        domain = Domain(machine, place, self._xen, self._events.put)
        self._domains[machine.uuid] = domain
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_ever(), name="look at domains")
        return domain

    def _running(self, uuid: str) -> Domain:
        domain = self._domains.get(uuid)
        if domain is None:
            raise HypervisorError(f"no machine {uuid} runs here", hint="'hanok list' shows all")
        return domain

    async def ask_stop(self, uuid: str) -> None:
        """See Hypervisor.ask_stop: by xenstore, and in mode full by the ACPI power button."""
        domain = self._running(uuid)
        if domain.machine.mode is Mode.FULL:
            await self._xen.press_power(domain.domid)
        else:
            await self._xen.shut_down(domain.domid)

    async def kill(self, uuid: str) -> None:
        """See Hypervisor.kill. Raises TimedOut when Xen does not end the domain."""
        async with self._locks[uuid]:
            domain = self._domains.get(uuid)
            if domain is not None:
                domain.killed = True
                await self._end(domain, "killed")

    async def _end(self, domain: Domain, detail: str) -> None:
        """End a domain and tell that it stopped, once. The caller holds its lock."""
        await to_its_end(domain.destroy())
        if self._domains.get(domain.uuid) is domain:
            del self._domains[domain.uuid]
            domain.exited.set()
            domain.emit("stopped", detail)

    async def pause(self, uuid: str) -> None:
        """See Hypervisor.pause."""
        domain = self._running(uuid)
        seen = await self._xen.find(uuid)
        if seen is None or not seen.paused:
            await self._xen.pause(domain.domid)
        if not domain.paused:
            domain.paused = True
            domain.emit("paused")

    async def resume(self, uuid: str) -> None:
        """See Hypervisor.resume. Raises HypervisorError for a guest that has crashed."""
        domain = self._running(uuid)
        if await self.state(uuid) is RunState.CRASHED:
            raise HypervisorError(f"it cannot go on: {domain.crash}", hint="restart it")
        seen = await self._xen.find(uuid)
        if seen is not None and seen.paused:  # Xen counts pauses, xl takes one back
            await self._xen.unpause(domain.domid)
        if domain.paused:
            domain.paused = False
            domain.emit("resumed")

    async def state(self, uuid: str) -> RunState:
        """See Hypervisor.state."""
        domain = self._domains.get(uuid)
        if domain is None:
            return RunState.ABSENT
        seen = await self._xen.find(uuid)
        await self._settle(domain, seen)
        if domain.exited.is_set():
            return RunState.ABSENT
        if domain.crash:
            return RunState.CRASHED
        return RunState.PAUSED if seen is not None and seen.paused else RunState.RUNNING

    async def explain(self, uuid: str) -> str:
        """See CanExplain.explain."""
        domain = self._domains.get(uuid)
        return domain.crash if domain is not None else ""

    async def testify(self, uuid: str) -> str:
        """See CanTestify.testify: what Xen's own tools say."""
        return await self._xen.domain_type(self._running(uuid).domid)

    async def wait_stopped(self, uuid: str, timeout: float) -> bool:
        """See Hypervisor.wait_stopped."""
        domain = self._domains.get(uuid)
        if domain is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await domain.exited.wait()
        return domain.exited.is_set()

    def events(self) -> AsyncIterator[MachineEvent]:
        """See Hypervisor.events; ends when the driver is closed."""
        return self._events.iterate()

    async def statistics(self, uuid: str) -> Statistics:
        """See Hypervisor.statistics."""
        return await self._running(uuid).statistics()

    async def open_console(self, uuid: str) -> Stream:
        """See HasConsole.open_console."""
        return await self._running(uuid).open_console()

    async def open_agent(self, uuid: str) -> Stream:
        """See HasAgentChannel.open_agent."""
        return await self._running(uuid).open_agent()

    # --- changes while it runs --------------------------------------------------------------

    async def set_cpus(self, uuid: str, cpus: int) -> None:
        """See CanResize.set_cpus."""
        domain = self._running(uuid)
        await change.set_cpus(self._xen, domain, cpus)
        domain.machine = replace(domain.machine, cpus=cpus)

    async def set_memory(self, uuid: str, memory: int, started: int) -> None:
        """See CanResize.set_memory."""
        await change.set_memory(self._xen, self._running(uuid), memory, started)

    async def grow_disk(self, uuid: str, size: int) -> None:
        """See CanResize.grow_disk."""
        change.grow_disk(self._running(uuid))

    async def attach_disk(self, uuid: str, disk: Disk) -> None:
        """See CanHotplug.attach_disk."""
        await asyncio.to_thread(check_backing, disk)
        domain = self._running(uuid)
        await change.attach_disk(self._xen, domain, disk)
        domain.machine = change.with_disk(domain.machine, disk)

    async def detach_disk(self, uuid: str, disk: Disk) -> None:
        """See CanHotplug.detach_disk."""
        domain = self._running(uuid)
        await change.detach_disk(self._xen, domain, disk)
        domain.machine = change.without(domain.machine, disk.port)

    async def attach_nic(self, uuid: str, nic: Nic, tap: int) -> None:
        """See CanHotplug.attach_nic; the back end takes the place of the tap."""
        domain = self._running(uuid)

        async def plug_in(number: int) -> None:
            await self._plug_card(domain.machine, domain.domid, number, nic)

        await change.attach_nic(self._xen, domain, nic, plug_in)
        domain.machine = change.with_nic(domain.machine, nic)

    async def detach_nic(self, uuid: str, nic: Nic) -> None:
        """See CanHotplug.detach_nic."""
        domain = self._running(uuid)
        await change.detach_nic(self._xen, domain, nic)
        domain.machine = change.without(domain.machine, nic.port)

    async def close(self) -> None:
        """See Hypervisor.close."""
        domains = list(self._domains.values())
        self._domains.clear()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        self._events.close()
        for domain in domains:
            domain.unwatch()
        self._xen.close()

    # --- what becomes of domains ------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        """Look at all domains whenever one has ended, and every few seconds."""
        watching = asyncio.create_task(self._xen.watch_ends(self._changed.set))
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._changed.wait()
                self._changed.clear()
                await self._look()
                if watching.done():  # xenstored was restarted
                    watching = asyncio.create_task(self._xen.watch_ends(self._changed.set))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _look(self) -> None:
        try:
            found = {domain.uuid: domain for domain in await self._xen.domains()}
            for domain in list(self._domains.values()):
                await self._settle(domain, found.get(domain.uuid))
        except HanokError:
            _log.exception("the domains could not be looked at")

    async def _settle(self, domain: Domain, seen: DomainState | None) -> None:
        """Do what follows from how a domain was seen."""
        if seen is None or seen.dying:
            await self._settle_end(domain, "destroyed by something else than Hanok")
        elif not seen.shutdown or seen.domid != domain.domid:
            return  # it runs, or this look is older than its restart
        elif seen.reason in _CRASHED:
            domain.crashed(await domain.crash_of(seen.reason))
        elif seen.reason is ShutdownReason.REBOOT:
            await self._restart(domain, seen)
        else:
            await self._settle_end(domain, "guest-shutdown", seen.domid)

    async def _settle_end(self, domain: Domain, detail: str, shut_down: int | None = None) -> None:
        """End a domain that is gone, or whose guest shut the one with this number down.

        Meanwhile the guest may have been restarted under another number, and may even have ended
        once more: that is for the next look.
        """
        async with self._locks[domain.uuid]:
            if self._domains.get(domain.uuid) is not domain or domain.exited.is_set():
                return
            seen = await self._xen.find(domain.uuid)
            if seen is None or seen.dying or (seen.shutdown and seen.domid == shut_down):
                await self._end(domain, detail)

    async def _restart(self, domain: Domain, before: DomainState) -> None:
        """Make the domain of a guest that restarted itself anew, under another number."""
        async with self._locks[domain.uuid]:
            seen = await self._xen.find(domain.uuid)
            current = self._domains.get(domain.uuid) is domain and seen is not None
            if not current or seen is None or seen.domid != before.domid or not seen.shutdown:
                return
            try:
                await to_its_end(self._create_again(domain))
            except HanokError as error:
                await self._end(domain, f"it could not be restarted: {error.message}")
                return
            domain.emit("reset", "guest-reset")

    async def _create_again(self, domain: Domain) -> None:
        machine = domain.machine
        await domain.destroy()
        with contextlib.ExitStack() as closing:
            taps: list[int] = []
            if machine.mode is Mode.FULL:
                for nic in machine.nics:
                    tap = await self._wires(machine).renew_tap(nic.network, machine.uuid)
                    closing.callback(os.close, tap)
                    taps.append(tap)
            domain.place = await self._create(machine, taps)
        domain.paused = False
        domain.watch()


def modes_of(info: XenInfo | None) -> tuple[Mode, ...]:
    """Return the modes that a host offers; before it was probed, all."""
    if info is None or "hvm" in info.capabilities:
        return (Mode.FULL, Mode.PARA, Mode.HYBRID)
    return (Mode.PARA,)


def _has_plugs(machine: Machine) -> bool:
    """Whether something has to be done to a domain between its creation and its start."""
    return bool(machine.nics) and machine.mode is not Mode.FULL


def _mark_path(domid: int) -> str:
    """Return where xenstore says whose a domain is that was let go; it goes with the domain.

    Only Dom0 sees what is below /libxl.
    """
    return f"/libxl/{domid}/hanok"


def _marks(tree: Mapping[str, str]) -> list[tuple[int, str]]:
    found = [(path.split("/"), value) for path, value in tree.items()]
    return [
        (int(parts[2]), value)
        for parts, value in found
        if len(parts) == 4 and parts[3] == "hanok" and parts[2].isdigit()
    ]


def _check_disks(machine: Machine) -> None:
    for disk in machine.disks:
        if not disk.path.exists():
            raise HypervisorError(f"there is no disk {disk.path}")
        check_backing(disk)
