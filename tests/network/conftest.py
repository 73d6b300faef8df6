"""A host and an outside world for every test, and the proof that nothing is left of it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, retry_if_not_result, stop_after_delay, wait_fixed

from hanok.model.network import NetworkPort, NetworkRecord, NetworkStatus
from hanok.model.vm import Publish
from hanok.network.base import make_mac
from hanok.network.keepers import KeeperNetworks
from hanok.proc import SystemRunner, find_owned
from tests.network.frames import FrameGuest
from tests.network.namespaces import StackGuest, World, make_world

UID = 1_700_060_001
RECORD = NetworkRecord(name="default", subnet="10.87.0.0/22", uid=UID)
CLOSED = NetworkRecord(name="closed", subnet="10.87.4.0/22", uid=UID + 1, outward=False)


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory with a short path; no process may be left of it."""
    folder = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    yield folder
    left = list(find_owned(folder))
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def world() -> Iterator[World]:
    """A host of our own with an outside."""
    with make_world() as made:
        yield made


def make_port(number: int, *publish: str, network: NetworkRecord = RECORD) -> NetworkPort:
    """Return the port of VM number ``number``: named vm<number>, at that address of the subnet."""
    uuid = f"00000000-0000-4000-8000-{number:012}"
    return NetworkPort(
        vm=uuid,
        host_name=f"vm{number}",
        mac=make_mac(uuid, 0),
        address=str(ipaddress.IPv4Network(network.subnet)[number]),
        publish=tuple(Publish.model_validate(text) for text in publish),
    )


async def eventually(check: Callable[[], object], timeout: float = 20) -> None:
    """Return once ``check()`` holds, else fail after ``timeout`` seconds."""
    retrying = AsyncRetrying(
        stop=stop_after_delay(timeout), wait=wait_fixed(0.02), retry=retry_if_not_result(bool)
    )

    async def ask() -> object:
        return await asyncio.to_thread(check)

    await retrying(ask)


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


@dataclass
class Bench:
    """Runs the daemon's side of a test on the world's host."""

    world: World
    home: Path

    @property
    def folder(self) -> Path:
        """Where networks have their files."""
        return self.home / "networks"

    def networks(self) -> KeeperNetworks:
        """Return the networks as a new daemon would make them."""
        return KeeperNetworks(self.folder, self.home, SystemRunner())

    def pids(self, kind: str, network: str = RECORD.name) -> list[int]:
        """Return the processes of a kind that a network has, short-lived children left out."""
        found = [p.pid for p in find_owned(self.home, kind) if p.owner.ident == network]
        return [pid for pid in found if kind != "keeper" or _leads_session(pid)]

    def is_whole(self) -> bool:
        """Whether the network has each of its processes once: pasta is there twice for a moment,
        when it starts itself again."""
        return all(len(self.pids(kind)) == 1 for kind in ("keeper", "dnsmasq", "pasta"))

    def inside(self, *argv: str) -> str:
        """Run a command in the namespaces of the default network's keeper."""
        (keeper,) = self.pids("keeper")
        return subprocess.run(
            ["nsenter", "-t", str(keeper), "-U", "-n", "--", *argv],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def run(self, body: Callable[[KeeperNetworks], Awaitable[None]]) -> None:
        """Run ``body`` in the host's namespace, then end all networks: nothing is left."""

        async def main() -> None:
            networks = self.networks()
            try:
                async with asyncio.timeout(120):
                    await body(networks)
            finally:
                await networks.close()
                cleaner = self.networks()
                await cleaner.sweep(())
                await cleaner.close()
            assert list(find_owned(self.home)) == []
            assert list(self.folder.iterdir()) == []

        self.world.host.run(lambda: asyncio.run(main()))

    async def ensure(
        self,
        networks: KeeperNetworks,
        record: NetworkRecord = RECORD,
        ports: Sequence[NetworkPort] = (),
    ) -> NetworkStatus:
        """Start a network and wait until everything about it is in force."""
        await networks.ensure(record, ports)
        await networks.settle(record.name)
        return await networks.status(record.name)

    async def plug(self, networks: KeeperNetworks, port: NetworkPort) -> FrameGuest:
        """Attach a guest made of frames."""
        tap = await networks.attach(RECORD.name, port)
        await networks.settle(RECORD.name)
        return FrameGuest(tap, port.mac, port.address)

    async def plug_stack(
        self, networks: KeeperNetworks, port: NetworkPort, record: NetworkRecord = RECORD
    ) -> StackGuest:
        """Attach a guest with a network stack of its own."""
        tap = await networks.attach(record.name, port)
        await networks.settle(record.name)
        return StackGuest(tap, port.mac, port.address, record.gateway)


@pytest.fixture
def bench(world: World, home: Path) -> Bench:
    """The bench of one test."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    return Bench(world, home)
