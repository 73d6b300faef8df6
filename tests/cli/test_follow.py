"""Following operations: Ctrl-C, a daemon that goes away, pipes that close."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from hanok.client.client import Client
from hanok.client.daemon import DaemonFinder
from hanok.client.http import Transport
from hanok.errors import DaemonUnreachable
from tests.cli import recorded
from tests.cli.conftest import LIMIT, Hanok
from tests.cli.stand_in import Answer, StandIn, ndjson


@pytest.fixture
def endless(api: StandIn) -> Iterator[StandIn]:
    """A daemon with an operation that does not end before the test does."""
    over = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield json.dumps(recorded.operation(message="booting", fraction=0.5)).encode() + b"\n"
        over.wait(LIMIT)

    api.on("POST", "vms", recorded.operation(), status=202)
    api.stream("GET", "operations/op1/follow", pieces)
    yield api
    over.set()


def test_ctrl_c_leaves_the_operation_and_says_so(endless: StandIn, hanok: Hanok) -> None:
    process = hanok.popen("run", "micro", "--name", "web")
    assert process.stderr is not None
    assert process.stderr.readline() == b"run web: booting\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert b"run web goes on in the daemon" in said
    assert b"hanok operations cancel op1" in said
    assert b"Traceback" not in said
    assert not [asked for asked in endless.asked if asked.target.endswith("cancel")]


def test_ctrl_c_with_json_says_nothing(endless: StandIn, hanok: Hanok) -> None:
    process = hanok.popen("run", "micro", "--name", "web", "--json")
    deadline = time.monotonic() + LIMIT
    while len(endless.asked) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT) == (b"", b"")
    assert process.returncode == 130


def test_bars_on_a_terminal_without_colours_when_unwanted(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms", recorded.operation(), status=202)
    steps = [recorded.operation(message="boot\x1b]0;x\x07ing", fraction=0.25)]
    done = recorded.operation(state="done")
    api.stream("GET", "operations/op1/follow", ndjson(*steps, done))
    api.on("GET", "vms/web", recorded.vm_detail())
    shown = on_terminal(hanok, "run", "micro", "--name", "web")
    assert b"run web" in shown
    assert b"\x1b]0;x" not in shown
    assert b"\x1b[32mready" in shown
    hanok.environ = {"NO_COLOR": "1"}
    plain = on_terminal(hanok, "run", "micro", "--name", "web")
    assert b"\x1b[32m" not in plain
    hanok.environ = {}
    assert b"\x1b[32m" not in on_terminal(hanok, "list", "--no-color")


def on_terminal(hanok: Hanok, *words: str) -> bytes:
    """Run a command on a pseudo-terminal and return what it wrote there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        hanok.argv(*words), env=hanok.environment(), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    found = bytearray()
    try:
        while select.select([ours], [], [], LIMIT)[0]:
            found += os.read(ours, 65536)
    except OSError:
        pass  # the other side has closed
    finally:
        os.close(ours)
    process.wait(LIMIT)
    return bytes(found)


def test_a_stream_that_breaks_is_taken_up_again(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "vms", recorded.operation(), status=202)
    first = json.dumps(recorded.operation(message="booting")).encode() + b"\n"
    broken = Answer(pieces=lambda: iter([first]), truncate=True)
    api.add("GET", "operations/op1/follow", broken)
    api.stream("GET", "operations/op1/follow", ndjson(recorded.operation(state="done")))
    api.on("GET", "vms/web", recorded.vm_detail())
    assert hanok("run", "micro", "--name", "web").returncode == 0


def test_a_stream_that_always_breaks_ends_in_an_error(api: StandIn) -> None:
    broken = Answer(pieces=lambda: iter([b""]), truncate=True)
    api.add("GET", "operations/op1/follow", broken)
    client = Client(Transport(DaemonFinder(api.home, start=False).connect))
    with pytest.raises(DaemonUnreachable):
        list(client.follow("op1"))
    assert len(api.asked) == 6


def test_a_reader_that_has_enough_is_no_error(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "vms", [recorded.vm_view(f"web-{n}") for n in range(3000)])
    process = hanok.popen("list")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.wait(LIMIT)
    assert said == b""
