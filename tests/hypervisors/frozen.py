"""What tests of freezing share: a frozen machine, and clones of it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hanok.guest.agent import AgentConnection
from hanok.hypervisors.base import Base, Disk, Frozen, Machine
from hanok.model.image import DiskFormat
from hanok.proc import SystemRunner, find_owned
from tests.hypervisors.rigs import Driver, Rig, agent_of

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MARK = "/run/mark"


async def nothing() -> None:
    """Do nothing while a machine is paused."""


@dataclass
class Template:
    """A frozen machine: its memory sealed, its disk copied while it was still."""

    rig: Rig
    source: Machine
    folder: Path
    memory: int
    disk: Path
    state: Path
    opened: list[int] = field(default_factory=list)

    def digest(self) -> str:
        """Return the sha256 of the memory, the state and the disk."""
        found = hashlib.sha256()
        for path in (Path(f"/proc/self/fd/{self.memory}"), self.state, self.disk):
            found.update(path.read_bytes())
        return found.hexdigest()

    async def new_clone(self, name: str) -> Machine:
        """Return a clone, not started."""
        machine = await self.rig.new_machine(name)
        state = os.open(self.state, os.O_RDONLY)
        self.opened.append(state)
        machine = dataclasses.replace(
            machine,
            cpus=self.source.cpus,
            nics=self.source.nics,
            frozen=Frozen(self.memory, state),
        )
        return dataclasses.replace(machine, disks=(await self._overlay(machine),))

    async def _overlay(self, machine: Machine) -> Disk:
        (disk,) = machine.disks
        if self.rig.image is None:
            return disk
        disk.path.unlink()
        create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.disk))
        await SystemRunner().run([*create, str(disk.path)])
        if machine.account is not None:
            os.chown(disk.path, machine.account.uid, machine.account.gid)
        bases = (Base(self.disk, DiskFormat.QCOW2), *self.source.disks[0].bases)
        return dataclasses.replace(disk, bases=bases)


@contextlib.contextmanager
def room_for(machine: Machine, folder: Path) -> Iterator[tuple[int, int]]:
    """Give an empty memfd of the machine's size and an empty file for its devices."""
    memory = os.memfd_create("hanok-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    state = os.open(folder / "state", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(memory, machine.memory)
        yield memory, state
    finally:
        os.close(memory)
        os.close(state)


@contextlib.asynccontextmanager
async def frozen(
    rig: Rig,
    driver: Driver,
    source: Machine,
    *,
    name: str = "template",
    taps: tuple[int, ...] = (),
    while_paused: Callable[[], Awaitable[None]] = nothing,
) -> AsyncIterator[Template]:
    """Freeze a machine; the files are there until the end of the block."""
    loader = dataclasses.replace(
        await rig.new_machine(f"{name}-loader"), cpus=source.cpus, nics=source.nics
    )
    folder = rig.home / name
    folder.mkdir(mode=0o711)
    disk = folder / "disk.qcow2"

    async def copy() -> None:
        shutil.copy(source.disks[0].path, disk)
        await while_paused()

    with room_for(source, folder) as (memory, state):
        await driver.freeze(source.uuid, loader, taps, memory, state, copy)
        assert left_of(rig, loader) == []
        disk.chmod(0o644)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        template = Template(rig, source, folder, memory, disk, folder / "state")
        try:
            yield template
        finally:
            for descriptor in template.opened:
                os.close(descriptor)


def left_of(rig: Rig, loader: Machine) -> list[str]:
    """Name what a freeze must not leave."""
    found = [f"process {process.pid}" for process in find_owned(rig.home, "loader")]
    return found + [str(p) for p in loader.folder.iterdir() if p.is_socket() or p.suffix == ".pid"]


@contextlib.asynccontextmanager
async def up(driver: Driver, machine: Machine) -> AsyncIterator[AgentConnection]:
    """Start a machine, a clone too, and wait for its agent."""
    await driver.start(machine)
    if machine.frozen is not None:
        await driver.resume(machine.uuid)
    async with agent_of(driver, machine) as agent:
        yield agent
