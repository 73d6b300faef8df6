"""The services on the fake hypervisor, by a clock that tests set."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from hanok.app import make_daemon, prepare_home
from hanok.config import Settings
from hanok.hypervisors.fake import FakeHypervisor
from hanok.hypervisors.fake_guest import FakeGuest
from hanok.model.operation import Event, Operation
from hanok.model.vm import VmRecord, VmSpec
from hanok.services.bundle import Services
from tests.fake_image import make_fake_image
from tests.machine import patient


class FakeClock:
    """The host's clock, put forward by hand: what waits by it goes on then."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._moved = asyncio.Condition()

    def now(self) -> float:
        """See Clock.now."""
        return time.time() + self._ahead

    async def pause(self, seconds: float, woken: asyncio.Event) -> None:
        """See Clock.pause: only ``advance`` ends it, though real time counts too."""
        due = self.now() + seconds

        async def reached() -> None:
            async with self._moved:
                await self._moved.wait_for(lambda: self.now() >= due)

        tasks = [asyncio.create_task(reached()), asyncio.create_task(woken.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def advance(self, seconds: float) -> None:
        """Put the clock forward."""
        async with self._moved:
            self._ahead += seconds
            self._moved.notify_all()


class House:
    """One daemon's services in this process, and what tests do to its machines."""

    def __init__(self, services: Services, clock: FakeClock) -> None:
        self.services = services
        self.clock = clock

    @property
    def fake(self) -> FakeHypervisor:
        """The hypervisor."""
        hypervisor = self.services.parts.hypervisor
        assert isinstance(hypervisor, FakeHypervisor)
        return hypervisor

    async def run(self, name: str = "web", **fields: Any) -> VmRecord:
        """Run a VM and return it once its operation has ended."""
        shape = {"image": "micro", "memory": "64M", "disk": "64M", "networks": [], "cold": True}
        spec = VmSpec.model_validate({"name": name, **shape, **fields})
        await self.done(await self.services.vms.run(spec))
        return await self.vm(name)

    async def done(self, operation: Operation) -> Operation:
        """Wait for the end of an operation and return it."""
        return await self.services.operations.wait(operation.id)

    async def vm(self, name: str = "web") -> VmRecord:
        """Return a VM as it is now."""
        return await self.services.parts.vm(name)

    async def until(self, state: str, name: str = "web", **seen: Any) -> VmRecord:
        """Wait until a VM is in ``state``, with these figures of its restarts, and return it."""

        def holds(record: VmRecord) -> bool:
            return record.state == state and all(
                getattr(record.restarts, key) == value for key, value in seen.items()
            )

        return await self.when(holds, name, f"{name} is {state} {seen or ''}")

    async def when(
        self, holds: Callable[[VmRecord], bool], name: str = "web", what: str = "it holds"
    ) -> VmRecord:
        """Wait until something holds for a VM and return it."""
        record = await self.vm(name)
        try:
            async with asyncio.timeout(patient(20)):
                while not holds(record):
                    await asyncio.sleep(0.005)
                    record = await self.vm(name)
        except TimeoutError:
            raise AssertionError(f"it never came that {what}: {record}") from None
        return record

    async def ticking(
        self, holds: Callable[[VmRecord], bool], step: float, name: str = "web"
    ) -> VmRecord:
        """Put the clock forward by ``step`` seconds again and again, until something holds."""
        record = await self.vm(name)
        try:
            async with asyncio.timeout(patient(20)):
                while not holds(record):
                    await self.clock.advance(step)
                    await asyncio.sleep(0.02)
                    record = await self.vm(name)
        except TimeoutError:
            raise AssertionError(f"it never came to hold: {record}") from None
        return record

    async def restart_is_due(self, name: str = "web") -> VmRecord:
        """Put the clock to the moment at which a VM that waits is started again; return it ready.

        Raises AssertionError when it does not come to be ready.
        """
        record = await self.until("waiting", name)
        assert record.restarts.next is not None
        await self.clock.advance(max(0.0, record.restarts.next - self.clock.now()) + 1)
        return await self.until("ready", name)

    def guest(self, record: VmRecord) -> FakeGuest:
        """Return the guest of a VM that runs."""
        return self.fake._live[record.uuid].guest

    async def events(self, name: str = "web") -> list[Event]:
        """Return what happened to a VM."""
        found = await self.services.parts.events.recent()
        return [event for event in found if (event.kind, event.target) == ("vm", name)]

    async def named(self, event: str, name: str = "web") -> list[str]:
        """Return the messages of a VM's events of one name."""
        return [seen.message for seen in await self.events(name) if seen.name == event]


@contextlib.asynccontextmanager
async def house(home: Path, clock: FakeClock | None = None) -> AsyncIterator[House]:
    """Give the services of a daemon on ``home``, begun as hanokd begins."""
    clock = clock or FakeClock()
    settings = Settings(home=home, hypervisor="fake", stop_timeout=2, warm_limit=0)
    prepare_home(settings)
    if not any(settings.images.iterdir()):
        make_fake_image(settings.images)
    services = await make_daemon(settings, clock)
    try:
        await services.departure.look_back()
        await services.recovery.run(await services.returning.uuids())
        await services.departure.come_back()
        await services.supervisor.start()
        yield House(services, clock)
    finally:
        await services.close()
