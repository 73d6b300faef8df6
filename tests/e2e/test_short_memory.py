"""Real VMs on a host that is short of memory: by control groups and limits of the kernel's own."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.errors import HanokError
from hanok.model.image import Image
from hanok.proc import find_owned, is_alive
from hanok.units import GIB, MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.e2e.conftest import Cli
from tests.machine import is_outermost
from tests.memory_group import MemoryGroup, memory_group

pytestmark = pytest.mark.vm

# More than the guest has used so far, which its QEMU would have to get from its host.
FILL = "mkdir -p /fill; mount -t tmpfs fill /fill; dd if=/dev/zero of=/fill/a bs=1M count=160"


def qemu_of(daemon: Daemon, name: str) -> int:
    uuid = daemon.client.vm(name)["uuid"]
    (pid,) = [one.pid for one in find_owned(daemon.home, "vm") if one.owner.ident == uuid]
    return pid


def state(daemon: Daemon, name: str) -> str:
    return str(daemon.client.vm(name)["state"])


def fill(daemon: Daemon, name: str) -> None:
    """Let a guest take memory, in which it does not survive."""
    with contextlib.suppress(HanokError):
        daemon.client.execute(name, ["sh", "-c", FILL], stdin=None, timeout=120)


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    """32 MiB for whoever is put into it; where there is no such thing no VM is made either."""
    with memory_group(32 * MIB) as made:
        yield made


def test_a_vm_that_the_kernel_ends_for_want_of_memory_says_so(
    hanok: Cli, daemon: Daemon, group: MemoryGroup
) -> None:
    daemon.run("web", memory="256M")
    daemon.run("other")
    group.take(qemu_of(daemon, "web"))
    fill(daemon, "web")
    wait_until(lambda: state(daemon, "web") == "failed", 60, "it is seen")
    reason = daemon.client.vm("web")["reason"]
    assert reason is not None
    assert "QEMU ended by itself: the kernel " in reason
    assert "for want of memory" in reason
    assert ("what its control group may take; it had" in reason) == is_outermost()
    assert "for want of memory" in hanok.ok("show", "web")
    assert "for want of memory" in hanok.ok("events")
    assert state(daemon, "other") == "ready"
    hanok.ok("start", "web")
    assert daemon.sh("web", "echo again") == "again\n"
    daemon.empty()


def test_its_restart_policy_starts_it_again(daemon: Daemon, group: MemoryGroup) -> None:
    daemon.run("web", memory="256M", restart={"policy": "on-failure"})
    group.take(qemu_of(daemon, "web"))
    fill(daemon, "web")
    wait_until(lambda: restarts(daemon) == 1, 60, "it was started again")
    wait_until(lambda: state(daemon, "web") == "ready", 120, "it is ready again")
    reason = daemon.client.vm("web")["restarts"]["reason"]
    assert reason is not None
    assert "for want of memory" in reason
    daemon.empty()


def restarts(daemon: Daemon) -> int:
    return int(daemon.client.vm("web")["restarts"]["total"])


def test_the_next_daemon_says_so_too(daemon: Daemon, group: MemoryGroup) -> None:
    """The VM of an earlier daemon, and one that ended while there was none."""
    daemon.run("adopted", memory="256M")
    daemon.run("alone", memory="256M")
    daemon.kill()
    daemon.start()
    group.take(qemu_of(daemon, "adopted"))
    fill(daemon, "adopted")
    wait_until(lambda: state(daemon, "adopted") == "failed", 60, "it is seen")
    pid = qemu_of(daemon, "alone")
    group.take(pid)
    begin = "mkdir -p /fill; mount -t tmpfs fill /fill; (sleep 2; " + FILL.split("; ")[-1]
    daemon.sh("alone", f"{begin}) > /dev/null 2>&1 &")
    daemon.kill()
    wait_until(lambda: not is_alive(pid), 60, "the kernel has ended it")
    daemon.start()
    adopted, alone = daemon.client.vm("adopted"), daemon.client.vm("alone")
    assert adopted["state"] == "failed"
    assert "ended by itself" in str(adopted["reason"])
    assert "for want of memory" in str(adopted["reason"])
    # Nobody counted while it ran alone: it takes the kernel's log, and the process's number there.
    if is_outermost():
        assert alone["state"] == "failed"
        assert "while no daemon ran" in str(alone["reason"])
        assert "for want of memory" in str(alone["reason"])
    else:
        assert (alone["state"], alone["reason"]) == ("stopped", None)
    daemon.empty()


@pytest.fixture
def narrow(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon whose programs get no more than 2 GiB of addresses each."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent) as daemon:
        assert daemon.process is not None
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (2 * GIB, 2 * GIB))
        yield daemon


def test_a_vm_whose_memory_cannot_be_had_is_not_there(narrow: Daemon) -> None:
    """Admission saw room that the kernel then does not give."""
    with pytest.raises(HanokError) as caught:
        narrow.run("large", memory="3G")
    assert "Cannot allocate memory" in caught.value.message
    assert narrow.client.vms() == []
    narrow.run("small", memory="128M")
