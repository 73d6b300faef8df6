"""A full disk under real guests: they pause, nothing is lost, they go on once there is room."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hanok.errors import DiskFull, HanokError
from hanok.model.image import Image
from hanok.units import MIB
from tests.daemon.harness import Daemon, wait_until
from tests.full import Small, small_disk
from tests.machine import patient, put_verdict

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        not Path("/dev/loop-control").exists(), reason="mounts a file as a disk, by loop devices"
    ),
]

# What the guest writes is known, so that what is read later can be judged.
WRITE = """
head -c $((40 * 1048576)) /dev/urandom > /tmp/x && cat /tmp/x > /root/big && sync &&
sha256sum /tmp/x | sed s,/tmp/x,/root/big, > /root/sum && sync && rm /tmp/x && echo written
"""
CHECK = """
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c /root/sum
dmesg | grep -ci 'ext4-fs error' || true
"""


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon whose VMs are on an ext4 of their own, and two guests."""
    _, folder = micro_image
    home = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    home.chmod(0o711)
    put_verdict(home)
    file = home.with_suffix(".img")
    started = Daemon(home, "qemu", folder.parent, {"HANOK_RESERVE_DISK": "1M"})
    try:
        with small_disk(home / "vms", file, 768 * MIB):
            try:
                started.start()
                for name in ("writer", "other"):
                    started.run(name, disk="256M")
                yield started
                started.empty()
                started.stop()
            except BaseException:
                print(started.log()[-6000:])
                raise
            finally:
                started.close()
    finally:
        file.unlink()
        shutil.rmtree(home)


class Writing(threading.Thread):
    """A command in a guest that goes on while the test looks."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        super().__init__()
        self._daemon = daemon
        self._name = name
        self.said = ""

    def run(self) -> None:
        with suppress(HanokError):  # the daemon was ended meanwhile: the command goes on
            self.said = self._daemon.sh(self._name, WRITE, limit=300)


def state(daemon: Daemon, name: str) -> str:
    return str(daemon.client.vm(name)["state"])


def names(daemon: Daemon, target: str) -> list[str]:
    return [one["name"] for one in daemon.client.events(follow=False) if one["target"] == target]


def starve(daemon: Daemon, small: Small, name: str) -> Writing:
    """Let a guest write more than there is room for, and wait until it is paused."""
    small.fill(leave=12 * MIB)
    writing = Writing(daemon, name)
    writing.start()
    wait_until(lambda: state(daemon, name) == "paused", 60, "the guest is paused")
    return writing


def check_disk(daemon: Daemon, name: str) -> None:
    """See that a stopped VM's disk is sound: the qcow2 file and the file system in it."""
    uuid = daemon.client.vm(name)["uuid"]
    disk = daemon.home / "vms" / uuid / "m" / "disk.qcow2"
    done = subprocess.run(["qemu-img", "check", disk], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    raw = daemon.home / "look.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw], check=True)
    found = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, check=False)
    raw.unlink()
    assert found.returncode == 0, found.stdout


def test_a_guest_pauses_on_a_full_disk_and_goes_on_with_all_it_wrote(daemon: Daemon) -> None:
    client = daemon.client
    small = Small(daemon.home / "vms")
    writing = starve(daemon, small, "writer")
    shown: Any = client.vm("writer")
    for words in ("no space left", str(small.path), "left", "64 MiB"):
        assert words in shown["reason"]
    assert "io-error" in names(daemon, "writer")
    assert daemon.sh("other", "echo here") == "here\n"  # it does not write, and goes on
    (one,) = [one for one in client.host()["filesystems"] if one["mount"] == str(small.path)]
    assert (one["level"], one["holds"]) == ("critical", ["disks of VMs"])
    with pytest.raises(DiskFull, match="writer to go on: it needs 64 MiB"):
        client.change("writer", "resume")
    wait_until(lambda: "disk-critical" in names(daemon, str(small.path)), 10, "an event tells")
    small.empty()
    wait_until(lambda: state(daemon, "writer") == "ready", 30, "it goes on by itself")
    writing.join(patient(120))
    assert writing.said == "written\n"
    assert daemon.sh("writer", CHECK).split() == ["/root/big:", "OK", "0"]
    assert names(daemon, "writer").count("resumed") == 1
    assert client.vm("writer")["reason"] is None


def test_a_daemon_that_comes_meanwhile_knows_what_it_found(daemon: Daemon) -> None:
    client = daemon.client
    small = Small(daemon.home / "vms")
    writing = starve(daemon, small, "writer")
    daemon.kill()
    daemon.start()
    wait_until(lambda: state(daemon, "writer") == "paused", 30, "it is paused still")
    assert "no space left" in (client.vm("writer")["reason"] or "")
    small.empty()
    wait_until(lambda: state(daemon, "writer") == "ready", 30, "it goes on by itself")
    writing.join(patient(120))  # its answer went to the daemon that was killed
    done = "test ! -e /tmp/x && sha256sum -c /root/sum || true"
    wait_until(lambda: "OK" in daemon.sh("writer", done), 120, "the guest has written all")
    for name in ("writer", "other"):
        daemon.done(client.change(name, "stop", {"force": False, "timeout": patient(30)}))
        check_disk(daemon, name)
