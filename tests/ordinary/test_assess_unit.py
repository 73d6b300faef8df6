"""packaging/hanok-assess.service: systemd takes it, and its command does what it is to do.

The command is run as the unit has it, from /opt/hanok into /var/lib/hanok-assess, as a user without
a name and without capabilities, on a file system that is read-only but for that folder: in a mount
namespace of its own, where both paths are scratch folders.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from tests.daemon.harness import wait_until
from tests.machine import patient

pytestmark = pytest.mark.vm

UNIT = Path(__file__).parents[2] / "packaging/hanok-assess.service"
DYNAMIC = 61_234
"""One of the uids that DynamicUser=yes gives: it has no name."""
SCENE = """
set -eu
mount -t tmpfs -o mode=755 none /opt
mkdir -p /opt/hanok/.venv
mount --bind "$1" /opt/hanok/.venv
mount -t tmpfs -o mode=755 none /var/lib
mkdir /var/lib/hanok-assess
mount --bind "$2" /var/lib/hanok-assess
mount -o remount,bind,ro /
shift 2
umask 0022
cd /
exec setpriv --reuid {uid} --regid {uid} --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


def unit() -> RawConfigParser:
    """Return the unit's sections."""
    parser = RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def start(venv: Path, folder: Path, words: list[str]) -> subprocess.Popen[str]:
    """Start ``words`` as the unit's command."""
    scene = SCENE.format(uid=DYNAMIC)
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", scene, "sh", str(venv), str(folder), *words],
        env={"PATH": "/usr/bin:/bin", "HOME": "/", "STATE_DIRECTORY": "/var/lib/hanok-assess"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What StateDirectory= makes: a folder of the unit's user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    made = tmp_path / "state"
    made.mkdir()
    os.chown(made, DYNAMIC, DYNAMIC)
    return made


def test_systemd_takes_the_unit(venv: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    text = UNIT.read_text().replace("/opt/hanok/.venv", str(venv))  # as its head says
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def _wait_noted(process: subprocess.Popen[str], folder: Path) -> None:
    journal = folder / "server.usage.journal"

    def noted() -> bool:
        lines = journal.read_text().splitlines() if journal.exists() else []
        return process.poll() is not None or len(lines) > 2

    wait_until(noted, 60, "intervals are noted")


def test_its_command_measures_as_its_user_and_ends_in_order(venv: Path, folder: Path) -> None:
    service = unit()["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[words.index("--out") + 1] == f"/var/lib/{service['StateDirectory']}"
    # A sixtieth of both times, all else as it is written.
    words[words.index("--interval") + 1], words[words.index("--keep") + 1] = "1s", "12h"
    for number in (1, 2):  # and once more, as after a restart of the server
        process = start(venv, folder, [*words, "--name", "server"])
        try:
            _wait_noted(process, folder)
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=patient(30))
        finally:
            process.kill()
        allowed = {0, *map(int, service.get("SuccessExitStatus", "").split())}
        assert process.returncode in allowed, (process.returncode, errors)
        assert "intervals of 1 s measured" in output, (number, output, errors)
    file = folder / "server.usage.json"
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (DYNAMIC, 0o644)
    found = json.loads(file.read_text())
    assert found["sizes"]["cores"] == os.cpu_count()
    assert set(found["samples"]) >= {"cpu", "memory", "disk_read", "network_receive"}
    assert [value for value in found["samples"]["memory"] if value]
