"""Disks of others on their way through the daemon: sent, cut off, killed at each step."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.errors import Conflict, HanokError, InvalidInput
from hanok.services.failpoints import IMPORT_STEPS
from hanok.units import MIB
from tests.daemon.harness import Daemon, wait_until
from tests.daemon.test_crash import settled
from tests.images.appliances import VIRTUALBOX, manifest
from tests.images.test_foreign import converted

BOOT = b"\xeb\xfe" + bytes(508) + b"\x55\xaa"
DISK = BOOT + b"here" + bytes(8 * MIB - 516)
WANTED = {"name": "old", "file": "old.img"}


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    """The daemon, without imported images before and after."""
    yield fake_daemon
    for image in fake_daemon.client.images():
        if image["ref"].startswith("own:"):
            fake_daemon.client.delete_image(image["ref"])
    wait_until(lambda: uploads(fake_daemon) == [], 10, "no upload is left")


def uploads(daemon: Daemon) -> list[str]:
    folder = daemon.home / "uploads"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def send(daemon: Daemon, **said: str) -> dict[str, object]:
    operation = daemon.client.import_image({**WANTED, **said}, io.BytesIO(DISK), len(DISK))
    result = daemon.done(operation)["result"]
    assert isinstance(result, dict)
    return result


def cli(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "hanok.cli", *arguments],
        env={"HANOK_HOME": str(daemon.home), "HANOK_REMOTE": "local", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_sends_a_file(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "old.img"
    file.write_bytes(DISK)
    done = cli(daemon, "image", "import", str(file), "--name", "old", "--os", "Old Linux 1")
    assert done.returncode == 0, done.stderr
    assert "own:old is imported" in done.stdout
    assert "boots by bios" in done.stdout
    (view,) = [one for one in daemon.client.images() if one["ref"] == "own:old"]
    assert view["os"] == "Old Linux 1"
    assert view["modes"] == ["full", "para"]
    again = cli(daemon, "image", "import", str(file), "--name", "old")
    assert again.returncode == 1
    assert "own:old" in again.stderr


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "no file"), ("folder", "no ordinary file")]
)
def test_the_command_refuses_what_is_no_file(
    daemon: Daemon, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    done = cli(daemon, "image", "import", str(tmp_path / name), "--name", "old")
    assert done.returncode == 2
    assert words in done.stderr


def test_what_is_no_disk_is_bad_input_and_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<html>" * 200)
    done = cli(daemon, "image", "import", str(file), "--name", "old")
    assert done.returncode == 2
    assert "--format raw" in done.stderr
    assert [one["ref"] for one in daemon.client.images()] == ["micro"]


def test_a_name_is_checked_before_the_file_is_sent(daemon: Daemon) -> None:
    with pytest.raises(InvalidInput, match="name"):
        send(daemon, name="Not a name")
    send(daemon)
    with pytest.raises(Conflict):
        send(daemon)


def test_a_file_that_is_cut_off_leaves_nothing(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.home / "hanokd.sock"))
        head = f"POST /v1/images/import?name=old HTTP/1.1\r\nHost: h\r\nContent-Length: {len(DISK)}"
        sock.sendall(head.encode() + b"\r\n\r\n" + DISK[: 5 * MIB])
        wait_until(lambda: uploads(daemon) != [], 10, "the file is being written")
    wait_until(lambda: uploads(daemon) == [], 10, "it is gone")
    assert send(daemon)["ref"] == "own:old"


def test_zeros_take_no_room(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start(failpoint="import.accepted")
    with pytest.raises(HanokError):
        send(daemon)
    daemon.wait_died()
    (path,) = (daemon.home / "uploads").iterdir()
    assert path.stat().st_size == len(DISK)
    assert path.stat().st_blocks * 512 <= 4 * MIB
    daemon.start()
    wait_until(lambda: settled(daemon), 60, "the import has ended")


@pytest.mark.parametrize("step", IMPORT_STEPS)
def test_an_import_survives_a_crash(daemon: Daemon, step: str) -> None:
    daemon.stop()
    daemon.start(failpoint=step)
    with contextlib.suppress(HanokError):  # it may die before it has answered
        send(daemon)
    daemon.wait_died()
    daemon.start()
    wait_until(lambda: settled(daemon), 60, "the import has ended")
    assert daemon.client.operations()[0]["state"] == "done"
    assert daemon.client.image("own:old")["disk_size"] == len(DISK)


def test_a_file_that_no_operation_wants_is_swept(daemon: Daemon) -> None:
    daemon.stop()
    (daemon.home / "uploads").mkdir(exist_ok=True)
    (daemon.home / "uploads" / "stray").write_bytes(b"left by a daemon that died")
    daemon.start()
    assert uploads(daemon) == []


def test_an_ovf_is_sent_with_what_lies_beside_it(daemon: Daemon, tmp_path: Path) -> None:
    raw = tmp_path / "plain.raw"
    raw.write_bytes(DISK)
    disk = converted(raw, "vmdk", "-o", "subformat=streamOptimized").read_bytes()
    files = {"box.ovf": VIRTUALBOX.encode(), "box.vmdk": disk}
    for name, data in {**files, "box.mf": manifest(files)}.items():
        (tmp_path / name).write_bytes(data)
    done = cli(daemon, "image", "import", str(tmp_path / "box.ovf"), "--name", "box")
    assert done.returncode == 0, done.stderr
    image = daemon.client.image("own:box")
    assert image["imported"]["format"] == "ova"
    assert image["appliance"] == {"cpus": 1, "memory": 128 * MIB, "nics": ["NAT"]}
    daemon.done(daemon.client.run({"name": "box", "image": "own:box"}))
    made = daemon.client.vm("box")
    assert (made["cpus"], made["memory"], made["mode"]) == (1, 128 * MIB, "full")
    daemon.done(daemon.client.delete("box", force=True))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link.vmdk"])
def test_an_ovf_sends_nothing_from_elsewhere(daemon: Daemon, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "box"
    folder.mkdir()
    (tmp_path / "secret").write_text("nobody's business")
    (folder / "link.vmdk").symlink_to(tmp_path / "secret")
    (folder / "box.ovf").write_text(VIRTUALBOX.replace("box.vmdk", name))
    done = cli(daemon, "image", "import", str(folder / "box.ovf"), "--name", "box")
    assert done.returncode == 2
    assert "not beside it" in done.stderr
