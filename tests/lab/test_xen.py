"""A real Type 1 host and a guest of each mode on it, in every run of the suite.

Xen in software emulation wants all of this machine: ``make test`` runs this one by itself.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.client.client import Client
from hanok.client.remotes import open_remote
from hanok.hypervisors.xen.confinement import Confinement
from hanok.lab import plan
from hanok.lab.hosts import Order
from hanok.lab.plan import Shape
from hanok.units import MIB
from tests.lab.harness import Bench, lab_images, new_bench
from tests.machine import patient

pytestmark = [pytest.mark.vm, pytest.mark.alone, pytest.mark.timeout(patient(1800))]

_GUEST = {"image": "micro", "memory": "128M", "disk": "512M", "cold": True}
_READY = {"ready": {"timeout": 600}}
_DOMAIN_TYPES = {"para": "pv", "hybrid": "pvh", "full": "hvm"}
# Linux says what it runs on; nothing in a guest of mode full has found Xen.
_GUEST_TYPES = {"para": "PV", "hybrid": "PVH", "full": ""}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with new_bench(lab_images(plan.IMAGES["xen"])) as bench:
        yield bench


@pytest.fixture(scope="module")
def inside(bench: Bench) -> Client:
    """The daemon in Dom0 of a host."""
    (remote,) = bench.lab.up(Order(("one",), Shape("xen"), cold=True))
    return open_remote(remote)


def test_a_daemon_in_dom0_finds_xen(inside: Client) -> None:
    (facts,) = inside.host()["hypervisors"]
    assert (facts["name"], facts["type"]) == ("xen", 1)
    assert facts["confinement"] == Confinement(Path("/")).summary


@pytest.mark.parametrize("mode", _GUEST_TYPES)
def test_a_daemon_in_dom0_runs_domains_of_each_mode(
    bench: Bench, inside: Client, mode: str
) -> None:
    (emulator,) = bench.daemon.client.host()["hypervisors"]
    if mode != "para" and plan.loses_page_faults(emulator["accelerator"], emulator["version"]):
        pytest.skip(f"QEMU {emulator['version']} loses page faults of nested guests: docs/lab.md")
    name = f"inner-{mode}"
    _done(inside, inside.run({**_GUEST, **_READY, "name": name, "mode": mode})["id"])
    found = inside.vm(name)
    assert (found["hypervisor"], found["mode"], found["state"]) == ("xen", mode, "ready")
    assert _said(inside, name, "cat /sys/hypervisor/guest_type || :") == _GUEST_TYPES[mode]
    assert _said(inside, name, "hostname") == name
    assert found["evidence"] is not None
    assert found["evidence"]["domain_type"] == _DOMAIN_TYPES[mode]
    assert found["backend_seconds"] is not None
    assert found["backend_seconds"] > 0
    assert found["backend_memory"] is not None
    assert found["backend_memory"] > MIB
    print(f"{mode}: ready after {found['ready_seconds']:.1f} s", flush=True)
    _done(inside, inside.delete(name, force=True)["id"])
    left = bench.daemon.sh("one", "xl list | tail -n +3; ls /var/lib/hanok/vms")
    assert left.strip() == ""


def _done(inside: Client, operation: str) -> None:
    *_, last = inside.follow(operation)
    assert last["state"] == "done", str(last["error"])


def _said(inside: Client, name: str, script: str) -> str:
    told = inside.execute(name, ["sh", "-c", script], stdin=None, timeout=120)
    return base64.b64decode(told["stdout"]).decode().strip()
