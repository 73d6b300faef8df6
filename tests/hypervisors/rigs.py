"""Three hypervisors behind one face, for the conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from hanok.errors import AgentUnavailable
from hanok.guest.agent import AgentConnection
from hanok.hypervisors.base import Base, Disk, Hypervisor, Machine, MachineEvent
from hanok.hypervisors.fake import FakeHypervisor
from hanok.hypervisors.optional import CanExplain, CanFreeze, HasAgentChannel, HasConsole
from hanok.hypervisors.qemu import ProbeGuest, QemuHypervisor
from hanok.hypervisors.qemu.probe import account_with_kvm
from hanok.hypervisors.xen import XenHypervisor
from hanok.model.image import DiskFormat, Image
from hanok.model.vm import Mode
from hanok.proc import Account, SystemRunner, find_owned
from hanok.units import MIB
from tests.machine import patient, put_verdict

LIMIT = patient(90.0)
_UID = 1_700_000_321
_KVM = Path("/dev/kvm")


class Driver(Hypervisor, HasConsole, HasAgentChannel, CanExplain, CanFreeze, Protocol):
    """Everything that the suites ask of a hypervisor; Xen is not asked to freeze."""


@dataclass
class Rig:
    """One hypervisor: new drivers over the same state, and machines for it.

    ``image`` is None for the fake, whose guests need none. ``xen``: else it is QEMU.
    """

    home: Path
    mode: Mode
    image: tuple[Image, Path] | None
    xen: bool = False
    drivers: list[Driver] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)

    def new_driver(self) -> Driver:
        """Return a driver as a daemon that has just started has it."""
        driver = make_driver(self.home, fake=self.image is None, xen=self.xen)
        self.drivers.append(driver)
        return driver

    async def new_machine(self, name: str = "one", cpus: int = 1) -> Machine:
        """Return a machine whose files are there, not started."""
        account = Account(_UID, _UID) if os.geteuid() == 0 else None
        folder = self.home / name
        folder.mkdir(mode=0o700)
        disk = await self._disk(folder)
        if account is not None:
            for path in (folder, disk.path):
                os.chown(path, account.uid, account.gid)
        machine = Machine(
            uuid=str(uuid.uuid4()),
            name=name,
            cpus=cpus,
            memory=128 * MIB,
            mode=self.mode,
            folder=folder,
            account=account,
            disks=(disk,),
        )
        if self.image is not None:
            image, images = self.image
            kernel = next(kernel for kernel in image.kernels if self.mode in kernel.modes)
            machine = dataclasses.replace(
                machine, kernel=kernel, kernel_folder=images, memory=image.minimum_memory
            )
        self.machines.append(machine)
        return machine

    async def _disk(self, folder: Path) -> Disk:
        path = folder / "disk.qcow2"
        if self.image is None:
            path.write_bytes(b"")
            return Disk("root", path, DiskFormat.QCOW2)
        image, images = self.image
        base = images / image.disk
        await SystemRunner().run(
            [
                *("qemu-img", "create", "-q", "-f", "qcow2", "-F", image.disk_format),
                *("-b", str(base), str(path), str(image.disk_size)),
            ]
        )
        return Disk("root", path, DiskFormat.QCOW2, bases=(Base(base, image.disk_format),))

    def leftovers(self) -> list[str]:
        """Name what a machine that is gone must not leave."""
        found = [f"process {process.pid}" for process in find_owned(self.home)]
        for machine in self.machines:
            found += [str(path) for path in machine.folder.iterdir() if path.is_socket()]
            found += [str(path) for path in machine.folder.glob("*.pid")]
        return found

    async def close(self) -> None:
        """Close all drivers, then kill what still runs by one more."""
        for driver in self.drivers:
            await driver.close()
        last = make_driver(self.home, fake=self.image is None, xen=self.xen)
        for machine in self.machines:
            await last.adopt(machine)
            await last.kill(machine.uuid)
        await last.close()


def make_driver(home: Path, *, fake: bool, xen: bool = False) -> Driver:
    """Return a driver over the data directory ``home``."""
    if fake:
        return FakeHypervisor(home / "fake")
    if xen:
        return cast(Driver, XenHypervisor(SystemRunner(), home))

    async def no_guest() -> ProbeGuest | None:
        return None

    put_verdict(home)
    return QemuHypervisor(SystemRunner(), home, no_guest, home / "acceleration.json")


async def account_of(driver: Driver, machine: Machine) -> Account | None:
    """Return what a machine's process runs as: on KVM it has the group that may open the device."""
    if machine.account is None or (await driver.probe()).accelerator != "kvm":
        return machine.account
    return account_with_kvm(_KVM, machine.account)


class Follower:
    """Takes a driver's events and lets a test wait for one."""

    def __init__(self, driver: Driver) -> None:
        self.seen: list[MachineEvent] = []
        self._more = asyncio.Condition()
        self._task = asyncio.create_task(self._follow(driver))

    async def _follow(self, driver: Driver) -> None:
        async for event in driver.events():
            async with self._more:
                self.seen.append(event)
                self._more.notify_all()

    async def wait_for(self, machine: Machine, name: str) -> MachineEvent:
        """Return the first event of that name of the machine."""

        def found() -> list[MachineEvent]:
            return [e for e in self.seen if e.uuid == machine.uuid and e.name == name]

        async with asyncio.timeout(LIMIT), self._more:
            await self._more.wait_for(found)
        return found()[0]

    async def ended(self) -> None:
        """Wait until there are no more events, since the driver was closed."""
        async with asyncio.timeout(LIMIT):
            await self._task


@contextlib.asynccontextmanager
async def agent_of(driver: Driver, machine: Machine) -> AsyncIterator[AgentConnection]:
    """Connect to the guest's agent and wait until it answers: the guest is up then.

    As the daemon does, it connects again where the guest has rebooted: one that boots on an
    emulated CPU below Xen was seen to end by a triple fault, and to come up when started again.
    """
    agent = await _connect(driver, machine)
    try:
        async for attempt in AsyncRetrying(
            stop=stop_after_delay(LIMIT),
            wait=wait_fixed(0.05),
            retry=retry_if_exception_type(AgentUnavailable),
            reraise=True,
        ):
            with attempt:
                if agent.closed:
                    agent = await _connect(driver, machine)
                await agent.ping()
        yield agent
    finally:
        await agent.close()


async def _connect(driver: Driver, machine: Machine) -> AgentConnection:
    stream = await driver.open_agent(machine.uuid)
    return AgentConnection(stream.reader, stream.writer)


async def read_until(reader: asyncio.StreamReader, expected: bytes) -> bytes:
    """Return what a stream gave up to and with ``expected``."""
    seen = b""
    async with asyncio.timeout(LIMIT):
        while expected not in seen:
            chunk = await reader.read(4096)
            assert chunk, f"the stream ended after {seen[-500:]!r}"
            seen += chunk
    return seen
