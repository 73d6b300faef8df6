"""What becomes of VMs when the daemon is told to end: the services on the fake hypervisor."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from hanok.app import make_daemon, prepare_home
from hanok.config import Settings, load_settings
from hanok.errors import Conflict, InvalidInput
from hanok.hypervisors.base import RunState
from hanok.model.operation import Operation
from hanok.model.vm import VmRecord, VmSpec, VmState
from hanok.services.bundle import Services
from hanok.services.departure import Departure
from hanok.services.keeping import Clock
from hanok.store.base import PutOperation
from hanok.systemd.stop import Ending
from tests.fake_image import make_fake_image


async def _daemon(
    home: Path,
    on_stop: str,
    ending: Ending,
    boot: str = "first",
    clock: Clock | None = None,
) -> tuple[Services, Departure]:
    settings = Settings(home=home, hypervisor="fake", on_stop=on_stop, stop_timeout=5)
    prepare_home(settings)
    if not any(settings.images.iterdir()):
        make_fake_image(settings.images)
    services = await make_daemon(settings)

    async def why() -> Ending:
        return ending

    departure = Departure(
        services.parts, services.vms, services.operations, services.returning, why, boot, clock
    )
    await departure.look_back()
    await services.recovery.run(await services.returning.uuids())
    return services, departure


async def _run(services: Services, name: str, **fields: Any) -> VmRecord:
    shape = {"image": "micro", "memory": "64M", "disk": "64M", "networks": []}
    spec = {"name": name, **shape, **fields}
    operation = await services.vms.run(VmSpec.model_validate(spec))
    await services.operations.wait(operation.id)
    return await services.parts.vm(name)


async def _end(services: Services, *departures: Departure) -> None:
    for departure in departures:
        await departure.close()
    await services.close()


@pytest.mark.parametrize(
    ("on_stop", "ending", "goes_on"),
    [
        ("leave", Ending.RESTART, True),
        ("leave", Ending.STOP, True),
        ("leave", Ending.HOST, False),
        ("shutdown", Ending.RESTART, True),
        ("shutdown", Ending.STOP, False),
        ("shutdown", Ending.HOST, False),
    ],
)
async def test_who_goes_on(short_tmp: Path, on_stop: str, ending: Ending, goes_on: bool) -> None:
    services, departure = await _daemon(short_tmp, on_stop, ending)
    record = await _run(services, "one")
    await departure.leave()
    state = await services.parts.hypervisor.state(record.uuid)
    assert (state is RunState.RUNNING) == goes_on
    assert (short_tmp / "running.json").exists() != goes_on
    await services.parts.hypervisor.kill(record.uuid)
    await _end(services, departure)


async def test_only_what_ran_comes_back(short_tmp: Path) -> None:
    services, departure = await _daemon(short_tmp, "shutdown", Ending.STOP)
    await _run(services, "one")
    stopped = await _run(services, "two")
    operation = await services.vms.stop("two", force=True, timeout=None)
    await services.operations.wait(operation.id)
    await departure.leave()
    assert (await services.parts.vm("one")).state is VmState.STOPPED
    await _end(services, departure)

    services, departure = await _daemon(short_tmp, "shutdown", Ending.RESTART)
    await departure.come_back()
    assert departure._coming is not None
    await departure._coming
    for begun in await services.parts.store.operations(unfinished=True):
        await services.operations.wait(begun.id)
    one = await services.parts.vm("one")
    assert one.state is VmState.READY
    assert (await services.parts.vm(stopped.uuid)).state is VmState.STOPPED
    assert not (short_tmp / "running.json").exists()
    await services.parts.hypervisor.kill(one.uuid)
    await _end(services, departure)


async def test_what_ran_when_the_host_lost_power_comes_back(short_tmp: Path) -> None:
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART)
    for name in ("ran", "asked", "off"):
        await _run(services, name)
    operation = await services.vms.stop("off", force=True, timeout=None)
    await services.operations.wait(operation.id)
    records = {name: await services.parts.vm(name) for name in ("ran", "asked", "off")}
    # A power cut: no VM runs any more, and of one stop nothing but its request was written.
    await services.recovery.close()  # nobody sees them end
    for record in records.values():
        await services.parts.hypervisor.kill(record.uuid)
    arguments = {"force": True, "timeout": 1.0}
    asked = Operation(id="0" * 12, kind="stop", target="asked", arguments=arguments, created=1.0)
    await services.parts.store.commit(PutOperation(asked))
    await _end(services, departure)

    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART, boot="second")
    await departure.come_back()
    assert departure._coming is not None
    await departure._coming
    for begun in await services.parts.store.operations(unfinished=True):
        await services.operations.wait(begun.id)
    states = {name: (await services.parts.vm(name)).state for name in records}
    assert states == {
        "ran": VmState.READY,
        "asked": VmState.STOPPED,
        "off": VmState.STOPPED,
    }
    await services.parts.hypervisor.kill(records["ran"].uuid)
    await _end(services, departure)


@pytest.mark.parametrize("ends", ["stop", "delete"])
async def test_what_was_asked_to_end_is_off_the_list_before_the_answer(
    short_tmp: Path, ends: str
) -> None:
    """Also when the list that named it had come back from a disk that lost its last writes."""
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART)
    record, other = await _run(services, "one"), await _run(services, "other")
    (short_tmp / "running.json").write_text(json.dumps([record.uuid, other.uuid]))
    if ends == "stop":
        operation = await services.vms.stop("one", force=True, timeout=None)
    else:
        operation = await services.vms.delete("one", force=True)
    assert json.loads((short_tmp / "running.json").read_text()) == [other.uuid]
    await services.operations.wait(operation.id)
    await services.parts.hypervisor.kill(other.uuid)
    await _end(services, departure)


async def test_a_stop_while_it_waits_to_return_is_heeded(short_tmp: Path) -> None:
    services, departure = await _daemon(short_tmp, "shutdown", Ending.STOP)
    record = await _run(services, "one")
    await departure.leave()
    await _end(services, departure)

    services, departure = await _daemon(short_tmp, "shutdown", Ending.RESTART)
    with pytest.raises(Conflict):  # it is off, and now nobody turns it on again
        await services.vms.stop("one", force=True, timeout=None)
    await departure._come_back([record.uuid])
    assert (await services.parts.vm("one")).state is VmState.STOPPED
    unfinished = await services.parts.store.operations(unfinished=True)
    assert [operation for operation in unfinished if operation.target == "one"] == []
    await _end(services, departure)


async def test_a_vm_that_ended_while_no_daemon_ran_stays_off(short_tmp: Path) -> None:
    """Its guest may have powered itself off: the host is the same that it was."""
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART)
    record = await _run(services, "one")
    await services.parts.hypervisor.kill(record.uuid)
    await _end(services, departure)
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART)
    await departure.come_back()
    assert departure._coming is None
    assert (await services.parts.vm("one")).state is VmState.STOPPED
    await _end(services, departure)


async def test_a_broken_list_starts_nothing(short_tmp: Path) -> None:
    services, departure = await _daemon(short_tmp, "shutdown", Ending.STOP)
    (short_tmp / "running.json").write_text("{")
    await departure.come_back()
    assert departure._coming is None
    await _end(services, departure)


def test_on_stop_is_checked() -> None:
    assert load_settings({"HANOK_HOME": "/tmp/x"}).on_stop == "leave"
    assert load_settings({"HANOK_HOME": "/tmp/x", "HANOK_ON_STOP": "shutdown"}).on_stop
    with pytest.raises(InvalidInput) as caught:
        load_settings({"HANOK_HOME": "/tmp/x", "HANOK_ON_STOP": "kill"})
    assert caught.value.field == "HANOK_ON_STOP"


class _Steps:
    """A clock whose pauses are noted and take no time."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def now(self) -> float:
        """See Clock.now."""
        return time.time()

    async def pause(self, seconds: float, woken: asyncio.Event) -> None:
        """See Clock.pause."""
        self.pauses.append(seconds)


async def test_vms_start_with_the_host_in_their_order(short_tmp: Path) -> None:
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART)
    asked: dict[str, dict[str, Any]] = {
        "last-of-all": {"order": 200, "start": "yes"},
        "second": {"order": 20, "delay": 3},
        "also-second": {"order": 20, "delay": 7},
        "first": {"order": 10, "delay": 5},
        "never": {"order": 1, "start": "no"},
        "was-off": {"order": 20},
    }
    for name, autostart in asked.items():
        await _run(services, name, autostart=autostart, restart="on-failure")
    for name in ("last-of-all", "was-off"):
        operation = await services.vms.stop(name, force=True, timeout=None)
        await services.operations.wait(operation.id)
    records = {name: await services.parts.vm(name) for name in asked}
    (before,) = (await services.parts.events.recent())[-1:]
    await services.recovery.close()  # nobody sees them end
    for record in records.values():
        await services.parts.hypervisor.kill(record.uuid)
    await _end(services, departure)

    clock = _Steps()
    services, departure = await _daemon(
        short_tmp, "leave", Ending.RESTART, boot="second", clock=clock
    )
    await departure.come_back()
    assert departure._coming is not None
    await departure._coming
    for begun in await services.parts.store.operations(unfinished=True):
        await services.operations.wait(begun.id)
    happened = await services.parts.events.recent(before.number)
    ready = [event.target for event in happened if event.name == "ready"]
    assert ready[0] == "first"
    assert set(ready[1:3]) == {"second", "also-second"}
    assert ready[3:] == ["last-of-all"]
    assert clock.pauses == [5, 7]
    assert not [event for event in happened if event.name in ("waiting", "restarting")]
    for name in ("never", "was-off"):
        assert (await services.parts.vm(name)).state is VmState.STOPPED
    for record in records.values():
        await services.parts.hypervisor.kill(record.uuid)
    await _end(services, departure)


async def test_what_was_begun_at_the_host_s_start_is_off_the_list(short_tmp: Path) -> None:
    """A user may stop it meanwhile: a daemon that is killed then must not start it again."""
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART)
    for order, name in ((1, "one"), (2, "two")):
        await _run(services, name, autostart={"order": order, "delay": 60})
    records = [await services.parts.vm(name) for name in ("one", "two")]
    await services.recovery.close()  # nobody sees them end
    for record in records:
        await services.parts.hypervisor.kill(record.uuid)
    await _end(services, departure)
    services, departure = await _daemon(short_tmp, "leave", Ending.RESTART, boot="second")
    await departure.come_back()
    file = short_tmp / "running.json"
    async with asyncio.timeout(30):
        while json.loads(file.read_text()) != [records[1].uuid]:  # noqa: ASYNC110  a file is mute
            await asyncio.sleep(0.01)
    await _end(services, departure)
    assert json.loads(file.read_text()) == [records[1].uuid]
    for record in records:
        await services.parts.hypervisor.kill(record.uuid)
