"""A host loses power under load, again and again: nothing acknowledged is lost, what ran runs.

``HANOK_POWER_CUTS`` (3): how often, shared by two hosts. ``make test-power-cut`` cuts 100 times.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hanok.client.client import Client
from hanok.client.remotes import Remote, open_remote
from hanok.client.wire import FINAL_STATES
from hanok.errors import HanokError
from hanok.lab.hosts import Order
from hanok.lab.plan import Shape
from tests.daemon.harness import wait_until
from tests.lab.harness import Bench, lab_images, new_bench
from tests.lab.load import ABSENT, RUNNING, STOPPED, Book, Load
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(5 * 3600)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]

_CUTS = int(os.environ.get("HANOK_POWER_CUTS", "3"))
# The VMs of each host. They boot again after each cut, on an emulated CPU that virtualizes, which
# takes minutes: the host without any is cut several times as often meanwhile.
_HOSTS: dict[str, tuple[str, ...]] = {"one": ("vm-a", "vm-b"), "two": ()}
_MOST_ACKNOWLEDGED = 16
# Which VMs run when the power goes is chance: of few cuts none may have met one.
_MORE = 8
_UP_LIMIT = 600
_SETTLED = {RUNNING: {"ready"}, STOPPED: {"stopped"}}
_PYTHON = "cd /opt/hanok && bin/python3 -P -c"
_CHECK = """
import sqlite3
print(sqlite3.connect("/var/lib/hanok/state.db").execute("PRAGMA integrity_check").fetchone()[0])
"""
_OWNED = """
from pathlib import Path
from hanok.proc import find_owned
print(*(f"{one.pid} {one.owner.kind}" for one in find_owned(Path("/var/lib/hanok"))), sep=", ")
"""


@pytest.fixture
def bench() -> Iterator[Bench]:
    with new_bench(lab_images()) as bench:
        yield bench


class Victim:
    """A lab host whose power is cut, and what it has acknowledged."""

    def __init__(self, bench: Bench, remote: Remote) -> None:
        self._bench = bench
        self._remote = remote
        self._vms = _HOSTS[remote.name]
        self._book = Book()
        self.seen_running = 0

    @property
    def name(self) -> str:
        """What the host is called."""
        return self._remote.name

    def connect(self) -> Client:
        """Return a client of its own for a thread."""
        return open_remote(self._remote)

    def cut(self, seed: int) -> None:
        """Put load on it, cut its power somewhere in the midst, start it, and see all is there."""
        after = random.Random(seed).randint(1, _MOST_ACKNOWLEDGED)
        load = Load(self.connect, self._book, self._vms)
        threads = load.start(seed, after)
        load.due.wait()
        self._kill()
        for thread in threads:
            thread.join()
        if load.fault is not None:
            raise load.fault
        self._boot()
        self._check()
        print(
            f"{time.strftime('%H:%M:%S')} {self.name}: cut {seed} after {after};"
            f" {self._book.acknowledged} acknowledged so far, {self._book.things}",
            flush=True,
        )

    def has_seen_enough(self) -> bool:
        """Whether one of its VMs, if it has any, ran when the power went, and came back."""
        return not self._vms or self.seen_running > 0

    def last_words(self) -> str:
        """What the host wrote on its console last, for who has to find out why it failed."""
        told = b"".join(self._bench.daemon.client.logs(self.name, lines=200, follow=False))
        return told.decode(errors="replace")

    def _kill(self) -> None:
        home, client = self._bench.daemon.home, self._bench.daemon.client
        pid = int((home / "vms" / client.vm(self.name)["uuid"] / "m" / "qemu.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        ended = ("failed", "stopped")
        wait_until(lambda: client.vm(self.name)["state"] in ended, 60, "the host is off")

    def _boot(self) -> None:
        self._bench.daemon.done(self._bench.daemon.client.change(self.name, "start"))
        wait_until(self._answers, _UP_LIMIT, f"the daemon in {self.name} answers again")

    def _answers(self) -> bool:
        try:
            self.connect().version()
        except HanokError:
            return False
        return True

    def _check(self) -> None:
        told = self._bench.daemon.sh(self.name, f"{_PYTHON} '{_CHECK}'", 120)
        assert told.strip() == "ok"
        client, book = self.connect(), self._book
        wait_until(self._has_come_back, _UP_LIMIT, "what ran is started")
        for ident in book.operations:
            *_, last = client.follow(ident)  # NotFound: it was acknowledged, and is lost
            assert last["state"] in ("done", "cancelled"), last
        book.operations.clear()
        tokens = {token["name"] for token in client.tokens()}
        networks = {network["name"] for network in client.networks()}
        for thing, may_be in book.things.items():
            if thing in self._vms:
                self._check_vm(client, thing, may_be)
            else:
                there = thing in (tokens if thing.startswith("token") else networks)
                assert ("present" if there else ABSENT) in may_be, thing
                book.things[thing] = {"present" if there else ABSENT}

    def _has_come_back(self) -> bool:
        """Whether the daemon has begun and ended all that it had to do after the power cut."""
        left = self._bench.daemon.sh(self.name, "ls /var/lib/hanok/running.json || :", 60)
        operations = self.connect().operations()
        return not left.strip() and all(one["state"] in FINAL_STATES for one in operations)

    def _check_vm(self, client: Client, name: str, may_be: set[str]) -> None:
        """See that a VM is what was acknowledged last, or what was asked for when power went."""
        states = set().union(*(_SETTLED.get(one, {ABSENT}) for one in may_be))
        wait_until(lambda: _state(client, name) in states, _UP_LIMIT, f"{name} is one of {states}")
        if _state(client, name) == "ready":
            assert client.execute(name, ["uname"], stdin=None, timeout=120)["exit_status"] == 0
            self.seen_running += 1
        found = _state(client, name)
        now = {"ready": RUNNING, "stopped": STOPPED, ABSENT: ABSENT}[found]
        self._book.things[name] = {now}

    def see_nothing_left(self) -> None:
        """Delete what is there, and see that no process of it is left in the host."""
        client = self.connect()
        for vm in client.vms():
            *_, last = client.follow(client.delete(vm["name"], force=True)["id"])
            assert last["state"] == "done", last
        wait_until(
            lambda: self._bench.daemon.sh(self.name, f"{_PYTHON} '{_OWNED}'", 60).strip() == "",
            60,
            "nothing that Hanok started is left in the host",
        )


def _state(client: Client, name: str) -> str:
    return next((vm["state"] for vm in client.vms() if vm["name"] == name), ABSENT)


def test_nothing_acknowledged_is_lost(bench: Bench) -> None:
    remotes = bench.lab.up(Order(tuple(_HOSTS), Shape("kvm", cpus=1), cold=True))
    victims = [Victim(bench, remote) for remote in remotes]

    seeds = queue.SimpleQueue[int]()
    for seed in range(_CUTS):
        seeds.put(seed)

    def cut_again_and_again(victim: Victim) -> None:
        try:
            with contextlib.suppress(queue.Empty):
                while True:
                    victim.cut(seeds.get_nowait())
            for seed in range(_CUTS, _CUTS + _MORE):
                if victim.has_seen_enough():
                    break
                victim.cut(seed)
            victim.see_nothing_left()
        except BaseException:
            print(f"{victim.name} failed; its console's last lines:\n{victim.last_words()}")
            raise

    with ThreadPoolExecutor(len(victims)) as pool:
        list(pool.map(cut_again_and_again, victims))
    assert all(victim.has_seen_enough() for victim in victims)
