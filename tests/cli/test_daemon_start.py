"""Finding and starting the daemon: one is started, and what goes wrong is told.

Small programs take the daemon's place here; test_with_daemon.py starts the real one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.client.client import Client
from hanok.client.daemon import DaemonFinder
from hanok.client.http import Transport
from hanok.errors import DaemonUnreachable, HostError
from tests.cli import recorded
from tests.cli.stand_in import StandIn

# Notes its pid, session and standard input, then takes connections until it is killed.
ANSWERS = """
import fcntl, os, socket, sys
home = os.environ["HANOK_HOME"]
with open(home + "/starts", "a") as file:
    file.write(f"{os.getpid()} {os.getsid(0)} {os.readlink('/proc/self/fd/0')} {os.getcwd()}\\n")
path = home + "/hanokd.sock"
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    listener.accept()[0].close()
"""
GIVES_WAY = 'import sys; print("another hanokd serves this"); sys.exit(1)'


def started(home: Path) -> list[list[str]]:
    """Return pid, session, standard input and folder of each daemon that was started."""
    with contextlib.suppress(FileNotFoundError):
        return [line.split() for line in (home / "starts").read_text().splitlines()]
    return []


@pytest.fixture(autouse=True)
def no_daemon_left(home: Path) -> Iterator[None]:
    yield
    for pid, *_ in started(home):
        os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(pid), 0)


def finder(home: Path, program: str, limit: float = 20) -> DaemonFinder:
    return DaemonFinder(home, argv=[sys.executable, "-c", program], limit=limit)


def test_a_daemon_is_started_in_a_session_of_its_own(home: Path) -> None:
    said: list[Path] = []
    found = DaemonFinder(home / "data", argv=[sys.executable, "-c", ANSWERS], on_start=said.append)
    try:
        found.connect().close()
        found.connect().close()
        [(pid, session, stdin, folder)] = started(home / "data")
        assert (session, stdin, folder) == (pid, "/dev/null", "/")
        assert said == [home / "data/hanokd.log"]
        assert (home / "data").stat().st_mode & 0o777 == 0o700
        assert (home / "data/hanokd.log").stat().st_mode & 0o777 == 0o600
    finally:
        for pid, *_ in started(home / "data"):
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)


def test_many_commands_start_one(home: Path) -> None:
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            finder(home, ANSWERS).connect().close()
        except BaseException as error:  # noqa: BLE001  told to the test below
            failed.append(error)

    threads = [threading.Thread(target=connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(started(home)) == 1


def test_a_socket_that_nobody_listens_at_is_no_daemon(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "hanokd.sock"))
    finder(home, ANSWERS).connect().close()
    assert len(started(home)) == 1


def test_a_daemon_that_dies_leaves_its_last_words(home: Path) -> None:
    (home / "hanokd.log").write_text("words of an earlier daemon\n")
    program = 'import sys; print("line\\n" * 20 + "no space left"); sys.exit(3)'
    with pytest.raises(DaemonUnreachable) as caught:
        finder(home, program).connect()
    assert "ended with status 3" in caught.value.message
    assert caught.value.message.endswith("\n  no space left")
    assert "earlier" not in caught.value.message
    assert caught.value.hint
    assert str(home / "hanokd.log") in caught.value.hint


def test_a_daemon_that_never_answers_is_told(home: Path) -> None:
    program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with pytest.raises(DaemonUnreachable, match=r"does not answer within 0\.5 s"):
        finder(home, program, limit=0.5).connect()
    pid = int((home / "hanokd.log").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_daemon_that_gives_way_to_another_is_waited_for(home: Path) -> None:
    import fcntl

    with open(home / "hanokd.lock", "w") as lock, socket.socket(socket.AF_UNIX) as listener:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def answer_at_last() -> None:
            while b"another" not in (home / "hanokd.log").read_bytes():
                pass
            listener.bind(str(home / "hanokd.sock"))
            listener.listen()

        (home / "hanokd.log").touch()
        thread = threading.Thread(target=answer_at_last)
        thread.start()
        finder(home, GIVES_WAY).connect().close()
        thread.join()


def test_without_starting_it_is_unreachable(home: Path) -> None:
    with pytest.raises(DaemonUnreachable) as caught:
        DaemonFinder(home / "none", start=False).connect()
    assert "hanok serve" in (caught.value.hint or "")
    assert not (home / "none").exists()


def test_a_data_directory_that_cannot_be_made(home: Path) -> None:
    (home / "file").touch()
    with pytest.raises(HostError, match="cannot be made") as caught:
        DaemonFinder(home / "file/data").connect()
    assert "HANOK_HOME" in (caught.value.hint or "")


class Vanishing:
    """Connections of which the first is closed without an answer."""

    def __init__(self, api: StandIn) -> None:
        self._finder = DaemonFinder(api.home, start=False)
        self.made = 0

    def connect(self) -> socket.socket:
        self.made += 1
        if self.made > 1:
            return self._finder.connect()
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours


def test_a_question_is_asked_again_when_the_daemon_just_ended(api: StandIn) -> None:
    api.on("GET", "vms", [])
    vanishing = Vanishing(api)
    assert Client(Transport(vanishing.connect)).vms() == []
    assert vanishing.made == 2


def test_a_change_is_not_asked_twice(api: StandIn) -> None:
    api.on("POST", "vms/web/start", recorded.operation("start"), status=202)
    with pytest.raises(DaemonUnreachable, match="without an answer"):
        Client(Transport(Vanishing(api).connect)).change("web", "start")
    assert api.asked == []
