"""One daemon on QEMU for a module of end-to-end tests, driven by the command as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hanok.model.image import Image
from tests.daemon.harness import Daemon, new_daemon
from tests.machine import patient


def use_console(vm: str, environ: Mapping[str, str]) -> None:
    """Type at a guest's console until it has answered."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "hanok.cli", "console", vm],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
    ) as console:
        assert console.stdin is not None
        assert console.stdout is not None
        console.stdin.write(b"\necho $((6*7))-answer\n")
        console.stdin.flush()
        seen = b""
        while b"42-answer" not in seen:
            chunk = os.read(console.stdout.fileno(), 4096)
            assert chunk, seen
            seen += chunk
        console.stdin.close()
        console.wait(patient(20))


@contextmanager
def leading(environ: Mapping[str, str], vm: str) -> Iterator[Any]:
    """Give what ``hanok console NAME --vnc`` prints, while it leads viewers on."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "hanok.cli", "console", vm, "--vnc", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environ,
    ) as command:
        try:
            assert command.stdout is not None
            yield json.loads(command.stdout.readline())
        finally:
            command.send_signal(signal.SIGINT)
            assert command.wait(patient(20)) == 130


@dataclass
class Cli:
    """The command ``hanok`` on one data directory; ``more``: what else its environment says."""

    daemon: Daemon
    more: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def environ(self) -> dict[str, str]:
        """The environment of the command."""
        own = {"HANOK_HOME": str(self.daemon.home), "HANOK_REMOTE": "local", "NO_COLOR": "1"}
        return {**os.environ, **own, **self.more}

    def __call__(
        self, *arguments: str, input: bytes | None = None, limit: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command and return what it gave."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "hanok.cli", *arguments],
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            env=self.environ(),
            timeout=patient(limit),
        )

    def ok(self, *arguments: str, input: bytes | None = None, limit: float = 300) -> str:
        """Run the command, which must succeed, and return what it printed."""
        done = self(*arguments, input=input, limit=limit)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        return done.stdout.decode()

    def json(self, *arguments: str) -> Any:
        """Run the command with --json and return what it printed."""
        return json.loads(self.ok(*arguments, "--json"))


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon on QEMU, with the images that all tests share."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent) as started:
        yield started


@pytest.fixture(scope="module")
def hanok(daemon: Daemon) -> Cli:
    """The command, talking to that daemon."""
    return Cli(daemon)


@pytest.fixture(scope="module")
def xen(micro_image: tuple[Image, Path]) -> Iterator[Cli]:
    """The command, talking to a daemon on Xen."""
    _, folder = micro_image
    with new_daemon("xen", folder.parent) as started:
        yield Cli(started)
