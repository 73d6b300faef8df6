"""Guests that want to hurt the host: they flood their console and their agent's channel, or never
answer. The daemon stays small, and other guests are answered as before.

Times are printed and not judged: what else the machine does would decide. They are compared with
those beside a guest that is as busy, and hurts nobody. ``pytest -s`` shows the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hanok.errors import HanokError
from hanok.guest.console import LOG_SIZE
from hanok.model.image import Image
from hanok.units import MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.machine import patient

pytestmark = pytest.mark.vm

MOST_MEMORY = 16 * MIB
BAD = "bad"
_ROUNDS = 6
_FLOOD_SECONDS = 3.0
_CONSOLE = 256

# An agent's port can be open once: whoever wants it must be quicker than the agent that comes back.
TAKE_PORT = """
setsid sh -c '
  for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = org.qemu.guest_agent.0 ] && path=/dev/${port##*/}
  done
  sleep 1
  while :; do
    kill -9 $(cat /run/hanok-agent.pid)
    ( exec 3>$path && head -c 1073741824 /dev/zero | tr "\\0" A >&3 )
  done
' >/dev/null 2>&1 </dev/null &
"""
BUSY = "setsid sh -c 'yes a-flood-of-nothing >/dev/null' >/dev/null 2>&1 &"
FLOOD_CONSOLE = "setsid sh -c 'yes a-flood-of-the-console >/dev/console' >/dev/null 2>&1 &"
FALL_SILENT = """
setsid sh -c '
  sleep 1; kill -STOP $(pidof qemu-ga); sleep 20; kill -CONT $(pidof qemu-ga)
' >/dev/null 2>&1 </dev/null &
"""


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon with a guest that is good, and one that is not."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent) as started:
        started.run("good")
        started.run(BAD)
        yield started


def resident(daemon: Daemon, what: str) -> int:
    """Return bytes of the daemon's memory: ``VmRSS`` now, ``VmHWM`` the most since forgotten."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in status if line.startswith(f"{what}:")]
    return int(found) * 1024


def forget_most(daemon: Daemon) -> int:
    """Let the most that the daemon ever had be what it has now, and return that."""
    assert daemon.process is not None
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")
    return resident(daemon, "VmHWM")


def answer_time(daemon: Daemon) -> float:
    """Return the seconds that a command in the good guest takes: the median of some."""
    taken = []
    for _ in range(_ROUNDS):
        start = time.monotonic()
        assert daemon.sh("good", "echo here") == "here\n"
        taken.append(time.monotonic() - start)
    return statistics.median(taken)


def time_beside_busy(daemon: Daemon) -> float:
    """Return the same while the bad guest only takes a CPU."""
    daemon.sh(BAD, BUSY)
    taken = answer_time(daemon)
    daemon.sh(BAD, "killall yes")
    return taken


def tell(what: str, daemon: Daemon, before: float, during: float, start: int) -> int:
    """Print the figures, and return by how much the daemon has grown."""
    grown = resident(daemon, "VmHWM") - start
    print(
        f"\n{what}: the daemon grew by {grown / MIB:.1f} MiB; a command in another guest took"
        f" {1000 * before:.0f} ms before, {1000 * during:.0f} ms meanwhile"
    )
    return grown


def test_a_flood_of_the_console_costs_little(daemon: Daemon) -> None:
    before = time_beside_busy(daemon)
    start = forget_most(daemon)
    daemon.sh(BAD, FLOOD_CONSOLE)
    uuid = daemon.client.vm(BAD)["uuid"]
    log = daemon.home / "vms" / uuid / "console.log"
    wait_until(lambda: log.stat().st_size > 64 * 1024, 30, "the flood has reached the log")
    until = time.monotonic() + _FLOOD_SECONDS
    during = answer_time(daemon)
    while time.monotonic() < until:  # as a user who looks on does
        assert b"a-flood" in b"".join(daemon.client.logs(BAD, lines=_CONSOLE, follow=False))
    during = min(during, answer_time(daemon))
    assert tell("console", daemon, before, during, start) <= MOST_MEMORY
    daemon.sh(BAD, "killall yes")
    found = sum(path.stat().st_size for path in log.parent.glob("console.log*"))
    assert found <= 2 * LOG_SIZE


def test_a_guest_that_never_answers_costs_its_own_time_only(daemon: Daemon) -> None:
    before = answer_time(daemon)
    start = forget_most(daemon)
    daemon.sh(BAD, FALL_SILENT)
    wait_until(lambda: not _answers(daemon, BAD), 30, "the agent is silent")
    for _ in range(3):
        begun = time.monotonic()
        with pytest.raises(HanokError):
            daemon.client.execute(BAD, ["true"], stdin=None, timeout=1)
        assert time.monotonic() - begun < patient(15)
    during = answer_time(daemon)
    assert tell("silence", daemon, before, during, start) <= MOST_MEMORY
    wait_until(lambda: _answers(daemon, BAD), 60, "the agent answers again")


def _answers(daemon: Daemon, name: str) -> bool:
    try:
        daemon.client.execute(name, ["true"], stdin=None, timeout=1)
    except HanokError:
        return False
    return True


def test_a_line_of_a_gigabyte_from_a_guest_costs_little(daemon: Daemon) -> None:
    before = time_beside_busy(daemon)
    start = forget_most(daemon)
    daemon.sh(BAD, TAKE_PORT)
    wait_until(lambda: _is_flooded(daemon, BAD), 60, "the guest floods its channel")
    with ThreadPoolExecutor(1) as pool:  # whoever asks it makes the daemon read what it floods
        asking = [pool.submit(_is_flooded, daemon, BAD) for _ in range(2)]
        during = [answer_time(daemon)]
        while not all(one.done() for one in asking):
            during.append(answer_time(daemon))
    grown = tell("agent", daemon, before, statistics.median(during), start)
    assert grown <= MOST_MEMORY
    assert daemon.client.vm(BAD)["state"] == "ready"


def _is_flooded(daemon: Daemon, name: str) -> bool:
    try:
        daemon.client.execute(name, ["true"], stdin=None, timeout=5)
    except HanokError as error:
        return "rubbish" in error.message or "line of more" in error.message
    return False
