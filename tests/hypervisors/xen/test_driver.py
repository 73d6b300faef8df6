"""The driver's own decisions, on a Xen that is played: what real Xen does is the rigs' to show."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, retry_if_result, wait_none

from hanok.errors import HostError, HypervisorError
from hanok.hypervisors.base import Disk, Machine, MachineEvent, RunState
from hanok.hypervisors.xen import XenHypervisor
from hanok.hypervisors.xen.config import AGENT_SOCKET
from hanok.hypervisors.xen.driver import modes_of
from hanok.hypervisors.xen.parse import parse_domains, parse_info
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.proc import OWNER_VARIABLE
from tests.hypervisors.xen.stand_in import HEAD, FakeXen, Wires
from tests.hypervisors.xen.test_config import FULL, PARA
from tests.machine import patient

LIMIT = patient(20.0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    disk = Disk("root", tmp_path / "disk.raw", DiskFormat.RAW)
    disk.path.touch()
    return dataclasses.replace(PARA, folder=tmp_path, disks=(disk,))


async def next_event(driver: XenHypervisor, name: str) -> MachineEvent:
    async with asyncio.timeout(LIMIT):
        async for event in driver.events():
            if event.name == name:
                return event
    raise AssertionError("the events ended")


async def until(holds: Callable[[], bool]) -> None:
    """Let the others go on until this holds."""
    retrying = AsyncRetrying(wait=wait_none(), retry=retry_if_result(lambda found: not found))
    async with asyncio.timeout(LIMIT):
        await retrying(asyncio.to_thread, holds)


def test_the_played_rows_are_as_the_real_ones() -> None:
    recorded = (Path(__file__).parent / "data/list-v-pv.txt").read_text()
    assert recorded.splitlines()[0] == HEAD
    assert parse_domains(recorded)


async def test_cards_are_plugged_in_before_the_guest_runs(
    driver: XenHypervisor, xen: FakeXen, wires: Wires, machine: Machine
) -> None:
    await driver.start(machine)
    assert wires.plugged == [("default", machine.uuid, "vif1.0")]
    assert xen.store["/local/domain/0/backend/vif/1/0/hotplug-status"] == "connected"
    steps = [call[:2] for call in xen.calls if call[1] in ("create", "unpause")]
    assert steps == [("xl", "create"), ("xl", "unpause")]
    assert xen.domains[1].env[OWNER_VARIABLE].startswith(f"vm:{machine.uuid}:")
    assert await driver.state(machine.uuid) is RunState.RUNNING


async def test_without_cards_a_guest_runs_at_once(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(dataclasses.replace(machine, nics=()))
    assert not xen.domains[1].paused
    assert ("xl", "unpause", "1") not in xen.calls


async def test_a_domain_that_ran_before_it_was_marked_is_a_machine(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, xenstore: Path
) -> None:
    """Its daemon died in between."""
    await driver.start(dataclasses.replace(machine, nics=()))
    await driver.close()
    mark = xen.store.pop("/libxl/1/hanok")
    second = XenHypervisor(xen, machine.folder, Wires(), xenstore=xenstore)
    assert await second.adopt(machine) is RunState.RUNNING
    assert xen.store["/libxl/1/hanok"].partition(":")[0] == mark.partition(":")[0]
    await second.close()


@pytest.mark.parametrize("step", ["create", "unpause", "plug"])
async def test_a_start_that_fails_leaves_no_domain(
    driver: XenHypervisor, xen: FakeXen, wires: Wires, machine: Machine, step: str
) -> None:
    if step == "plug":
        wires.fails = True
    else:
        xen.refuse = ("xl", step)
    with pytest.raises((HypervisorError, HostError), match=r"refused|gone"):
        await driver.start(machine)
    assert xen.domains == {}
    assert await driver.state(machine.uuid) is RunState.ABSENT


async def test_a_cancelled_start_comes_to_its_end_and_is_known(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    starting = asyncio.create_task(driver.start(machine))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert await driver.adopt(machine) in (RunState.RUNNING, RunState.ABSENT)


async def test_a_domain_that_was_never_let_go_is_no_machine(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, xenstore: Path
) -> None:
    await driver.start(machine)
    await driver.close()
    xen.domains[1].paused = True
    del xen.store["/libxl/1/hanok"]
    second = XenHypervisor(xen, machine.folder, Wires(), xenstore=xenstore)
    assert await second.adopt(machine) is RunState.ABSENT
    assert xen.domains == {}
    await second.close()


async def test_only_machines_of_this_data_directory_are_swept(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, tmp_path: Path, xenstore: Path
) -> None:
    other = XenHypervisor(xen, tmp_path / "other", Wires(), xenstore=xenstore)
    second = dataclasses.replace(machine, uuid="99999999-2222-3333-4444-555555555555")
    third = dataclasses.replace(machine, uuid="88888888-2222-3333-4444-555555555555")
    await driver.start(machine)
    await driver.start(second)
    await other.start(third)
    await other.close()
    await driver.sweep({machine.uuid})
    assert [domain.config["uuid"] for domain in xen.domains.values()] == [
        machine.uuid,
        third.uuid,
    ]


async def test_a_power_off_is_seen_told_and_cleaned_up(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    await driver.ask_stop(machine.uuid)
    assert await driver.wait_stopped(machine.uuid, LIMIT)
    assert (await next_event(driver, "stopped")).detail == "guest-shutdown"
    assert xen.domains == {}
    assert await driver.state(machine.uuid) is RunState.ABSENT


async def test_a_power_off_while_no_daemon_ran_is_seen_by_the_next(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, xenstore: Path
) -> None:
    await driver.start(machine)
    await driver.close()
    await xen.shut_down(1, 0)
    second = XenHypervisor(xen, machine.folder, Wires(), xenstore=xenstore)
    assert await second.adopt(machine) is RunState.ABSENT
    assert xen.domains == {}
    await second.close()


async def test_a_crash_is_told_with_what_xen_says_and_stays(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    xen.dmesg = "(XEN) d1v0 Triple fault - invoking HVM shutdown action 1\n"
    await xen.shut_down(1, 3)
    assert "Triple fault" in (await next_event(driver, "crashed")).detail
    assert await driver.state(machine.uuid) is RunState.CRASHED
    assert "Triple fault" in await driver.explain(machine.uuid)
    with pytest.raises(HypervisorError, match="cannot go on"):
        await driver.resume(machine.uuid)
    await driver.kill(machine.uuid)
    assert xen.domains == {}


async def test_the_death_of_a_device_model_is_a_crash(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    xen.domains[1].device_model.kill()
    assert "device model" in (await next_event(driver, "crashed")).detail
    assert await driver.state(machine.uuid) is RunState.CRASHED


async def test_a_restart_makes_the_domain_anew_and_plugs_it_in_again(
    driver: XenHypervisor, xen: FakeXen, wires: Wires, machine: Machine
) -> None:
    await driver.start(machine)
    await xen.shut_down(1, 1)
    await next_event(driver, "reset")
    assert list(xen.domains) == [2]
    assert [link for *_, link in wires.plugged] == ["vif1.0", "vif2.0"]
    assert await driver.state(machine.uuid) is RunState.RUNNING


async def test_a_guest_that_restarts_itself_twice_at_once_is_made_anew_twice(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    """While it is made anew somebody asks how it is, and Xen knows of no such domain."""
    await driver.start(machine)
    xen.creates = asyncio.Event()
    xen.restless = 1
    await xen.shut_down(1, 1)
    await until(lambda: not xen.domains)
    asking = asyncio.create_task(driver.state(machine.uuid))
    asked = len(xen.calls)
    await until(lambda: ("xl", "list", "-v") in xen.calls[asked:])
    for _ in range(100):  # until it waits for what is being done
        await asyncio.sleep(0)
    assert not asking.done()
    xen.creates.set()
    await until(lambda: 3 in xen.domains and not xen.domains[3].paused)
    await asking
    assert await driver.state(machine.uuid) is RunState.RUNNING


async def test_a_restart_in_mode_full_takes_new_taps(
    driver: XenHypervisor, xen: FakeXen, wires: Wires, machine: Machine
) -> None:
    full = dataclasses.replace(FULL, folder=machine.folder, disks=machine.disks)
    tap = os.open(os.devnull, os.O_RDWR)
    try:
        await driver.start(full, (tap,))
    finally:
        os.close(tap)
    assert xen.domains[1].fds == (tap,)
    await xen.shut_down(1, 1)
    await next_event(driver, "reset")
    assert len(xen.domains[2].fds) == 1
    assert [link for *_, link in wires.plugged] == ["tap"]


async def test_a_restart_that_fails_is_told_as_the_end(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    xen.refuse = ("xl", "create")
    await xen.shut_down(1, 1)
    assert "could not be restarted" in (await next_event(driver, "stopped")).detail
    assert xen.domains == {}


async def test_what_somebody_else_destroyed_is_gone(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    await xen.destroy(1)
    assert "something else" in (await next_event(driver, "stopped")).detail


@pytest.mark.parametrize(("mode", "kind"), [(Mode.PARA, "pv"), (Mode.HYBRID, "pvh")])
async def test_xen_itself_says_what_runs(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, mode: Mode, kind: str
) -> None:
    await driver.start(dataclasses.replace(machine, mode=mode))
    assert await driver.testify(machine.uuid) == kind
    assert ("xl", "list", "-l", "1") in xen.calls
    xen.store["/libxl/1/type"] = "hvm"
    assert await driver.testify(machine.uuid) == "hvm"
    xen.store["/libxl/1/type"] = "invalid"
    assert await driver.testify(machine.uuid) == kind
    await driver.kill(machine.uuid)
    with pytest.raises(HypervisorError):
        await driver.testify(machine.uuid)


async def test_xl_is_not_asked_for_the_domain_of_a_machine_that_has_left_nothing(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    look = ("xl", "list", "-v")
    assert await driver.adopt(machine) is RunState.ABSENT
    await driver.start(machine)
    assert look not in xen.calls[: xen.calls.index(("xl", "unpause", "1"))]
    await driver.start(machine)  # it runs
    assert list(xen.domains) == [1]
    await driver.kill(machine.uuid)
    await driver.start(machine)
    assert list(xen.domains) == [2]


async def test_a_domain_that_xenstore_has_lost_is_found(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, xenstore: Path
) -> None:
    await driver.start(machine)
    await driver.close()
    (machine.folder / AGENT_SOCKET).touch()  # as its device model made it
    del xen.store["/local/domain/1/vm"]
    second = XenHypervisor(xen, machine.folder, Wires(), xenstore=xenstore)
    assert await second.adopt(machine) is RunState.RUNNING
    await second.close()


async def test_a_domain_that_has_left_no_file_is_found(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, xenstore: Path
) -> None:
    await driver.start(machine)
    await driver.close()
    second = XenHypervisor(xen, machine.folder, Wires(), xenstore=xenstore)
    assert await second.adopt(machine) is RunState.RUNNING
    await second.close()


async def test_what_a_restarted_guest_is_is_asked_anew(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    await xen.shut_down(1, 1)
    await next_event(driver, "reset")
    await driver.testify(machine.uuid)
    assert xen.calls[-1] == ("xl", "list", "-l", "2")


async def test_an_end_is_seen_after_xenstored_was_restarted(
    driver: XenHypervisor, xen: FakeXen, machine: Machine, xenstore: Path
) -> None:
    await driver.start(machine)
    await xen.xenstored.stop()
    await xen.xenstored.start(xenstore)
    await xen.shut_down(1, 0)  # nobody is told
    assert await driver.wait_stopped(machine.uuid, LIMIT)


async def test_statistics_count_the_device_model(
    driver: XenHypervisor, xen: FakeXen, machine: Machine
) -> None:
    await driver.start(machine)
    xen.domains[1].seconds = 7.5
    found = await driver.statistics(machine.uuid)
    assert found.cpu_seconds >= 7.5
    assert found.resident > machine.memory


def test_modes_are_what_the_cpu_allows() -> None:
    recorded = (Path(__file__).parent / "data/info.txt").read_text()
    info = parse_info(recorded)
    assert modes_of(info) == (Mode.FULL, Mode.PARA, Mode.HYBRID)
    assert modes_of(dataclasses.replace(info, capabilities=("pv",))) == (Mode.PARA,)


async def test_outside_dom0_it_says_so(driver: XenHypervisor) -> None:
    if Path("/proc/xen/capabilities").exists():
        pytest.skip("this is a Xen host")
    with pytest.raises(HostError, match="Dom0"):
        await driver.probe()
