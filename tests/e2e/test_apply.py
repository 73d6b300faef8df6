"""A small plan becomes real VMs, one of them gets load, and the forecast is judged by it.

The load is what that VM gets of this host: beside another test's hundred clones too little to tell.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.consolidation.test_measured import forecast_plan
from tests.daemon.harness import Daemon
from tests.e2e.conftest import Cli

pytestmark = [pytest.mark.vm, pytest.mark.alone]

IDLE, BUSY = "a", "b"


def test_a_plan_is_applied_loaded_and_compared(hanok: Cli, daemon: Daemon, tmp_path: Path) -> None:
    found = forecast_plan(mean=0.05, high=0.1)
    size = {"vcpus": 1, "memory": 128 * 2**20, "disk": 2**30}
    vms = tuple(vm.model_copy(update=size) for vm in found.vms)
    (tmp_path / "plan.json").write_text(found.model_copy(update={"vms": vms}).model_dump_json())
    where = tmp_path / "where.yaml"
    where.write_text("hosts: {h1: local}\nimage: micro\n")
    apply = ("apply", str(tmp_path), "--map", str(where))
    assert hanok.json(*apply)["made"] == [IDLE, BUSY]
    assert hanok.json(*apply)["made"] == []
    assert [vm["cpus"] for vm in hanok.json("list")] == [1, 1]
    assert int(daemon.sh(IDLE, "cat /sys/block/vda/size")) * 512 == size["disk"]

    daemon.sh(BUSY, "(while :; do :; done) >/dev/null 2>&1 &")
    compare = ("plan", "compare", str(tmp_path))
    done = hanok.json(*compare, "--for", "6s", "--every", "2s")
    (host,) = done["hosts"]
    assert (host["verdict"], host["source"], host["measured_vms"]) == ("above", "vms", 2)
    idle, busy = done["vms"]
    assert busy["mean"] > 2 * idle["mean"]
    assert 0 < idle["memory_used"] < size["memory"]
    usage = json.loads((tmp_path / "measured" / f"{BUSY}.usage.json").read_text())
    assert len(usage["samples"]["cpu"]) == 3
    again = hanok.ok(*compare, "--usage", str(tmp_path / "measured"))
    assert "h1 was above its forecast" in again
    print(again)
