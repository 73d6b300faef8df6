"""Lab hosts, real ones: one boots, one is a clone of it, and nothing is left of either.

A host in software emulation: minutes, and 2 GiB of memory each.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hanok.client.client import Client
from hanok.client.remotes import Remote, RemoteBook, open_remote
from hanok.client.wire import OperationWire
from hanok.errors import CertificateChanged, Conflict, NotFound, Unauthorized
from hanok.images.library import ImageLibrary
from hanok.lab import plan
from hanok.lab.hosts import Lab, Order
from hanok.lab.plan import Shape
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES
from tests.daemon.harness import Daemon, new_daemon
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


class Bench:
    """A local daemon, remotes of its own, and the lab of both."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.book = RemoteBook(folder)
        self.lab = Lab(daemon.client, self.book, self._follow, print)

    def _follow(self, operations: Sequence[OperationWire]) -> list[OperationWire]:
        return [list(self.daemon.client.follow(one["id"]))[-1] for one in operations]

    def boots(self) -> dict[str, str | None]:
        """Return how each lab host came up."""
        client = self.daemon.client
        return {vm["name"]: client.vm(vm["name"])["boot"] for vm in client.vms()}


@pytest.fixture(scope="module")
def images() -> Path:
    """The folder of images, with that of lab hosts in it."""
    folder = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    library = ImageLibrary(folder, SystemRunner(), Account(BUILD_UID, BUILD_UID))
    asyncio.run(library.ensure(plan.IMAGE, (), lambda message, fraction: None))
    return folder


@pytest.fixture
def bench(images: Path) -> Iterator[Bench]:
    """A lab without hosts; at the end neither hosts, templates, processes nor files are left."""
    with (
        tempfile.TemporaryDirectory(prefix="hk-config-", dir="/tmp") as folder,
        new_daemon("qemu", images) as daemon,
    ):
        bench = Bench(daemon, Path(folder))
        yield bench
        bench.lab.down(bench.lab.all_names())
        bench.lab.clean()
        assert daemon.client.templates() == []
        assert bench.book.load() == {}


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
