"""What becomes of VMs when the daemon is told to end: the services on the fake hypervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanok.app import make_daemon, prepare_home
from hanok.config import Settings, load_settings
from hanok.errors import InvalidInput
from hanok.hypervisors.base import RunState
from hanok.model.vm import VmRecord, VmSpec, VmState
from hanok.services.bundle import Services
from hanok.services.departure import Departure
from hanok.systemd.stop import Ending
from tests.fake_image import make_fake_image


async def _daemon(home: Path, on_stop: str, ending: Ending) -> tuple[Services, Departure]:
    settings = Settings(home=home, hypervisor="fake", on_stop=on_stop, stop_timeout=5)
    prepare_home(settings)
    if not any(settings.images.iterdir()):
        make_fake_image(settings.images)
    services = await make_daemon(settings)

    async def why() -> Ending:
        return ending

    await services.recovery.run()
    return services, Departure(services.parts, services.vms, services.operations, why)


async def _run(services: Services, name: str) -> VmRecord:
    spec = {"name": name, "image": "micro", "memory": "64M", "disk": "64M", "networks": []}
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
    assert departure._returning is not None
    await departure._returning
    for begun in await services.parts.store.operations(unfinished=True):
        await services.operations.wait(begun.id)
    one = await services.parts.vm("one")
    assert one.state is VmState.READY
    assert (await services.parts.vm(stopped.uuid)).state is VmState.STOPPED
    assert not (short_tmp / "running.json").exists()
    await services.parts.hypervisor.kill(one.uuid)
    await _end(services, departure)


async def test_a_broken_list_starts_nothing(short_tmp: Path) -> None:
    services, departure = await _daemon(short_tmp, "shutdown", Ending.STOP)
    (short_tmp / "running.json").write_text("{")
    await departure.come_back()
    assert departure._returning is not None
    await departure._returning
    await _end(services, departure)


def test_on_stop_is_checked() -> None:
    assert load_settings({"HANOK_HOME": "/tmp/x"}).on_stop == "leave"
    assert load_settings({"HANOK_HOME": "/tmp/x", "HANOK_ON_STOP": "shutdown"}).on_stop
    with pytest.raises(InvalidInput) as caught:
        load_settings({"HANOK_HOME": "/tmp/x", "HANOK_ON_STOP": "kill"})
    assert caught.value.field == "HANOK_ON_STOP"
