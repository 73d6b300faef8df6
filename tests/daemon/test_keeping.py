"""Restarts, health and watchdogs on the fake hypervisor, by a clock that is put forward by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import HypervisorError, InvalidInput, NotFound, Unsupported
from hanok.hypervisors.base import Hypervisor, RunState
from hanok.hypervisors.optional import HasWatchdog
from hanok.hypervisors.xen.driver import XenHypervisor
from hanok.model.keeping import Restart
from hanok.model.vm import VmRecord, VmSpec
from hanok.services.keeping import pause_before
from hanok.services.suiting import check_offered
from tests.daemon.keeping import FakeClock, house


@given(st.floats(0.1, 3600), st.floats(0.1, 86_400), st.integers(1, 5000))
def test_pauses_double_up_to_the_longest(delay: float, longest: float, number: int) -> None:
    policy = Restart.model_validate({"policy": "always", "delay": delay, "longest": longest})
    pause = pause_before(policy, number)
    assert pause <= longest
    if number <= 10:
        assert pause == pytest.approx(min(longest, delay * 2 ** (number - 1)))


async def test_a_vm_that_dies_again_and_again_is_given_up(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart={"policy": "on-failure", "retries": 3, "delay": 10})
        for number in (1, 2, 3):
            here.fake.vanish(record.uuid)
            record = await here.until("waiting", total=number - 1)
            assert record.wanted == "running"
            assert record.restarts.next is not None
            left = record.restarts.next - here.clock.now()
            assert left == pytest.approx(10 * 2 ** (number - 1), abs=2)
            await here.clock.advance(left - 3)
            assert (await here.vm()).state == "waiting"
            record = await here.restart_is_due()
            assert (record.restarts.streak, record.restarts.total) == (number, number)
        here.fake.vanish(record.uuid)
        record = await here.until("failed")
        assert record.wanted == "stopped"
        assert "given up after 3 restarts in a row" in (record.reason or "")
        told = await here.named("restarting")
        assert [text.partition(":")[0] for text in told] == [
            "restart 1 of 3",
            "restart 2 of 3",
            "restart 3 of 3",
        ]
        assert "ended by itself" in told[0]


async def test_good_running_begins_to_count_anew(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        policy = {"policy": "on-failure", "retries": 1, "delay": 5, "reset_after": 100}
        record = await here.run(restart=policy)
        for number in (1, 2, 3):
            here.fake.vanish(record.uuid)
            record = await here.restart_is_due()
            assert (record.restarts.streak, record.restarts.total) == (1, number)
            await here.clock.advance(101)
        here.fake.vanish(record.uuid)
        await here.restart_is_due()
        here.fake.vanish(record.uuid)
        await here.until("failed")


@pytest.mark.parametrize(
    ("policy", "state"), [("no", "stopped"), ("on-failure", "stopped"), ("always", "waiting")]
)
async def test_a_guest_that_powers_itself_off(short_tmp: Path, policy: str, state: str) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart=policy)
        await here.guest(record).shut_down()
        record = await here.until(state)
        if state == "waiting":
            assert record.reason == "its guest powered itself off"
            await here.restart_is_due()


@pytest.mark.parametrize("policy", ["on-failure", "always"])
async def test_a_user_s_stop_is_never_undone(short_tmp: Path, policy: str) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart=policy)
        for force in (True, False):
            await here.done(await here.services.vms.stop("web", force=force, timeout=1))
            await here.clock.advance(1000)
            assert (await here.vm()).state == "stopped"
            await here.done(await here.services.vms.start("web"))
        here.fake.vanish(record.uuid)
        await here.until("waiting")
        await here.done(await here.services.vms.stop("web", force=False, timeout=1))
        await here.clock.advance(1000)
        record = await here.vm()
        assert (record.state, record.wanted, record.restarts.next) == ("stopped", "stopped", None)
        assert await here.fake.state(record.uuid) is RunState.ABSENT


async def test_a_stop_ends_a_restart_that_goes_on(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart="always")
        here.fake.vanish(record.uuid)
        await here.until("waiting")
        here.fake.faults.delay("start", 30)
        await here.clock.advance(2)
        await here.until("starting")
        await here.done(await here.services.vms.stop("web", force=True, timeout=None))
        here.fake.faults.methods.clear()
        await here.clock.advance(1000)
        assert (await here.vm()).state == "stopped"
        assert await here.fake.state(record.uuid) is RunState.ABSENT


async def test_a_user_s_start_does_not_wait_and_counts_anew(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart="always")
        here.fake.vanish(record.uuid)
        await here.restart_is_due()
        here.fake.vanish(record.uuid)
        await here.until("waiting")
        await here.done(await here.services.vms.start("web"))
        record = await here.until("ready")
        assert record.restarts.total == 0


async def test_a_vm_that_waits_can_be_deleted(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart="always")
        here.fake.vanish(record.uuid)
        await here.until("waiting")
        await here.done(await here.services.vms.delete("web", force=True))
        await here.clock.advance(1000)
        with pytest.raises(NotFound):
            await here.vm()
        assert not (short_tmp / "vms" / record.uuid).exists()


async def test_a_start_that_fails_is_tried_again(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart={"policy": "on-failure", "retries": 5})
        here.fake.faults.fail("start", "no more memory", times=2)
        here.fake.vanish(record.uuid)
        for total in (0, 1, 2):
            record = await here.until("waiting", total=total)
            assert record.restarts.next is not None
            await here.clock.advance(record.restarts.next - here.clock.now() + 1)
        record = await here.until("ready", total=3)
        assert record.restarts.reason == "no more memory"
        here.fake.vanish(record.uuid)
        await here.restart_is_due()


async def test_a_vm_that_never_is_ready_is_a_failure(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        here.fake.faults.silent_agent = True
        record = await here.run(restart="on-failure:1", ready={"timeout": 0.3})
        assert record.state == "waiting"
        assert await here.fake.state(record.uuid) is RunState.ABSENT
        here.fake.faults.silent_agent = False
        await here.restart_is_due()


async def test_a_crash_without_a_policy_stays_one(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run()
        here.fake.crash(record.uuid)
        record = await here.until("failed")
        assert (record.wanted, record.restarts.next) == ("stopped", None)
        assert "the guest's kernel panicked; its console's" in (record.reason or "")


# The next daemon


async def test_the_next_daemon_goes_on_waiting(short_tmp: Path) -> None:
    clock = FakeClock()
    async with house(short_tmp, clock) as here:
        record = await here.run(restart={"policy": "on-failure", "delay": 100})
        here.fake.vanish(record.uuid)
        before = await here.until("waiting")
    async with house(short_tmp, clock) as here:
        record = await here.vm()
        assert (record.state, record.restarts) == ("waiting", before.restarts)
        record = await here.restart_is_due()
        assert record.restarts.total == 1
        await here.services.parts.hypervisor.kill(record.uuid)


@pytest.mark.parametrize(
    ("policy", "left", "state"),
    [
        ("on-failure", "crashed", "waiting"),
        ("always", "crashed", "waiting"),
        ("on-failure", None, "stopped"),
        ("always", None, "waiting"),
        ("no", "crashed", "failed"),
    ],
)
async def test_what_ended_while_no_daemon_ran(
    short_tmp: Path, policy: str, left: str | None, state: str
) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart=policy)
    file = short_tmp / "fake" / "machines.json"
    machines = json.loads(file.read_text())
    machines[record.uuid]["state"] = left
    file.write_text(json.dumps(machines if left else {}))
    async with house(short_tmp) as here:
        await here.until(state)
        if state == "waiting":
            await here.restart_is_due()


# Health


def is_seen(state: str) -> Callable[[VmRecord], bool]:
    """Return what holds for a VM whose health check says so."""
    return lambda vm: vm.health is not None and vm.health.state == state


async def test_an_unhealthy_vm_is_told_of_once_and_again_when_it_is_well(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        health = {"command": "cat /well", "interval": 10, "retries": 3, "grace": 0}
        record = await here.run(health=health)
        guest = here.guest(record)
        guest.files["/well"] = b"yes"
        await here.ticking(is_seen("healthy"), 11)
        assert await here.named("healthy") == []
        del guest.files["/well"]
        before = guest._handles
        record = await here.ticking(is_seen("unhealthy"), 11)
        assert guest._handles - before >= 3
        assert record.state == "ready"
        await here.ticking(lambda _: guest._handles - before >= 8, 11)
        (message,) = await here.named("unhealthy")
        assert "exit status 1" in message
        guest.files["/well"] = b"yes"
        await here.ticking(is_seen("healthy"), 11)
        assert len(await here.named("healthy")) == 1


async def test_failures_in_the_grace_do_not_count(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        health = {"command": "false", "interval": 1, "retries": 2, "grace": 3000}
        record = await here.run(health=health)
        guest = here.guest(record)
        before = guest._handles
        await here.ticking(lambda _: guest._handles - before >= 5, 1.1)
        assert await here.named("unhealthy") == []
        await here.clock.advance(3000)
        await here.ticking(is_seen("unhealthy"), 1.1)


async def test_an_unhealthy_vm_is_restarted_by_its_policy(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        rule = {"interval": 10, "retries": 2, "grace": 0, "on_unhealthy": "restart"}
        restart = {"policy": "on-failure", "retries": 1, "delay": 3600, "longest": 3600}
        await here.run(restart=restart, health={"command": "cat /well", **rule})
        await here.ticking(lambda vm: vm.state == "waiting", 11)
        record = await here.restart_is_due()
        assert record.restarts.total == 1
        assert "unhealthy: command" in (record.restarts.reason or "")
        assert record.health is None
        record = await here.ticking(lambda vm: vm.state == "failed", 11)
        assert "given up" in (record.reason or "")


async def test_a_guest_whose_agent_falls_silent_is_unhealthy(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        health = {"interval": 1, "timeout": 0.2, "retries": 1, "grace": 0}
        record = await here.run(health=health)
        here.guest(record)._off = True  # it reads no more
        here.fake.faults.silent_agent = True
        await here.ticking(is_seen("unhealthy"), 1.1)


# Watchdogs


async def test_a_guest_that_hangs_is_ended_and_started_again(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart="on-failure", watchdog="stop")
        here.fake.hang(record.uuid)
        record = await here.restart_is_due()
        assert "its watchdog expired" in (record.restarts.reason or "")


async def test_a_guest_that_hangs_is_reset_and_waited_for(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(watchdog="reset")
        here.fake.hang(record.uuid)
        again = await here.when(lambda vm: vm.state == "ready" and vm.started != record.started)
        assert again.restarts.total == 0
        (message,) = await here.named("watchdog")
        assert "it was reset" in message


async def test_a_watchdog_is_refused_where_there_is_none(short_tmp: Path) -> None:
    assert not issubclass(XenHypervisor, HasWatchdog)

    class Bare:
        name = "xen"

    spec = VmSpec.model_validate({"name": "web", "image": "micro", "watchdog": "reset"})
    with pytest.raises(Unsupported) as caught:
        check_offered(spec, cast(Hypervisor, Bare()))
    assert caught.value.field == "watchdog"
    assert "--health agent" in (caught.value.hint or "")


async def test_contradictions_are_told_before_anything_is_made(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        with pytest.raises(InvalidInput):
            await here.run(health={"on_unhealthy": "restart"})
        with pytest.raises(NotFound):
            await here.vm()


async def test_a_broken_hypervisor_does_not_end_the_watch(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run(restart="always")
        here.fake.vanish(record.uuid)
        await here.until("waiting")
        here.fake.faults.fail("adopt", "no answer", times=1)
        await here.clock.advance(2)
        await here.until("waiting", total=1)
        with pytest.raises(HypervisorError):
            await here.fake.pause(record.uuid)
        await here.restart_is_due()
