"""A short data directory, the stand-in for the daemon, and the command line as a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli import stand_in
from tests.cli.stand_in import StandIn

LIMIT = 120


@dataclass
class Hanok:
    """Runs the command line in processes of their own on the data directory ``home``."""

    home: Path
    environ: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        left_out = ("NO_COLOR", "COLUMNS", "HANOK_REMOTE")
        kept = {k: v for k, v in os.environ.items() if k not in left_out}
        # Whoever runs the tests may use a remote: nothing of that here.
        own = {"HANOK_HOME": str(self.home), "HANOK_CONFIG": str(Path("/", self.home, "config"))}
        return {**kept, **own, "TERM": "xterm-256color", **self.environ}

    def argv(self, *words: str) -> list[str]:
        """The whole command."""
        return [sys.executable, "-P", "-m", "hanok.cli", *words]

    def __call__(
        self, *words: str, stdin: bytes | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; without ``stdin`` the standard input is empty."""
        done = subprocess.run(
            self.argv(*words),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=LIMIT,
            check=False,
            env=self.environment(),
            cwd=cwd,
        )
        return subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )

    def popen(self, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start it with pipes and leave it running."""
        return subprocess.Popen(
            self.argv(*words),
            env={**self.environment(), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory with a path short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def api(home: Path) -> Iterator[StandIn]:
    """The stand-in for the daemon."""
    with stand_in.serve(home) as found:
        yield found


@pytest.fixture
def hanok(home: Path) -> Hanok:
    """The command line."""
    return Hanok(home)
