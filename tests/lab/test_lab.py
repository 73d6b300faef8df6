"""Lab hosts, real ones: one boots, one is a clone of it, and nothing is left of either.

A host in software emulation: minutes, and 2 GiB of memory each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.client.client import Client
from hanok.client.remotes import Remote, open_remote
from hanok.errors import CertificateChanged, Conflict, NotFound, Unauthorized
from hanok.lab import plan
from hanok.lab.hosts import Order
from hanok.lab.plan import Shape
from tests.lab.harness import Bench, lab_images, new_bench
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(1800)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]

# An emulated CPU that virtualizes runs a guest with real KVM; emulating a machine in an emulated
# one takes many minutes.
_SHAPE = Shape("kvm")
_GUEST = {"name": "inner", "image": "micro", "memory": "128M", "disk": "1G", "cold": True}
_GUEST_LIMIT = {"ready": {"timeout": 600}}
# What people would do by hand in Dom0: the guest is micro's kernel, which says so and powers off.
_PV_GUEST = r"""
cd /var/lib/hanok/images/*/
printf '%s\n' 'name="pv"' 'type="pv"' "kernel=\"$PWD/vmlinux-cloud\"" \
    "ramdisk=\"$PWD/initrd-cloud\"" 'memory=128' 'extra="console=hvc0 hanok.probe"' > /run/pv.cfg
xl create -c /run/pv.cfg
"""


@pytest.fixture(scope="module")
def images() -> Path:
    return lab_images(*sorted(set(plan.IMAGES.values())))


@pytest.fixture
def bench(images: Path) -> Iterator[Bench]:
    with new_bench(images) as bench:
        yield bench


def test_hosts_of_a_kind_are_apart_and_run_machines(bench: Bench) -> None:
    (first,) = bench.lab.up(Order(("one",), _SHAPE))
    (second,) = bench.lab.up(Order(("two",), _SHAPE))
    boots = bench.boots()
    assert "memory of template" not in (boots["one"] or "")
    assert "memory of template" in (boots["two"] or "")

    # Each has a certificate and a token of its own.
    assert first.fingerprint != second.fingerprint
    assert set(bench.book.load()) == {"one", "two"}
    for url, pin, token, refused in (
        (second.url, second.fingerprint, first.token, Unauthorized),
        (second.url, first.fingerprint, second.token, CertificateChanged),
    ):
        with pytest.raises(refused):
            open_remote(Remote("wrong", url, pin, token)).version()
    there = {name: open_remote(one).host() for name, one in bench.book.load().items()}
    for host in there.values():  # measured before the freeze, and known to the clone
        assert [facts["accelerator"] for facts in host["hypervisors"]] == ["kvm"]
    assert {name: host["name"] for name, host in there.items()} == {"one": "one", "two": "two"}

    # They reach each other by address and by name.
    (address,) = bench.daemon.client.vm("one")["addresses"]
    bench.daemon.sh("two", f"ping -c 1 -w 20 {address}")
    bench.daemon.sh("two", "ping -c 1 -w 20 one")

    # A machine in a machine, without network: its image is there.
    inside = open_remote(second)
    _run(inside)
    assert [vm["name"] for vm in inside.vms()] == ["inner"]
    assert open_remote(first).vms() == []

    with pytest.raises(Conflict):
        bench.lab.up(Order(("one",), _SHAPE))
    assert bench.lab.down(["one"]) == ["one"]
    with pytest.raises(NotFound):
        bench.book.find("one")
    assert open_remote(second).version()["name"] == "hanok"


def test_hosts_below_xen_are_apart_and_run_domains(bench: Bench) -> None:
    (first,) = bench.lab.up(Order(("one",), Shape("xen")))
    (second,) = bench.lab.up(Order(("two",), Shape("xen")))
    boots = bench.boots()
    assert "memory of template" not in (boots["one"] or "")
    assert "memory of template" in (boots["two"] or "")
    assert first.fingerprint != second.fingerprint
    with pytest.raises(Unauthorized):
        open_remote(Remote("wrong", second.url, second.fingerprint, first.token)).version()

    for remote in (first, second):
        name = remote.name
        assert open_remote(remote).host()["name"] == name
        info = bench.daemon.sh(name, "xl info")
        assert re.search(rf"^host +: {name}$", info, re.M)
        assert re.search(r"^xen_version +: 4\.17\.", info, re.M)
        assert re.search(r"^virt_caps +: pv hvm hap", info, re.M)
        assert "Domain-0" in bench.daemon.sh(name, "xl list")
        assert "hanok: this guest runs" in bench.daemon.sh(name, _PV_GUEST, limit=240)
        # Xen's own words and Dom0's come by the same serial line.
        log = b"".join(bench.daemon.client.logs(name, lines=None, follow=False))
        assert (b"(XEN)" in log) == (name == "one")
    machine_ids = {name: bench.daemon.sh(name, "cat /etc/machine-id") for name in ("one", "two")}
    assert machine_ids["one"] != machine_ids["two"]
    bench.daemon.sh("two", "ping -c 1 -w 20 one")


def test_a_host_that_finds_no_room_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(Exception, match="memory"):
        bench.lab.up(Order(("big",), Shape(memory="4T")))
    assert bench.daemon.client.vms() == []
    assert bench.book.load() == {}


def _run(inside: Client) -> None:
    *_, last = inside.follow(inside.run({**_GUEST, **_GUEST_LIMIT})["id"])
    assert last["state"] == "done", last
    told = inside.execute("inner", ["uname", "-n"], stdin=None, timeout=120)
    assert told["exit_status"] == 0
