"""Real guests of Xen from the user's side, in its Dom0: the thin path in each mode."""

from __future__ import annotations

import os

import pytest

from hanok.hypervisors.xen.toolstack import is_dom0
from tests.e2e.conftest import Cli, use_console
from tests.e2e.dom0 import device_model, status_of, traces
from tests.e2e.web import SERVE, fetch

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not is_dom0(), reason="Xen is driven from its Dom0"),
]

# What Xen says, what the guest's kernel runs on, and what it said at its boot.
SEEN = {
    "para": ("pv", "PV", "Xen"),
    "hybrid": ("pvh", "PVH", "Xen PVH"),
    "full": ("hvm", None, "bare hardware"),
}
EXPECTED = {
    "para": ("vbd", "vif"),
    "hybrid": ("vbd", "vif"),
    "full": ("ahci", "e1000e"),
}


def check_confined(uuid: str, mode: str, uid: int) -> None:
    """See in /proc that the device model is kept from Dom0 as docs/xen.md says."""
    place = device_model(uuid)
    seen = status_of(place.pid)
    assert seen["NoNewPrivs"] == "1"
    if mode == "full":
        assert seen["Uid"].split() == [str(uid)] * 4
        assert [seen[name] for name in ("CapEff", "CapPrm", "CapInh")] == ["0" * 16] * 3
    else:
        assert [seen[name] for name in ("CapEff", "CapBnd")] == [f"{1 << 1:016x}"] * 2


@pytest.mark.parametrize("mode", EXPECTED)
def test_a_guest_lives_outlives_its_daemon_and_leaves_nothing(xen: Cli, mode: str) -> None:
    before = traces()
    script = xen.daemon.home / "serve"
    script.write_text(SERVE)
    xen.ok(
        *("run", "micro", "--name", mode, "--mode", mode, "--memory", "128M", "--disk", "256M"),
        *("--publish", "18090:80", "--user-data", str(script), "--ready-url", "http://guest/"),
    )
    shown = xen.json("show", mode)
    assert shown["hypervisor"] == "xen"
    evidence = shown["evidence"]
    assert (evidence["disk_driver"], evidence["nic_driver"]) == EXPECTED[mode]
    assert bool(evidence["xenbus"]) == (mode != "full")
    assert (evidence["domain_type"], evidence["guest_type"], evidence["boot_log"]) == SEEN[mode]
    assert shown["backend_seconds"] > 0
    assert shown["backend_memory"] > 0
    owner = (xen.daemon.home / "vms" / shown["uuid"] / "m").stat().st_uid
    check_confined(shown["uuid"], mode, owner)
    assert fetch(18090) == mode
    assert xen.ok("exec", mode, "--", "hostname").strip() == mode
    xen.daemon.kill()
    xen.daemon.start()
    assert xen.ok("exec", mode, "--", "hostname").strip() == mode
    environ = {**os.environ, "HANOK_HOME": str(xen.daemon.home), "HANOK_REMOTE": "local"}
    use_console(mode, environ)
    xen.ok("pause", mode)
    xen.ok("resume", mode)
    xen.ok("stop", mode)
    xen.ok("delete", mode)
    assert traces() == before
