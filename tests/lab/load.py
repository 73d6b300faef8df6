"""Load on a host that will lose power, and the book of what it has acknowledged.

A request is entered before it is sent and settled when it is answered. What was not answered when
the power went may have happened or not: both are right.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from hanok.client.client import Client
from hanok.client.wire import FINAL_STATES
from hanok.errors import Conflict, DaemonUnreachable, NotFound, TimedOut
from tests.daemon.harness import wait_until

ABSENT, RUNNING, STOPPED, PRESENT = "absent", "running", "stopped", "present"
_VM = {"image": "micro", "memory": "96M", "disk": "256M", "cold": True, "networks": ["default"]}
# Double emulation is slow, and all of them boot at once after a power cut.
_READY = {"ready": {"timeout": 900}}
_Answer = TypeVar("_Answer")


class PowerGone(Exception):
    """The host does not answer any more."""


@dataclass
class Book:
    """What each thing may be, by the requests that were answered and the one that was not."""

    things: dict[str, set[str]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    acknowledged: int = 0

    def may_be(self, thing: str) -> set[str]:
        """Return what ``thing`` may be; what was never asked for is absent."""
        return self.things.get(thing, {ABSENT})

    def ask(self, thing: str, becomes: str, call: Callable[[], _Answer]) -> _Answer | None:
        """Ask for what makes ``thing`` become something; None when the host refused.

        Raises PowerGone.
        """
        before = self.may_be(thing)
        self.things[thing] = before | {becomes}
        try:
            answer = call()
        except (Conflict, NotFound):
            self.things[thing] = before
            return None
        except (DaemonUnreachable, TimedOut) as error:
            raise PowerGone from error
        self.things[thing] = {becomes}
        self.acknowledged += 1
        return answer


class Load:
    """Who asks without pause: one for VMs, one for small things; ``seed`` makes it repeatable.

    ``cut_after`` small things that were acknowledged, ``due`` is set.
    """

    def __init__(self, connect: Callable[[], Client], book: Book, names: tuple[str, ...]) -> None:
        self._connect = connect
        self._book = book
        self._names = names
        self.due = threading.Event()
        self.fault: Exception | None = None

    def start(self, seed: int, cut_after: int) -> list[threading.Thread]:
        """Begin, and return the threads; they end when the host is gone."""
        works = [lambda: self._ask_for_small_things(random.Random(seed + 1), cut_after)]
        if self._names:
            works.append(lambda: self._ask_for_vms(random.Random(seed)))
        threads = [threading.Thread(target=self._until_gone, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def _until_gone(self, work: Callable[[], None]) -> None:
        try:
            work()
        except PowerGone as gone:
            if not self.due.is_set():  # nobody has cut it: the host failed by itself
                self.fault = gone
        except Exception as error:  # noqa: BLE001 - the test's own thread raises it
            self.fault = error
        finally:
            self.due.set()

    def _ask_for_vms(self, chance: random.Random) -> None:
        client = self._connect()
        while True:
            operation = self._ask_for_vm(client, chance)
            if operation is not None and chance.random() < 0.7:
                wait_until(partial(_has_ended, client, operation), 900, f"{operation} has ended")

    def _ask_for_vm(self, client: Client, chance: random.Random) -> str | None:
        name = chance.choice(self._names)
        now = self._book.may_be(name)
        if now == {ABSENT}:
            asked = self._book.ask(
                name, RUNNING, lambda: client.run({"name": name, **_VM, **_READY})
            )
        elif now == {STOPPED}:
            asked = self._book.ask(name, RUNNING, lambda: client.change(name, "start"))
        elif chance.random() < 0.6:
            body = {"force": chance.random() < 0.5}
            asked = self._book.ask(name, STOPPED, lambda: client.change(name, "stop", body))
        else:
            asked = self._book.ask(name, ABSENT, lambda: client.delete(name, force=True))
        if asked is None:
            return None
        self._book.operations.append(asked["id"])
        return asked["id"]

    def _ask_for_small_things(self, chance: random.Random, cut_after: int) -> None:
        client = self._connect()
        done = 0
        while True:
            thing = f"{chance.choice(('token', 'network'))}-{chance.randrange(6)}"
            ask_for_small_thing(client, self._book, thing)
            done += 1
            if done == cut_after:
                self.due.set()


def _has_ended(client: Client, operation: str) -> bool:
    """Whether an operation has ended; following it would wait for the host to come back."""
    try:
        return client.operation(operation)["state"] in FINAL_STATES
    except (DaemonUnreachable, TimedOut) as error:
        raise PowerGone from error


def ask_for_small_thing(client: Client, book: Book, thing: str) -> None:
    """Make the token or network called ``thing``, or remove it when it is there."""
    is_token = thing.startswith("token")
    if book.may_be(thing) != {ABSENT}:
        remove = client.revoke_token if is_token else client.delete_network
        book.ask(thing, ABSENT, lambda: remove(thing) or True)
    elif is_token:
        body = {"name": thing, "role": "viewer"}
        book.ask(thing, PRESENT, lambda: client.create_token(body))
    else:
        book.ask(thing, PRESENT, lambda: client.create_network({"name": thing}))
