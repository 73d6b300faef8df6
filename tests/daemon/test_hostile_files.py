"""Hostile files through the command and a daemon: what they are after never turns up anywhere.

Each is imported as a user does it, and if it becomes an image it is inspected and run. Around the
file nothing may be read, made or changed; what it costs is bounded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.cli.main import main
from hanok.errors import InvalidInput
from hanok.images.foreign.formats import read_disk
from hanok.images.foreign.ova import read_ova
from hanok.model.image import ForeignFormat
from hanok.units import GIB, MIB
from tests.daemon.harness import Daemon, wait_until
from tests.foreign.hostile import BOOT, CASES, Case, Place, whole
from tests.fuzz import bounded
from tests.images.appliances import VIRTUALBOX

TOKEN = secrets.token_bytes(24).hex()
# Measured below 1.5 s and 25 MiB; a bomb that is not stopped takes minutes and gigabytes.
MOST_CPU_SECONDS = 20.0
MOST_MEMORY = 64 * MIB
_PIECE = 4 * MIB
_LOOKED_INTO = 64 * MIB
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """What a daemon has used so far: its CPU seconds, and those of the commands that it ran."""

    own: float
    commands: float
    resident: int


def cost_of(pid: int) -> Cost:
    """Return what process ``pid`` has used; ``resident`` is its most, in bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, commands = (int(fields[at]) + int(fields[at + 1]) for at in (11, 13))
    status = Path(f"/proc/{pid}/status").read_text()
    (most,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return Cost(own / _TICKS, commands / _TICKS, int(most) * 1024)


def forget_most(pid: int) -> None:
    """Let the most that a process ever had in memory be what it has now (proc(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def picture(folder: Path) -> dict[str, str]:
    """Return everything below ``folder``: what it is, whose, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        kind = f"{told.st_mode:o} {told.st_uid}:{told.st_gid} {told.st_size}"
        if stat.S_ISREG(told.st_mode) and told.st_size <= _LOOKED_INTO:
            kind += f" {hashlib.sha256(path.read_bytes()).hexdigest()}"
        elif path.is_symlink():
            kind += f" to {path.readlink()}"
        found[str(path.relative_to(folder))] = kind
    return found


@pytest.fixture
def place() -> Iterator[Place]:
    """A folder for the file, in a folder with a canary that everyone may read."""
    around = Path(tempfile.mkdtemp(prefix="hk-hostile-", dir="/tmp"))
    around.chmod(0o755)
    (around / "in").mkdir(mode=0o755)
    canary = around / "canary"
    canary.write_text(TOKEN * 2048)
    canary.chmod(0o644)
    yield Place(around / "in", canary)
    shutil.rmtree(around)


@pytest.fixture
def daemon(fake_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The daemon; the command in this process talks to it."""
    monkeypatch.setenv("HANOK_HOME", str(fake_daemon.home))
    monkeypatch.setenv("HANOK_REMOTE", "local")
    monkeypatch.setenv("NO_COLOR", "1")
    yield fake_daemon
    fake_daemon.empty()
    for image in fake_daemon.client.images():
        if image["ref"].startswith("own:"):
            fake_daemon.client.delete_image(image["ref"])


def holds(path: Path, words: bytes) -> bool:
    """Whether a file has ``words`` in it, wherever; holes are passed over."""
    with path.open("rb") as file:
        end, place = os.fstat(file.fileno()).st_size, 0
        while place < end:
            try:
                place = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:  # there is nothing but a hole
                return False
            piece = os.pread(file.fileno(), _PIECE, place)
            if words in piece:
                return True
            if len(piece) <= len(words):
                return False
            place += len(piece) - len(words)
    return False


def leaks(daemon: Daemon, said: str) -> list[str]:
    """Name what has the canary's content in it: output, files of the daemon, images."""
    token = TOKEN.encode()
    found = ["the output"] if TOKEN in said else []
    for folder in (daemon.home, daemon.images):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and holds(path, token):
                found.append(str(path))
            if path.name == "disk.qcow2" and path.is_file():
                raw = path.with_name("looked-at")
                argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)]
                subprocess.run(argv, check=True)
                if holds(raw, token):
                    found.append(f"inside {path}")
                raw.unlink()
    return found


def hanok(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run the command in this process; return its status and all that it said."""
    status = main(list(words))
    out, error = capsys.readouterr()
    return status, out + error


@pytest.mark.skipif(os.geteuid() != 0, reason="the jail and the devices need root")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_hostile_file_gets_nothing_and_costs_little(
    daemon: Daemon, place: Place, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.process is not None
    pid = daemon.process.pid
    path = case.make(place)
    before, images = picture(place.canary.parent), set(daemon.images.iterdir())
    forget_most(pid)
    start = cost_of(pid)
    status, said = hanok(capsys, "image", "import", str(path), "--name", "bad", *case.options)
    end = cost_of(pid)
    assert picture(place.canary.parent) == before
    assert leaks(daemon, said) == []
    assert "Traceback" not in said
    assert "inside Hanok" not in said
    assert "Traceback" not in daemon.log()
    assert end.commands + end.own - start.commands - start.own < MOST_CPU_SECONDS
    assert end.resident - start.resident < MOST_MEMORY
    uploads = daemon.home / "uploads"
    wait_until(lambda: not uploads.exists() or not any(uploads.iterdir()), 10, "no upload is left")
    if not case.taken:
        assert status == case.status, said
        assert set(daemon.images.iterdir()) == images
        return
    assert status == 0, said
    _use(daemon, capsys)


def _use(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect, run, resize and export what became an image, and look for the canary again."""
    for words in (
        ("image", "inspect", "own:bad"),
        ("image", "inspect", "own:bad", "--json"),
        ("run", "own:bad", "--name", "bad", "--memory", "128M", "--disk", "1G"),
        ("show", "bad", "--json"),
        ("stop", "bad", "--force"),
        ("set", "bad", "--disk", "2G"),
    ):
        status, said = hanok(capsys, *words)
        assert status == 0, said
        assert leaks(daemon, said) == []
    with tempfile.TemporaryDirectory(prefix="hk-out-", dir="/tmp") as out:
        for kind in ("qcow2", "raw", "vmdk"):
            file = Path(out, kind)
            status, said = hanok(capsys, "export", "bad", str(file), "--format", kind)
            # One whose tables do not add up is found out by now, if it is not whole.
            assert status == 0, said
            assert TOKEN not in said
            assert not holds(file, TOKEN.encode())
        assert sorted(path.name for path in Path(out).iterdir()) == ["qcow2", "raw", "vmdk"]


# --- what a process that ran a VM could leave in the place of its disk ---------------------


def _of_another(disk: Path, place: Place) -> None:
    """A good disk, but not one of the VM's own."""
    write(disk, whole(place, "qcow2"))
    os.chown(disk, 0, 0)


PLANTED: dict[str, Callable[[Path, Place], object]] = {
    "symbolic link": lambda disk, place: disk.symlink_to(place.canary),
    "hard link": lambda disk, place: disk.hardlink_to(place.canary),
    "folder": lambda disk, place: disk.mkdir(),
    "pipe": lambda disk, place: os.mkfifo(disk),
    "device": lambda disk, place: os.mknod(disk, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "of another": _of_another,
    "nothing": lambda disk, place: None,
    "the canary": lambda disk, place: write(disk, place.canary.read_bytes()),
}


def write(disk: Path, data: bytes) -> None:
    """Write a file as the VM's own account would, readable by it alone."""
    disk.write_bytes(data)
    disk.chmod(0o600)
    told = disk.parent.stat()
    os.chown(disk, told.st_uid, told.st_gid)


def _planted(case: Case) -> Callable[[Path, Place], object]:
    def plant(disk: Path, place: Place) -> None:
        path = case.make(place)
        told = path.lstat()
        if stat.S_ISREG(told.st_mode) and told.st_size < GIB:
            write(disk, path.read_bytes())

    return plant


PLANTED |= {name: _planted(case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def victim(fake_daemon: Daemon) -> Path:
    """The disk of a VM that is stopped; a copy of it lies beside the daemon's home."""
    made = fake_daemon.run("victim")
    fake_daemon.done(fake_daemon.client.change("victim", "stop", {"force": True}))
    return Path(fake_daemon.home, "vms", made["uuid"], "m", "disk.qcow2")


@pytest.mark.skipif(os.geteuid() != 0, reason="the jail and the devices need root")
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_hostile_disk_gets_nothing_out_of_a_change_or_an_export(
    fake_daemon: Daemon,
    victim: Path,
    place: Place,
    plant: Callable[[Path, Place], object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each verb ends, well or with an error of ours; the canary stays what it is, and at home."""
    for name, value in (("HANOK_HOME", str(fake_daemon.home)), ("HANOK_REMOTE", "local")):
        monkeypatch.setenv(name, value)
    assert fake_daemon.process is not None
    pid = fake_daemon.process.pid
    kept = victim.with_suffix(".kept")
    victim.rename(kept)
    plant(victim, place)
    size = fake_daemon.client.vm("victim")["disk"] // MIB + 64
    before = picture(place.canary.parent)
    forget_most(pid)
    start = cost_of(pid)
    try:
        with tempfile.TemporaryDirectory(prefix="hk-out-", dir="/tmp") as out:
            file = Path(out, "file")
            for words in (
                ("export", "victim", str(file), "--format", "raw"),
                ("set", "victim", "--disk", f"{size}M"),
                ("export", "victim", str(file), "--format", "qcow2", "--force"),
            ):
                status, said = hanok(capsys, *words)
                assert status in (0, 1, 2)
                assert TOKEN not in said
                assert "Traceback" not in said
                assert "inside Hanok" not in said
                assert file.exists() or status != 0 or words[0] == "set"
                assert not file.exists() or not holds(file, TOKEN.encode())
                assert [path.name for path in Path(out).iterdir()] in ([], ["file"])
        end = cost_of(pid)
        assert picture(place.canary.parent) == before
        assert end.commands + end.own - start.commands - start.own < MOST_CPU_SECONDS
        assert end.resident - start.resident < MOST_MEMORY
        exports = fake_daemon.home / "exports"
        assert not exports.exists() or list(exports.iterdir()) == []
    finally:
        if victim.is_dir() and not victim.is_symlink():
            victim.rmdir()
        else:
            victim.unlink(missing_ok=True)
        kept.rename(victim)
    assert "Traceback" not in fake_daemon.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="the devices need root")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_hostile_file_is_no_kernel(
    place: Place, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    """By ``image inspect`` of a file, which reads what is called a kernel."""
    path = case.make(place)
    before = picture(place.canary.parent)
    _, said = hanok(capsys, "image", "inspect", str(path), "--initrd", str(path))
    assert picture(place.canary.parent) == before
    assert TOKEN not in said
    assert "Traceback" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="the jail and the devices need root")
def test_what_reads_hostile_files_takes_little() -> None:
    """qemu-img, in its jail: 3.3 s and 42 MiB were the most that was seen."""
    argv = [sys.executable, "-P", "-m", "tests.foreign.measure"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        argv,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    print(told)
    assert told["files"] > 80
    assert told["slowest"] < MOST_CPU_SECONDS
    assert told["memory"] < 4 * MOST_MEMORY


# --- the readers of headers alone ---------------------------------------------------------


@cache
def good(kind: ForeignFormat) -> bytes:
    """Return the beginning of a good disk of a format that has a header."""
    with tempfile.TemporaryDirectory(prefix="hk-good-", dir="/tmp") as name:
        return whole(Place(Path(name), Path(name) / "canary"), str(kind))[: 16 * 1024]


PATCHES = st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=16)), max_size=6)


@bounded(1500)
@given(kind=st.sampled_from([ForeignFormat.QCOW2, ForeignFormat.VMDK]), patches=PATCHES)
def test_any_header_is_bad_input_or_a_bounded_disk(
    kind: ForeignFormat, patches: list[tuple[int, bytes]]
) -> None:
    data = bytearray(good(kind))
    for at, new in patches:
        data[at : at + len(new)] = new
    for wanted in (kind, None):
        try:
            found = read_disk(io.BytesIO(data), len(data), wanted)
        except InvalidInput:
            continue
        assert 0 < found.size <= 16 * 2**40


@bounded(500)
@given(patches=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=40))))
def test_any_archive_is_bad_input_or_whole(patches: list[tuple[int, bytes]]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("box.ovf", VIRTUALBOX.encode()), ("box.vmdk", BOOT)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    data = bytearray(buffer.getvalue())
    for at, new in patches:
        data[at : at + len(new)] = new
    try:
        found = read_ova(io.BytesIO(data), len(data))
    except InvalidInput:
        return
    assert all(part.offset + part.size <= len(data) for part in found.files.values())
