"""hanokd as a unit of a real systemd: scopes, limits, restarts, upgrades and stops.

Minutes of double emulation: not part of ``make test`` but of ``make test-systemd``.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.daemon.harness import wait_until
from tests.systemd.guest import SystemdHost

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("HANOK_TEST_SYSTEMD"), reason="minutes: make test-systemd runs it"
    ),
]
_RUN = ("run", "micro", "--name", "one", "--memory", "96M", "--ready-timeout", "900")
_CGROUPS = "/sys/fs/cgroup"
_DROP_IN = "/etc/systemd/system/hanokd.service.d/stop.conf"
# Takes 64 MiB more than its cgroup may have, and is what the kernel ends for it.
_HOG = """
echo 1000 >/proc/self/oom_score_adj
echo $$ >{group}/cgroup.procs
exec python3 -c "kept = bytearray({size}); print('kept', len(kept))"
"""


@pytest.fixture(scope="module")
def guest(host: SystemdHost) -> str:
    """The name of a VM that runs there."""
    host.hanok(*_RUN)
    return "one"


@pytest.fixture
def vm(host: SystemdHost, guest: str) -> Any:
    return host.hanok("show", guest)


def _scope(vm: Any) -> str:
    return f"/hanok.slice/hanok-vm-{vm['uuid']}.scope"


def _check_all_scoped(host: SystemdHost) -> None:
    owned = host.owned()
    assert {kind for kind, _ in owned.values()} >= {"vm", "keeper", "dnsmasq"}
    for pid, (kind, group) in owned.items():
        prefix = "0::/hanok.slice/hanok-vm-" if kind == "vm" else "0::/hanok.slice/hanok-net-"
        assert group.startswith(prefix), (pid, kind, group)


def test_every_process_is_in_a_scope_with_limits(host: SystemdHost, vm: Any) -> None:
    _check_all_scoped(host)
    group = _CGROUPS + _scope(vm)
    assert host.cgroup(host.pid(vm["uuid"])) == _scope(vm)
    found = host.sh(f"cd {group} && cat memory.max pids.max cpu.weight memory.current").split()
    memory, tasks, weight, current = map(int, found)
    assert memory == (vm["memory"] + vm["overhead"]) // 4096 * 4096
    assert current < memory
    assert (tasks, weight) == (258, 100)
    limits = vm["limits"]
    assert limits == {
        "unit": _scope(vm).rpartition("/")[2],
        "memory": memory,
        "tasks": tasks,
        "cpu_weight": weight,
        "reason": None,
    }
    assert "oom_kill 0" in host.sh(f"cat {group}/memory.events")


def test_a_vm_survives_a_restart(host: SystemdHost, vm: Any) -> None:
    before = host.pid(vm["uuid"])
    host.systemctl("restart", "hanokd")
    host.wait_answering()
    after = host.hanok("show", "one")
    assert (host.pid(vm["uuid"]), after["state"]) == (before, "ready")
    _check_all_scoped(host)


def test_a_vm_survives_the_daemons_death_and_is_put_into_its_scope(
    host: SystemdHost, vm: Any
) -> None:
    """As one that dies before it has made the scope leaves it: in the daemon's own cgroup."""
    before = host.pid(vm["uuid"])
    host.sh(
        "set -e; main=$(systemctl show --value --property MainPID hanokd)\n"
        f"echo {before} >{_CGROUPS}/system.slice/hanokd.service/cgroup.procs\n"
        "kill -9 $main\n"
        "until new=$(systemctl show --value --property MainPID hanokd);"
        " [ $new != 0 ] && [ $new != $main ]; do sleep 1; done"
    )
    host.wait_answering()
    assert host.pid(vm["uuid"]) == before
    assert host.cgroup(before) == _scope(vm)
    assert host.hanok("show", "one")["limits"] == vm["limits"]
    _check_all_scoped(host)


def test_a_vm_survives_an_upgrade(host: SystemdHost, vm: Any) -> None:
    before = host.pid(vm["uuid"])
    host.sh(
        "set -e; cp -a /srv/hanok /srv/new; rm -rf /srv/hanok; mv /srv/new /srv/hanok\n"
        "systemctl restart hanokd",
        400,
    )
    host.wait_answering()
    after = host.hanok("show", "one")
    assert (host.pid(vm["uuid"]), after["state"]) == (before, "ready")


def test_a_stopped_unit_leaves_vms_by_default(host: SystemdHost, vm: Any) -> None:
    before = host.pid(vm["uuid"])
    host.systemctl("stop", "hanokd")
    assert host.cgroup(before) == _scope(vm)
    host.systemctl("start", "hanokd")
    host.wait_answering()
    assert host.hanok("show", "one")["state"] == "ready"


def test_a_stopped_unit_shuts_guests_down_if_told_to(host: SystemdHost, vm: Any) -> None:
    host.sh(f"printf '[Service]\\nEnvironment=HANOK_ON_STOP=shutdown\\n' >{_DROP_IN}")
    host.sh("systemctl daemon-reload && systemctl restart hanokd", 400)
    host.wait_answering()
    before = host.pid(vm["uuid"])
    host.systemctl("stop", "hanokd")
    assert "vm" not in {kind for kind, _ in host.owned().values()}
    assert host.sh(f"test -e {_CGROUPS}{_scope(vm)} || echo gone").strip() == "gone"
    host.systemctl("start", "hanokd")
    host.wait_answering()
    wait_until(lambda: host.hanok("show", "one")["state"] == "ready", 400, "it is back")
    assert host.pid(vm["uuid"]) != before
    _check_all_scoped(host)


def test_memory_beyond_the_limit_is_refused(host: SystemdHost, vm: Any) -> None:
    """The last one: when the kernel ends a process for its memory, systemd ends the scope."""
    size = vm["limits"]["memory"] + (64 << 20)
    script = _HOG.format(group=_CGROUPS + _scope(vm), size=size)
    told = host.sh(f"cat >/run/hog <<'END'\n{script}\nEND\nsh /run/hog; echo status $?", 200)
    assert "status 137" in told
    said = host.sh(f"journalctl --no-pager -b -u {_scope(vm).rpartition('/')[2]}")
    assert "killed by the OOM killer" in said
    wait_until(
        lambda: host.hanok("show", "one")["state"] in ("stopped", "failed"),
        300,
        "it is seen to end",
    )
