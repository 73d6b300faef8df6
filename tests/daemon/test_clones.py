"""Templates and clones with real guests: identity, sharing, the whole life, damage, crashes."""

from __future__ import annotations

import contextlib
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.errors import Conflict, HanokError, HostError, InvalidInput, NotFound, Unsupported
from hanok.proc import find_owned
from hanok.services.failpoints import CLONE_STEPS, TEMPLATE_STEPS
from tests.daemon.harness import Daemon, wait_until

pytestmark = pytest.mark.vm

IDENTITY = """
hostname
cat /etc/machine-id /sys/class/dmi/id/product_uuid /proc/sys/kernel/random/boot_id
cat /sys/class/net/eth0/address
ip -4 addr show dev eth0 | sed -n 's/^ *inet \\([0-9.]*\\).*/\\1/p'
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'; echo
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'; echo
"""


@pytest.fixture(scope="module")
def base(qemu_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with a VM named base and its template named t."""
    qemu_daemon.run("base", memory="128M", disk="256M")
    qemu_daemon.sh("base", "echo frozen > /run/mark; echo kept > /root/mark; sync")
    qemu_daemon.freeze("t", "base")
    yield qemu_daemon
    qemu_daemon.empty()


@pytest.fixture
def daemon(base: Daemon) -> Iterator[Daemon]:
    """The same, without clones at the end of each test."""
    yield base
    for vm in base.client.vms():
        if vm["name"] != "base":
            base.done(base.client.delete(vm["name"], force=True))
    for template in base.client.templates():
        if template["name"] != "t":
            base.client.delete_template(template["name"])


def memory_inode(daemon: Daemon, name: str) -> int:
    """Return the inode of the frozen memory that a clone's process has open."""
    uuid = daemon.client.vm(name)["uuid"]
    (process,) = [p for p in find_owned(daemon.home, "vm") if p.owner.ident == uuid]
    folder = Path(f"/proc/{process.pid}/fd")
    found = [
        entry
        for entry in folder.iterdir()
        if (name := str(entry.readlink())).startswith("/memfd:hanok-") and "hanok-log" not in name
    ]
    inodes = {entry.stat().st_ino for entry in found}
    assert len(inodes) == 1, found
    return inodes.pop()


def test_clones_are_somebody_else(daemon: Daemon) -> None:
    names = daemon.clone("t", "web-{n}", count=5)
    assert names == [f"web-{number}" for number in range(1, 6)]
    seen: set[str] = set()
    for name in ("base", *names):
        host, *own = daemon.sh(name, IDENTITY).split()
        vm = daemon.client.vm(name)
        assert host == name
        assert own[0] == vm["uuid"].replace("-", "")
        assert own[3:5] == [vm["networks"][0]["mac"], vm["addresses"][0]]
        if name != "base":
            assert own[1] == vm["uuid"]
        assert len(own) == 7
        assert not seen & set(own), "two machines share something that must be their own"
        seen |= set(own)


def test_clones_go_on_where_the_template_was_frozen(daemon: Daemon) -> None:
    daemon.clone("t", "c")
    assert daemon.sh("c", "cat /run/mark /root/mark").split() == ["frozen", "kept"]
    assert daemon.sh("base", "cat /run/mark").strip() == "frozen"
    vm = daemon.client.vm("c")
    assert (vm["clone"], vm["template"]) == ("instant", "t")
    assert "template t" in (vm["boot"] or "")
    assert vm["evidence"] == daemon.client.vm("base")["evidence"]


def test_a_clones_clock_is_right(daemon: Daemon) -> None:
    daemon.clone("t", "c")
    assert_its_clock_is_right(daemon, "c")


def test_the_clock_is_right_after_a_pause(daemon: Daemon) -> None:
    daemon.freeze("t2", "base")
    assert_its_clock_is_right(daemon, "base")
    daemon.done(daemon.client.change("base", "pause"))
    paused = time.time()
    wait_until(lambda: time.time() > paused + 3, 10, "three seconds have passed")
    daemon.done(daemon.client.change("base", "resume"))
    assert_its_clock_is_right(daemon, "base")


def assert_its_clock_is_right(daemon: Daemon, name: str) -> None:
    """See that a guest's clock is this host's, to a second."""
    before = time.time()
    told = int(daemon.sh(name, "date +%s"))
    assert before - 1 <= told <= time.time() + 1


def test_clones_reach_each_other_by_name(daemon: Daemon) -> None:
    daemon.clone("t", "c{n}", count=2)
    daemon.sh("c1", "ping -c 1 -W 5 c2")
    daemon.sh("c2", "ping -c 1 -W 5 base")


def test_a_clone_lives_like_any_vm(daemon: Daemon) -> None:
    (name,) = daemon.clone("t", "c")
    identity = daemon.sh(name, IDENTITY).split()[:5]
    daemon.done(daemon.client.change(name, "pause"))
    assert daemon.client.vm(name)["state"] == "paused"
    daemon.done(daemon.client.change(name, "resume"))
    daemon.sh(name, "echo mine > /root/own; sync")
    daemon.done(daemon.client.change(name, "stop", {"force": False, "timeout": 60}))
    daemon.done(daemon.client.change(name, "start"))
    assert daemon.sh(name, "cat /root/own /root/mark").split() == ["mine", "kept"]
    booted = daemon.sh(name, IDENTITY).split()[:6]
    assert booted[:3] == identity[:3]
    assert booted[4:6] == daemon.sh(name, IDENTITY).split()[4:6]
    assert daemon.client.vm(name)["boot"] == "booted"


def test_a_clones_port_is_published(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    daemon.clone("t", "c", publish=[f"{port}:7000"])
    daemon.sh("c", "httpd -p 7000 -h /root")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/mark", timeout=30) as answer:
        assert answer.read() == b"kept\n"
    with pytest.raises(Conflict, match=str(port)):
        daemon.clone("t", "d", publish=[f"{port}:7000"])


def test_a_template_of_a_clone(daemon: Daemon) -> None:
    daemon.clone("t", "c")
    daemon.sh("c", "echo second > /run/second")
    daemon.freeze("t2", "c")
    daemon.clone("t2", "d{n}", count=2)
    assert daemon.sh("d2", "cat /run/mark /run/second").split() == ["frozen", "second"]
    assert daemon.sh("c", "cat /run/second").strip() == "second"


def test_linked_clones_boot_from_the_templates_disk(daemon: Daemon) -> None:
    daemon.clone("t", "c", kind="linked")
    assert daemon.sh("c", "cat /root/mark; ls /run/mark 2>&1 || :").startswith("kept")
    host, machine_id, *_ = daemon.sh("c", IDENTITY).split()
    assert (host, machine_id) == ("c", daemon.client.vm("c")["uuid"].replace("-", ""))
    with pytest.raises(Conflict, match="c"):
        daemon.client.delete_template("t")


def test_full_clones_need_no_template(daemon: Daemon) -> None:
    daemon.freeze("t2", "base")
    daemon.clone("t2", "c", kind="full")
    daemon.client.delete_template("t2")
    daemon.done(daemon.client.change("c", "stop", {"force": True}))
    daemon.done(daemon.client.change("c", "start"))
    assert daemon.sh("c", "cat /root/mark").strip() == "kept"


def test_a_template_in_use_is_not_deleted(daemon: Daemon) -> None:
    daemon.clone("t", "c{n}", count=2)
    with pytest.raises(Conflict, match="c1, c2"):
        daemon.client.delete_template("t")
    daemon.done(daemon.client.change("c1", "stop", {"force": True}))
    with pytest.raises(Conflict, match="c1, c2"):
        daemon.client.delete_template("t")


def test_an_image_under_a_template_is_not_deleted(daemon: Daemon) -> None:
    with pytest.raises(Conflict, match="template t"):
        daemon.client.delete_image(daemon.client.vm("base")["image_id"] or "")


def test_clones_share_their_memory_also_after_the_daemon_died(daemon: Daemon) -> None:
    daemon.clone("t", "c{n}", count=2)
    shared = memory_inode(daemon, "c1")
    assert memory_inode(daemon, "c2") == shared
    daemon.kill()
    daemon.start()
    assert daemon.sh("c1", "hostname").strip() == "c1"
    daemon.clone("t", "d")
    assert memory_inode(daemon, "d") == shared


def test_a_template_survives_its_source_and_every_clone(daemon: Daemon) -> None:
    daemon.run("other", memory="128M", disk="256M")
    daemon.freeze("t2", "other")
    daemon.done(daemon.client.delete("other", force=True))
    daemon.clone("t2", "c")
    daemon.done(daemon.client.delete("c", force=True))
    daemon.kill()
    daemon.start()
    daemon.clone("t2", "c")
    assert daemon.sh("c", "hostname").strip() == "c"


@pytest.mark.parametrize("file", ["memory", "state", "disk.qcow2"])
def test_a_damaged_template_is_refused(daemon: Daemon, file: str) -> None:
    daemon.stop()
    (path,) = daemon.home.glob(f"templates/*/{file}")
    whole = path.read_bytes()
    place = re.search(rb"[^\0]", whole[len(whole) // 2 :])
    assert place is not None
    at = len(whole) // 2 + place.start()
    with open(path, "r+b") as damaged:
        damaged.seek(at)
        damaged.write(bytes([whole[at] ^ 0xFF]))
    daemon.start()
    try:
        with pytest.raises(HostError, match="damaged"):
            daemon.clone("t", "c")
        with pytest.raises(NotFound):
            daemon.client.vm("c")
    finally:
        with open(path, "r+b") as repaired:
            repaired.seek(at)
            repaired.write(whole[at : at + 1])
    daemon.clone("t", "c")


def test_what_cannot_be_is_refused(daemon: Daemon) -> None:
    with pytest.raises(Conflict, match="base"):
        daemon.clone("t", "base")
    with pytest.raises(InvalidInput, match="network"):
        daemon.clone("t", "c", networks=[])
    with pytest.raises(InvalidInput):
        daemon.client.clone({"template": "t", "name": "c", "count": 2})
    with pytest.raises(NotFound):
        daemon.clone("missing", "c")
    with pytest.raises(Conflict, match="exists"):
        daemon.freeze("t", "base")
    daemon.run("full", mode="full", memory="128M", disk="256M")
    with pytest.raises(Unsupported, match="mode full"):
        daemon.freeze("t2", "full")


def test_a_cancelled_clone_leaves_nothing(daemon: Daemon) -> None:
    operation = daemon.client.clone({"template": "t", "name": "c-{n}", "count": 12})
    for seen in daemon.client.follow(operation["id"]):
        if seen["fraction"]:
            break
    daemon.client.cancel(operation["id"])
    assert daemon.client.operation(operation["id"])["state"] == "cancelled"
    assert [vm["name"] for vm in daemon.client.vms()] == ["base"]


def settled(daemon: Daemon) -> bool:
    """Whether no operation is under way any more."""
    final = ("done", "failed", "cancelled")
    return all(operation["state"] in final for operation in daemon.client.operations())


@pytest.mark.parametrize("step", CLONE_STEPS)
def test_clones_survive_a_crash(daemon: Daemon, step: str) -> None:
    daemon.stop()
    daemon.start(failpoint=step)
    with contextlib.suppress(HanokError):  # it may die before it has answered
        daemon.client.clone({"template": "t", "name": "c{n}", "count": 3})
    daemon.wait_died()
    daemon.start()
    wait_until(lambda: settled(daemon), 120, "the clones are finished")
    names = [vm["name"] for vm in daemon.client.vms()]
    assert names == ["base", "c1", "c2", "c3"]
    for name in names:
        assert daemon.client.vm(name)["state"] == "ready"
        assert daemon.sh(name, "hostname; cat /run/mark").split() == [name, "frozen"]


@pytest.mark.parametrize("step", TEMPLATE_STEPS)
def test_templates_survive_a_crash(daemon: Daemon, step: str) -> None:
    daemon.stop()
    daemon.start(failpoint=step)
    with contextlib.suppress(HanokError):
        daemon.client.create_template("t2", "base")
    daemon.wait_died()
    daemon.start()
    wait_until(lambda: settled(daemon), 120, "the template is finished")
    assert daemon.client.template("t2")["state"] == "ready"
    assert daemon.sh("base", "cat /run/mark").strip() == "frozen"
    daemon.clone("t2", "c")
    assert daemon.sh("c", "cat /run/mark").strip() == "frozen"
