"""Streams into domains: who serves them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hanok.hypervisors.xen.streams import consoles_served
from hanok.hypervisors.xen.toolstack import is_dom0
from tests.daemon.harness import wait_until


@pytest.mark.skipif(is_dom0(), reason="the real one runs there")
@pytest.mark.parametrize("told", [True, False])
def test_consoles_are_served_while_xenconsoled_runs(
    tmp_path: Path, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it has written its number; one of before may be another's now."""
    numbers = tmp_path / "xenconsoled.pid"
    assert not consoles_served(numbers)
    numbers.write_text("1\n")
    assert not consoles_served(numbers)
    sleep = shutil.which("sleep")
    assert sleep is not None
    daemon = tmp_path / "xenconsoled"
    daemon.symlink_to(sleep)
    with subprocess.Popen([daemon, "60"]) as process:
        try:
            if told:
                numbers.write_text(f"{process.pid}\n")
            wait_until(lambda: consoles_served(numbers), 10, "a process of that name is seen")
            if told:  # no other process is looked at
                with monkeypatch.context() as blind:
                    blind.setattr(os, "scandir", lambda _path: iter(()))
                    assert consoles_served(numbers)
        finally:
            process.kill()
    assert not consoles_served(numbers)
