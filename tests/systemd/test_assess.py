"""packaging/hanok-assess.service as a unit of a real systemd.

Minutes: not part of ``make test`` but of ``make test-systemd``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.harness import wait_until
from tests.nested.host import PYTHON
from tests.nested.payload import CHECKOUT
from tests.systemd.guest import SystemdHost

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("HANOK_TEST_SYSTEMD"), reason="minutes: make test-systemd runs it"
    ),
]
_UNIT = "hanok-assess"
_FOLDER = f"/var/lib/{_UNIT}"
_COMMAND = f"{PYTHON} -P -m hanok.cli assess"
# As the unit's head says; a minute is a second here, and so is the wait before it starts again.
_INSTALL = f"""
set -eu
sed -e 's|/opt/hanok/.venv/bin/hanok assess|{_COMMAND}|' -e 's|--interval 60s|--interval 1s|' \\
  -e 's|--keep 30d|--keep 12h|' -e 's|^RestartSec=60|RestartSec=1|' \\
  /{CHECKOUT}/packaging/{_UNIT}.service >/etc/systemd/system/{_UNIT}.service
systemctl daemon-reload
systemctl enable --now {_UNIT}
"""
_REMOVE = f"""
systemctl disable --now {_UNIT}
rm -rf /etc/systemd/system/{_UNIT}.service {_FOLDER} /var/lib/private/{_UNIT}
systemctl daemon-reload
"""


@pytest.fixture(scope="module")
def measured(host: SystemdHost) -> Iterator[SystemdHost]:
    """The host, with the unit running in it."""
    host.sh(_INSTALL, 400)
    yield host
    host.sh(_REMOVE, 400)


def _property(host: SystemdHost, name: str) -> str:
    return host.sh(f"systemctl show --value --property {name} {_UNIT}").strip()


def _noted(host: SystemdHost) -> int:
    """Return how many lines its journals have."""
    return int(host.sh(f"cat {_FOLDER}/*.usage.journal 2>/dev/null | wc -l"))


def _wait_noted(host: SystemdHost, more_than: int) -> None:
    wait_until(lambda: _noted(host) > more_than, 120, "intervals are noted")


def test_it_measures_as_a_nameless_user_within_its_limits(measured: SystemdHost) -> None:
    _wait_noted(measured, 2)
    main = int(_property(measured, "MainPID"))
    status = measured.sh(f"cat /proc/{main}/status").splitlines()
    found = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    user = int(found["Uid"].split()[0])
    assert 61_184 <= user <= 65_519  # DynamicUser=
    assert (int(found["CapEff"], 16), int(found["CapBnd"], 16)) == (0, 0)
    assert found["NoNewPrivs"] == "1"
    group = f"/sys/fs/cgroup{measured.cgroup(main)}"
    limits = measured.sh(f"cat {group}/memory.max {group}/pids.max {group}/cpu.max").split()
    assert limits == [str(256 << 20), "16", "20000", "100000"]


def test_killed_it_starts_again_and_goes_on(measured: SystemdHost) -> None:
    _wait_noted(measured, 0)
    before = _property(measured, "MainPID")
    measured.sh(f"systemctl kill --signal=KILL {_UNIT}")
    wait_until(
        lambda: _property(measured, "MainPID") not in ("0", before), 120, "systemd starts it again"
    )
    assert _property(measured, "NRestarts") == "1"
    _wait_noted(measured, _noted(measured) + 1)


def test_stopped_it_leaves_one_whole_file(measured: SystemdHost) -> None:
    _wait_noted(measured, 2)
    measured.systemctl("stop", _UNIT)
    assert (_property(measured, "ActiveState"), _property(measured, "Result")) == (
        "inactive",
        "success",
    )
    shown = measured.sh(f"{_COMMAND} show {_FOLDER} --json")
    servers: list[Any] = json.loads(shown)
    assert [server["server"] for server in servers] == [measured.sh("uname -n").strip()]
    assert servers[0]["intervals"] >= 3
    measured.systemctl("start", _UNIT)
    _wait_noted(measured, 1)
