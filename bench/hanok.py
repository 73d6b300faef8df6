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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanok.client.client import Client
from hanok.client.daemon import open_client
from hanok.client.wire import FINAL_STATES
from hanok.errors import HanokError
from hanok.proc import find_owned

_PROGRAM = Path(sys.executable).with_name("hanok")
_LIMIT = 1800.0
_AT_ONCE = 8


@dataclass(frozen=True)
class Hanok:
    """The command line with one data directory.

    ``hypervisor`` as HANOK_HYPERVISOR; ``settings`` are more of the daemon's variables.
    """

    home: Path
    hypervisor: str = "auto"
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its processes."""
        own = {
            "HANOK_HOME": str(self.home),
            "HANOK_HYPERVISOR": self.hypervisor,
            "HANOK_REMOTE": "local",  # whatever remote its user uses
        }
        return {**os.environ, **self.settings, **own}

    @property
    def images(self) -> Path:
        """Where its images are."""
        return Path(self.environ.get("HANOK_IMAGES") or self.home / "images")

    def client(self) -> Client:
        """Return a client of its daemon, which is started if there is none."""
        self.run("list")
        return open_client(self.environ, start=False)

    def run(self, *arguments: str) -> str:
        """Run a command and return its output. Raises CalledProcessError when it fails."""
        done = subprocess.run(
            [str(_PROGRAM), *arguments],
            env=self.environ,
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
        """Delete every VM, running or not, and every template."""
        client = self.client()
        _settle(client)
        delete(client, [vm["name"] for vm in client.vms()])
        for template in client.templates():
            client.delete_template(template["name"])


def delete(client: Client, names: Sequence[str]) -> None:
    """Delete VMs, running or not, some at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ended = pool.map(lambda name: client.finish(client.delete(name, force=True)), names)
        for _ in ended:
            pass


def _settle(client: Client) -> None:
    """Cancel what goes on where that can be done, and wait until nothing goes on."""
    for operation in client.operations():
        if operation["state"] not in FINAL_STATES:
            with contextlib.suppress(HanokError):
                client.cancel(operation["id"])
            for _ in client.follow(operation["id"]):
                pass


@contextlib.contextmanager
def own_hanok(
    hypervisor: str = "auto", settings: Mapping[str, str] | None = None
) -> Iterator[Hanok]:
    """Give a Hanok with an empty data directory; everything of it is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="hk-bench-", dir="/tmp"))
    home.chmod(0o755)
    hanok = Hanok(home, hypervisor, settings or {})
    try:
        yield hanok
    finally:
        hanok.delete_all()
        for network in hanok.json("network", "list"):
            hanok.run("network", "delete", str(network["name"]))
        _end_daemon(hanok)
        left = list(find_owned(home))
        shutil.rmtree(home)
        if left:
            raise RuntimeError(f"Hanok left processes behind: {left}")


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
