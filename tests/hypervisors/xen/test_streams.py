"""Streams into domains: who serves them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hanok.hypervisors.xen.streams import consoles_served
from hanok.hypervisors.xen.toolstack import is_dom0
from tests.daemon.harness import wait_until


@pytest.mark.skipif(is_dom0(), reason="the real one runs there")
def test_consoles_are_served_while_xenconsoled_runs(tmp_path: Path) -> None:
    assert not consoles_served()
    sleep = shutil.which("sleep")
    assert sleep is not None
    daemon = tmp_path / "xenconsoled"
    daemon.symlink_to(sleep)
    with subprocess.Popen([daemon, "60"]) as process:
        try:
            wait_until(consoles_served, 10, "a process of that name is seen")
        finally:
            process.kill()
    assert not consoles_served()
