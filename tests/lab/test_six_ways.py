"""One image, six ways: QEMU full and para, KVM in a lab host, Xen PV, PVH and HVM in another.

Each with its disk, network, console and agent, asked of the guest itself.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from hanok.client.client import Client
from hanok.client.remotes import open_remote
from hanok.lab import plan
from hanok.lab.hosts import Order
from hanok.lab.plan import Shape
from tests.e2e.conftest import use_console
from tests.lab.harness import Bench, lab_images, new_bench
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(1800)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]

_SERVE = """#!/bin/sh
mkdir -p /srv
hostname > /srv/index.html
exec httpd -f -p 80 -h /srv
"""
_GUEST = {"image": "micro", "memory": "128M", "disk": "512M", "cold": True}
_READY = {"ready": {"url": "http://guest/", "timeout": 600}}
# Written through to the disk, read back from it.
_DISK = """
dd if=/dev/urandom of=/var/tmp/a bs=64k count=16 2>/dev/null
sync && echo 3 > /proc/sys/vm/drop_caches
test $(stat -c %s /var/tmp/a) = 1048576 && df -k / | awk 'END {print ($2 > 400000)}'
"""


@dataclass(frozen=True)
class Way:
    """A way to run a guest: on which host, in which mode, and what it then finds."""

    host: str
    mode: str
    accelerator: str
    drivers: tuple[str, str]


WAYS = {
    "qemu-full": Way("local", "full", "tcg", ("ahci", "e1000e")),
    "qemu-para": Way("local", "para", "tcg", ("virtio_blk", "virtio_net")),
    "kvm-para": Way("kvm", "para", "kvm", ("virtio_blk", "virtio_net")),
    "xen-para": Way("xen", "para", "xen", ("vbd", "vif")),
    "xen-hybrid": Way("xen", "hybrid", "xen", ("vbd", "vif")),
    "xen-full": Way("xen", "full", "xen", ("ahci", "e1000e")),
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with new_bench(lab_images(*sorted(set(plan.IMAGES.values())))) as bench:
        yield bench


def _client(bench: Bench, host: str) -> Client:
    """Return a client of the host, which is made when it is not there yet."""
    if host == "local":
        return bench.daemon.client
    if host not in bench.book.load():
        bench.lab.up(Order((host,), Shape(host), cold=True))
    return open_remote(bench.book.find(host))


def _environ(bench: Bench, host: str) -> Mapping[str, str]:
    own = {
        "HANOK_HOME": str(bench.daemon.home),
        "HANOK_CONFIG": str(bench.book.folder),
        "HANOK_REMOTE": host,
    }
    return {**os.environ, **own}


@pytest.mark.parametrize("name", WAYS)
def test_one_image_boots_this_way(bench: Bench, name: str) -> None:
    way = WAYS[name]
    client = _client(bench, way.host)
    wanted = {**_GUEST, **_READY, "name": name, "mode": way.mode, "user_data": _SERVE}
    _done(client, client.run(wanted)["id"])  # ready: its network serves what its seed told it
    found = client.vm(name)
    assert (found["state"], found["mode"], found["accelerator"]) == (
        "ready",
        way.mode,
        way.accelerator,
    )
    assert found["image_id"] == bench.daemon.client.image("micro")["id"]
    evidence = found["evidence"]
    assert evidence is not None
    assert (evidence["disk_driver"], evidence["nic_driver"]) == way.drivers
    assert _said(client, name, "hostname") == name
    assert _said(client, name, _DISK) == "1"
    use_console(name, _environ(bench, way.host))
    _done(client, client.delete(name, force=True)["id"])


def _done(client: Client, operation: str) -> None:
    *_, last = client.follow(operation)
    assert last["state"] == "done", str(last["error"])


def _said(client: Client, name: str, script: str) -> str:
    told = client.execute(name, ["sh", "-c", script], stdin=None, timeout=120)
    assert told["exit_status"] == 0, told
    return base64.b64decode(told["stdout"]).decode().strip()
