"""Hanok as a user has it: whole processes of its command line on a data directory of their own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = Path(sys.executable).with_name("hanok")
_LIMIT = 1800.0


@dataclass(frozen=True)
class Hanok:
    """The command line with one data directory; ``hypervisor`` as HANOK_HYPERVISOR."""

    home: Path
    hypervisor: str = "auto"

    def run(self, *arguments: str) -> str:
        """Run a command and return its output. Raises CalledProcessError when it fails."""
        env = {**os.environ, "HANOK_HOME": str(self.home), "HANOK_HYPERVISOR": self.hypervisor}
        done = subprocess.run(
            [str(_PROGRAM), *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.stderr.write(done.stderr[-4000:])
            done.check_returncode()
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command with --json and return what it answers."""
        return json.loads(self.run(*arguments, "--json"))

    def seconds(self, *arguments: str) -> float:
        """Run a command and return the seconds from its start to its end."""
        started = time.perf_counter()
        self.run(*arguments)
        return time.perf_counter() - started

    def daemon_pid(self) -> int:
        """Return the process id of the daemon that answers."""
        return int(self.json("version")["daemon"]["pid"])

    def delete_all(self) -> None:
        """Delete every VM, running or not."""
        for vm in self.json("list"):
            self.run("delete", "--force", str(vm["name"]))


@contextlib.contextmanager
def own_hanok(hypervisor: str = "auto") -> Iterator[Hanok]:
    """Give a Hanok with an empty data directory; everything of it is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="hk-bench-", dir="/tmp"))
    home.chmod(0o755)
    hanok = Hanok(home, hypervisor)
    try:
        yield hanok
    finally:
        hanok.delete_all()
        for network in hanok.json("network", "list"):
            hanok.run("network", "delete", str(network["name"]))
        _end_daemon(hanok)
        shutil.rmtree(home)


def _end_daemon(hanok: Hanok) -> None:
    handle = os.pidfd_open(hanok.daemon_pid())
    try:
        signal_and_wait(handle)
    finally:
        os.close(handle)


def signal_and_wait(handle: int) -> None:
    """End the process of a pidfd and wait until it is gone."""
    signal.pidfd_send_signal(handle, signal.SIGTERM)
    if not select.select([handle], [], [], 30)[0]:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [])
