"""Finds the daemon of this user's data directory, and starts one when none answers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hanok.client.client import Client
from hanok.client.http import Transport
from hanok.config import find_home
from hanok.errors import DaemonUnreachable, HostError

if TYPE_CHECKING:
    import subprocess

START_LIMIT = 60.0
_CONNECT_LIMIT = 10.0
_LOG_LINES = 8
_LOG_BYTES = 4096


class DaemonFinder:
    """Gives connections to the daemon of one data directory.

    ``on_start`` is told when a daemon is about to be started (its log file). ``argv`` is the
    command that starts one, ``limit`` the seconds that it has until it answers.
    """

    def __init__(
        self,
        home: Path,
        *,
        start: bool = True,
        on_start: Callable[[Path], None] | None = None,
        argv: Sequence[str] | None = None,
        limit: float = START_LIMIT,
    ) -> None:
        self.home = home
        self._start = start
        self._on_start = on_start
        self._argv = list(argv) if argv is not None else daemon_argv()
        self._limit = limit

    @property
    def socket_path(self) -> Path:
        """Where the daemon listens."""
        return self.home / "hanokd.sock"

    @property
    def log(self) -> Path:
        """Where the daemon writes what it has to say."""
        return self.home / "hanokd.log"

    def connect(self) -> socket.socket:
        """Return a connection, starting a daemon when none answers.

        Raises DaemonUnreachable; HostError when the data directory cannot be made.
        """
        found = self._try_connect()
        if found is not None:
            return found
        if not self._start:
            raise DaemonUnreachable(
                f"no daemon answers at {self.socket_path}", hint="start it with 'hanok serve'"
            )
        return self._connect_by_starting()

    def _try_connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_CONNECT_LIMIT)
        try:
            sock.connect(str(self.socket_path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            sock.close()
            return None
        except PermissionError:
            sock.close()
            raise DaemonUnreachable(
                f"the daemon's socket {self.socket_path} belongs to another user",
                hint="run this as that user, or set HANOK_HOME to a directory of your own",
            ) from None
        except OSError as error:
            sock.close()
            raise DaemonUnreachable(
                f"the daemon at {self.socket_path} does not take connections: {error}",
                hint=f"its log is {self.log}",
            ) from error
        return sock

    def _connect_by_starting(self) -> socket.socket:
        deadline = time.monotonic() + self._limit
        self._make_home()
        with self._only_starter(deadline):
            found = self._try_connect()  # another command may have started it meanwhile
            if found is not None:
                return found
            if self._on_start is not None:
                self._on_start(self.log)
            said_before = self.log.stat().st_size if self.log.exists() else 0
            process = self._spawn()
            pause = 0.01
            while time.monotonic() < deadline:
                found = self._try_connect()
                if found is not None:
                    process.returncode = 0  # it outlives this process: nothing to wait for
                    return found
                # It may have given way to a daemon that is just starting: only then wait on.
                if process.poll() is not None and not self._is_daemon_alive():
                    break
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
        raise self._unreachable(process, said_before)

    def _make_home(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"the data directory {self.home} cannot be made: {error.strerror}",
                hint="set HANOK_HOME to a directory that this user may write",
            ) from error

    @contextlib.contextmanager
    def _only_starter(self, deadline: float) -> Iterator[None]:
        """Hold the lock at which commands meet that all want to start a daemon."""
        path = self.home / "start.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"{path} cannot be opened: {error.strerror}",
                hint="set HANOK_HOME to a directory that this user may write",
            ) from error
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DaemonUnreachable(
                            "another command is still starting the daemon",
                            hint=f"its log is {self.log}",
                        ) from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(handle)

    def _spawn(self) -> subprocess.Popen[bytes]:
        import subprocess

        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"{self.log} cannot be written: {error.strerror}") from error
        try:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={**os.environ, "HANOK_HOME": str(self.home)},
            )
        finally:
            os.close(log)

    def _is_daemon_alive(self) -> bool:
        """Return whether some daemon holds the lock of this data directory."""
        try:
            handle = os.open(self.home / "hanokd.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _unreachable(self, process: subprocess.Popen[bytes], said_before: int) -> DaemonUnreachable:
        status = process.poll()
        if status is None:
            what = f"the daemon (pid {process.pid}) does not answer within {self._limit:g} s"
            process.returncode = 0
        else:
            what = f"the daemon ended with status {status} as soon as it was started"
        said = self._last_lines(said_before)
        return DaemonUnreachable(
            f"{what}; its last words:\n{said}" if said else what,
            hint=f"'hanok serve' shows what it does; its log is {self.log}",
        )

    def _last_lines(self, start: int) -> str:
        try:
            with open(self.log, "rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(start if start <= size else 0, size - _LOG_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])


def daemon_argv(*arguments: str) -> list[str]:
    """Return the command that runs the daemon with this very Python."""
    # -P: a folder called hanok where the command was typed must not be imported as root.
    return [sys.executable, "-P", "-m", "hanok.app", *arguments]


def open_client(
    environ: Mapping[str, str],
    *,
    start: bool = True,
    on_start: Callable[[Path], None] | None = None,
) -> Client:
    """Return a client of the daemon whose data directory ``environ`` names.

    Nothing is connected yet: each request connects, and with ``start`` the first that finds no
    daemon starts one. Raises InvalidInput for a data directory that cannot be used.
    """
    finder = DaemonFinder(find_home(environ), start=start, on_start=on_start)
    return Client(Transport(finder.connect))
