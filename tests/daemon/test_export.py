"""Disks on their way out of the daemon: whole, held, cut off, killed at each step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hanok.errors import Conflict, HanokError, NotFound
from hanok.services.failpoints import EXPORT_STEPS
from hanok.units import GIB, MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.daemon.test_crash import settled
from tests.daemon.test_hostile_files import cost_of, forget_most
from tests.fake_image import fake_images
from tests.full import small_file_system
from tests.machine import patient

FORMATS = ("qcow2", "raw", "vmdk")
PATTERN = b"\xa5" * 4096
# Stands in the place of the program that encloses qemu-img; it waits until somebody lets it go on.
GATE = """#!/bin/sh
case "$*" in
*convert*) read -r word < "{gate}" ;;
esac
exec /usr/bin/setpriv "$@"
"""


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    """The daemon; no VM, and nothing that was exported, is left afterwards."""
    yield fake_daemon
    fake_daemon.empty()
    assert exports(fake_daemon) == []


def exports(daemon: Daemon) -> list[str]:
    folder = daemon.home / "exports"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def disk_of(daemon: Daemon, name: str) -> Path:
    uuid = daemon.client.vm(name)["uuid"]
    return daemon.home / "vms" / uuid / "m" / "disk.qcow2"


def write(disk: Path, place: str) -> None:
    """Write a pattern to a disk that nobody has open, as its guest could have."""
    command = f"write -P 0xa5 {place} 64k"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, disk], check=True, capture_output=True)


def stopped(daemon: Daemon, name: str = "web", disk: str = "1G") -> Path:
    """Make a VM that is stopped, with something on its disk; return the disk."""
    daemon.run(name, disk=disk)
    daemon.done(daemon.client.change(name, "stop", {"force": True}))
    path = disk_of(daemon, name)
    write(path, "1M")
    write(path, "900M")
    return path


def environ_of(daemon: Daemon) -> dict[str, str]:
    own = {"HANOK_HOME": str(daemon.home), "HANOK_REMOTE": "local", "NO_COLOR": "1"}
    return {**os.environ, **own}


def argv(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hanok.cli", *words]


def cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv(*words), env=environ_of(daemon), capture_output=True, text=True, check=False
    )


def same(one: Path, other: Path, kind: str) -> None:
    """See that two disks have the same content, whatever files it is in."""
    command = ["qemu-img", "compare", "-f", "qcow2", "-F", kind, str(one), str(other)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def told(path: Path, kind: str) -> Any:
    done = subprocess.run(
        ["qemu-img", "info", "-f", kind, "--output", "json", path], check=True, capture_output=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_is_saved_whole(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    disk = stopped(daemon)
    before = disk.stat()
    file = tmp_path / "web.disk"
    done = cli(daemon, "export", "web", str(file), "--format", kind, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        **{"name": "web", "file": str(file), "format": kind},
        **{"size": file.stat().st_size},
    }
    same(disk, file, kind)
    found = told(file, kind)
    assert found["virtual-size"] == GIB
    assert "backing-filename" not in found
    assert file.stat().st_blocks * 512 < 8 * MIB, "what is empty takes no room"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    after = disk.stat()
    assert (after.st_uid, after.st_mode, after.st_mtime) == (
        *(before.st_uid, before.st_mode, before.st_mtime),
    )
    daemon.done(daemon.client.change("web", "start"))


def test_what_it_stands_on_is_in_it_too(daemon: Daemon, tmp_path: Path) -> None:
    """A clone's disk: its own writes, its template's, its image's."""
    daemon.run("base")
    daemon.freeze("t", "base")
    (name,) = daemon.clone("t", "c")
    daemon.done(daemon.client.change(name, "stop", {"force": True}))
    write(disk_of(daemon, name), "2M")
    file = tmp_path / "c.qcow2"
    done = cli(daemon, "export", name, str(file))
    assert done.returncode == 0, done.stderr
    assert "c.qcow2 has the disk of c (qcow2" in done.stdout
    same(disk_of(daemon, name), file, "qcow2")


def test_the_disk_of_an_image_is_saved_too(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "micro.raw"
    done = cli(daemon, "image", "export", "micro", str(file), "--format", "raw")
    assert done.returncode == 0, done.stderr
    image = daemon.client.image("micro")
    same(daemon.images / image["id"] / image["disk"], file, "raw")
    assert cli(daemon, "image", "export", "nothing", str(tmp_path / "f")).returncode == 1
    done = cli(daemon, "image", "export", "micro", str(file))
    assert "--force replaces it" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_one_that_runs_is_to_be_stopped_first(daemon: Daemon, tmp_path: Path) -> None:
    daemon.run("web")
    done = cli(daemon, "export", "web", str(tmp_path / "f"), "--json")
    assert done.returncode == 1
    error = json.loads(done.stderr)
    assert error["code"] == "conflict"
    assert "web is ready" in error["detail"]
    assert error["hint"] == "'hanok stop web' first"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        daemon.client.export("nobody", "raw")
    with pytest.raises(HanokError, match="vdi"):
        daemon.client.export("web", "vdi")


def test_no_file_is_replaced_unless_asked_for(daemon: Daemon, tmp_path: Path) -> None:
    stopped(daemon)
    file = tmp_path / "mine"
    file.write_text("mine")
    done = cli(daemon, "export", "web", str(file))
    assert (done.returncode, file.read_text()) == (1, "mine")
    assert "--force replaces it" in done.stderr
    for name, words in (("", "no ordinary file"), ("no/file", "no folder")):
        done = cli(daemon, "export", "web", str(tmp_path / name), "--force")
        assert done.returncode == 2
        assert words in done.stderr
    assert cli(daemon, "export", "web", str(file), "--force").returncode == 0
    assert told(file, "qcow2")["virtual-size"] == GIB
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon whose qemu-img waits for a word in a pipe before it writes a disk."""
    gate, programs = tmp_path / "gate", tmp_path / "programs"
    os.mkfifo(gate)
    programs.mkdir()
    (programs / "setpriv").write_text(GATE.format(gate=gate))
    (programs / "setpriv").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    with fake_images() as images, new_daemon("fake", images, PATH=path) as daemon:
        yield daemon, gate


def is_writing(daemon: Daemon) -> bool:
    return any(one.startswith(".work-") for one in exports(daemon))


def test_the_vm_is_held_meanwhile(gated: tuple[Daemon, Path], tmp_path: Path) -> None:
    daemon, gate = gated
    stopped(daemon)
    client = daemon.client
    operation = client.export("web", "raw")
    wait_until(lambda: is_writing(daemon), 10, "it has begun")
    for ask in (
        partial(client.change, "web", "start"),
        partial(client.change, "web", "restart"),
        partial(client.set, "web", {"cpus": 2}),
        partial(client.delete, "web", force=True),
        partial(client.export, "web", "qcow2"),
    ):
        with pytest.raises(Conflict, match="export") as caught:
            ask()
        assert operation["id"] in str(caught.value.hint)
    gate.write_text("go on\n")
    daemon.done(operation)
    client.forget_export(operation["id"])
    assert exports(daemon) == []
    daemon.done(client.change("web", "start"))


def test_a_user_can_end_it(gated: tuple[Daemon, Path], tmp_path: Path) -> None:
    """By Ctrl-C: nothing is left, neither there nor here, and the VM starts again."""
    daemon, _ = gated
    stopped(daemon)
    here = tmp_path / "here"
    here.mkdir()
    with subprocess.Popen(
        argv("export", "web", str(here / "f")), env=environ_of(daemon), stderr=subprocess.PIPE
    ) as command:
        wait_until(lambda: is_writing(daemon), 20, "it has begun")
        wait_until(lambda: is_followed(daemon), 20, "the command follows it")
        command.send_signal(signal.SIGINT)
        assert command.wait(patient(20)) == 130
    assert daemon.client.operations()[0]["state"] == "cancelled"
    assert exports(daemon) == []
    assert list(here.iterdir()) == []
    daemon.done(daemon.client.change("web", "start"))


def is_followed(daemon: Daemon) -> bool:
    """Whether anyone but us is connected to the daemon's socket, and waits."""
    found = Path("/proc/net/unix").read_text().count(str(daemon.home / "hanokd.sock"))
    return found > 1


@pytest.mark.parametrize("step", EXPORT_STEPS)
def test_an_export_survives_a_crash(daemon: Daemon, step: str) -> None:
    disk = stopped(daemon)
    daemon.stop()
    daemon.start(failpoint=step)
    with contextlib.suppress(HanokError):  # it may die before it has answered
        daemon.client.export("web", "raw")
    daemon.wait_died()
    daemon.start()
    wait_until(lambda: settled(daemon), 60, "the export has ended")
    operation = daemon.client.operations()[0]
    assert (operation["kind"], operation["state"]) == ("export", "done")
    assert exports(daemon) == [operation["id"]]
    with tempfile.NamedTemporaryFile() as file:
        for piece in daemon.client.fetch_export(operation["id"]):
            file.write(piece)
        file.flush()
        same(disk, Path(file.name), "raw")
    daemon.client.forget_export(operation["id"])
    daemon.client.forget_export(operation["id"])
    with pytest.raises(NotFound, match="no exported disk"):
        list(daemon.client.fetch_export(operation["id"]))
    daemon.done(daemon.client.change("web", "start"))


def test_what_nobody_fetches_is_removed(daemon: Daemon) -> None:
    stopped(daemon)
    young, old = (daemon.done(daemon.client.export("web", "qcow2"))["id"] for _ in range(2))
    path = daemon.home / "exports" / old
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3700))
    daemon.kill()
    daemon.start()
    assert exports(daemon) == [young]
    daemon.client.forget_export(young)


@pytest.mark.parametrize("ident", ["..", "../state.db", "%2e%2e%2fstate.db", "a" * 12, ".work-1"])
def test_no_other_file_is_fetched_or_removed(daemon: Daemon, ident: str) -> None:
    before = (daemon.home / "state.db").stat().st_ino
    for ask in (daemon.client.fetch_export, daemon.client.forget_export):
        with contextlib.suppress(HanokError):
            assert list(ask(ident) or ()) == []
    assert (daemon.home / "state.db").stat().st_ino == before


def test_who_reads_slowly_costs_no_memory(daemon: Daemon) -> None:
    """A GiB of which hardly anything is taken: the daemon reads no further than that."""
    stopped(daemon)
    ident = daemon.done(daemon.client.export("web", "raw"))["id"]
    assert daemon.process is not None
    pid = daemon.process.pid
    path = daemon.home / "exports" / ident
    forget_most(pid)
    before = cost_of(pid).resident
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.home / "hanokd.sock"))
        sock.sendall(f"GET /v1/exports/{ident} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        head = sock.recv(4096)
        assert f"content-length: {GIB}".encode() in head.lower()
        for _ in range(100):  # time for a daemon that would not wait for its reader
            daemon.client.version()
        assert place_in(pid, path) < 16 * MIB
    wait_until(lambda: place_in(pid, path) == 0, 20, "the file is closed when its reader is gone")
    size = 0
    for piece in daemon.client.fetch_export(ident):
        size += len(piece)
    assert size == GIB
    assert cost_of(pid).resident - before < 64 * MIB
    daemon.client.forget_export(ident)


def place_in(pid: int, path: Path) -> int:
    """Return how far process ``pid`` has read a file; 0 when it has it not open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink() == path:
                said = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
                return int(said.split("pos:")[1].split()[0])
    return 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, as root may")
def test_without_room_it_says_how_much_is_needed(tmp_path: Path) -> None:
    """On the host, and where the file is to be."""
    home = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    home.chmod(0o711)
    with fake_images() as images, small_file_system(home, 512 * MIB) as small:
        daemon = Daemon(small.path, "fake", images, {"HANOK_RESERVE_DISK": "1M"})
        daemon.start()
        try:
            daemon.run("web", disk="64M")
            daemon.done(daemon.client.change("web", "stop", {"force": True}))
            done = cli(daemon, "export", "web", str(tmp_path / "f"), "--json")
            assert done.returncode == 1
            error = json.loads(done.stderr)
            assert error["code"] == "disk-full"
            assert f"more on {small.path}" in error["expected"]
            assert exports(daemon) == []
            assert list(tmp_path.iterdir()) == []
        finally:
            daemon.close()
    home.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, as root may")
def test_a_full_disk_here_leaves_nothing_half_done(daemon: Daemon, tmp_path: Path) -> None:
    disk = stopped(daemon)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 1 100M 64M", disk],
        check=True,
        capture_output=True,
    )
    with small_file_system(tmp_path, 16 * MIB) as small:
        done = cli(daemon, "export", "web", str(small.path / "f"))
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert [path.name for path in small.path.iterdir() if path.name != "lost+found"] == []
