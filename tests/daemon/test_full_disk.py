"""File systems of the daemon filled in turn: requests are refused whole, and room can be made."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from hanok.cli.main import main
from hanok.errors import CommandFailed, DiskFull, NotFound
from hanok.filesystems import FileSystem, file_system_of, full_error
from hanok.images.library import ImageLibrary
from hanok.model.host import HostResources
from hanok.model.network import NetworkRecord
from hanok.model.operation import Operation, OperationState
from hanok.proc import Account, SystemRunner
from hanok.services.views import _notes
from hanok.store.base import PutNetwork, PutOperation
from hanok.store.sqlite import SqliteStore
from hanok.units import GIB, MIB
from tests.conftest import BUILD_UID
from tests.daemon.harness import Daemon, wait_until
from tests.fake_image import fake_images
from tests.full import Small, small_file_system

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, as root may")


@pytest.fixture
def small() -> Iterator[Small]:
    """A file system of 32 MiB for all that a daemon has."""
    home = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    home.chmod(0o711)
    with small_file_system(home, 32 * MIB) as made:
        yield made
    shutil.rmtree(home)


@pytest.fixture
def daemon(small: Small) -> Iterator[Daemon]:
    """A daemon on it; the command in this process does not talk to it by itself."""
    with fake_images() as images:
        reserves = {"HANOK_RESERVE_DISK": "1M"}
        daemon = Daemon(small.path, "fake", images, reserves)
        daemon.start()
        yield daemon
        daemon.close()


@pytest.fixture
def generous(daemon: Daemon, small: Small) -> Daemon:
    """The daemon, while there is room for VMs' disks as admission counts them."""
    resize(small, 512 * MIB)
    daemon.run("a", disk="64M")
    daemon.run("b", disk="64M")
    return daemon


def resize(small: Small, size: int) -> None:
    """Make the file system larger or smaller."""
    subprocess.run(["mount", "-o", f"remount,size={size}", small.path], check=True)


def test_a_full_database_refuses_whole_and_lets_room_be_made(
    generous: Daemon, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon, client = generous, generous.client
    small.fill()
    before = [vm["name"] for vm in client.vms()]
    operations = len(client.operations())
    with pytest.raises(DiskFull) as caught:
        client.create_network({"name": "n"})
    assert str(small.path) in caught.value.message
    assert "1 MiB" in caught.value.message
    assert caught.value.code == "disk-full"
    with pytest.raises(DiskFull):
        client.change("a", "restart")
    assert [vm["name"] for vm in client.vms()] == before
    assert len(client.operations()) == operations
    host = client.host()
    (level,) = [one["level"] for one in host["filesystems"] if one["mount"] == str(small.path)]
    assert level == "critical"
    # What makes room is possible all the same, again and again.
    for name in ("a", "b"):
        daemon.done(client.change(name, "stop", {"force": True}))
        daemon.done(client.delete(name, force=True))
    assert client.vms() == []
    small.empty()
    daemon.run("c", disk="64M")
    assert client.vm("c")["state"] == "ready"
    assert whole(small.path / "state.db")


def test_a_daemon_starts_although_the_disk_is_full(generous: Daemon, small: Small) -> None:
    small.fill()
    generous.kill()
    generous.start()
    assert {vm["name"] for vm in generous.client.vms()} == {"a", "b"}
    generous.done(generous.client.delete("a", force=True))
    with pytest.raises(NotFound):
        generous.client.vm("a")
    small.empty()


def whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a database."""
    with sqlite3.connect(path) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_host_is_shown_with_what_is_nearly_full(
    daemon: Daemon,
    small: Small,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HANOK_HOME", str(daemon.home))
    monkeypatch.setenv("HANOK_REMOTE", "local")
    size = file_system_of(small.path).size
    for percent, level in ((50, "ok"), (82, "warning"), (93, "critical"), (50, "ok")):
        small.empty()
        small.fill(leave=size * (100 - percent) // 100)
        (found,) = [
            one for one in daemon.client.host()["filesystems"] if one["mount"] == str(small.path)
        ]
        assert (found["level"], "database" in found["holds"]) == (level, True)
        assert abs(found["percent"] - percent) <= 1
        assert main(["host", "show"]) == 0
        shown = capsys.readouterr().out
        assert f"{found['percent']} %" in shown
        assert (f"the file system {small.path}" in shown) is (level != "ok")
        wait_until(partial(is_told, daemon, level), 10, "an event tells of it")


def is_told(daemon: Daemon, level: str) -> bool:
    """Whether the last event of the daemon's file system tells of that level."""
    found = daemon.client.events(follow=False)
    names = [event["name"] for event in found if event["target"] == str(daemon.home)]
    return (names or ["disk-ok"])[-1] == f"disk-{level}"


# --- the store alone ----------------------------------------------------------------------


async def test_the_reserve_is_for_what_ends_something(small: Small) -> None:
    store = SqliteStore(small.path / "state.db")
    await store.open()
    run = Operation(id="r", kind="run", target="a")
    await store.commit(PutOperation(run))
    small.fill()

    async def begin_many() -> None:
        for number in range(2000):  # what SQLite has taken already is used up at some time
            await store.commit(PutOperation(run.model_copy(update={"id": f"r{number}"})))

    with pytest.raises(DiskFull):
        await begin_many()
    with pytest.raises(DiskFull):
        await store.commit(PutNetwork(NetworkRecord(name="n", subnet="10.1.0.0/24", uid=1)))
    assert await store.networks() == []
    await store.commit(PutOperation(Operation(id="d", kind="delete", target="a")))
    done = run.model_copy(update={"state": OperationState.FAILED})
    await store.commit(PutOperation(done))
    assert await store.find_operation("r") == done
    assert not (small.path / "state.db.reserve").exists()
    small.empty()
    await store.commit(PutOperation(run))
    assert (small.path / "state.db.reserve").stat().st_size == 4 * MIB
    await store.close()
    assert whole(small.path / "state.db")


# --- images -------------------------------------------------------------------------------


class FullRunner(SystemRunner):
    """Commands that end as they do on a full disk; their files are gone when they have."""

    async def run(self, argv, **options):  # type: ignore[no-untyped-def]
        """See SystemRunner.run."""
        if any("mmdebstrap" in word for word in argv):
            options["on_line"]("E: You don't have enough free space in /var/cache/apt/archives/.")
            raise CommandFailed("mmdebstrap ended with status 100")
        return await super().run(argv, **options)


async def test_a_build_without_room_says_where_and_how_much(small: Small) -> None:
    account = Account(BUILD_UID, BUILD_UID)
    library = ImageLibrary(small.path / "images", FullRunner(), account)
    with pytest.raises(DiskFull) as caught:
        await library.ensure("micro", (), lambda message, fraction: None)
    error = caught.value
    assert str(small.path) in error.message
    assert "needs 512 MiB" in error.message
    assert "more on" in (error.expected or "")
    left = [path.name for path in (small.path / "images").iterdir()]
    assert [name for name in left if not name.startswith((".lock-", ".apt-cache"))] == []


@pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="downloads packages for minutes")
async def test_a_real_build_without_room_says_where_and_how_much(small: Small) -> None:
    resize(small, 96 * MIB)
    library = ImageLibrary(small.path / "images", SystemRunner(), Account(BUILD_UID, BUILD_UID))
    with pytest.raises(DiskFull) as caught:
        await library.ensure("micro", (), lambda message, fraction: None)
    assert str(small.path) in caught.value.message


def test_errors_of_the_system_name_the_file_system(small: Small) -> None:
    small.fill()
    with pytest.raises(OSError) as caught:
        (small.path / "more").write_bytes(bytes(MIB))
    error = full_error(caught.value, small.path / "more")
    assert error is not None
    assert str(small.path) in error.message
    assert full_error(OSError(5, "x")) is None
    assert full_error(ValueError("x")) is None


@pytest.mark.parametrize(
    ("free", "percent", "level"),
    [
        (GIB, 0, "ok"),
        (GIB // 5 + MIB, 80, "warning"),
        (GIB // 4, 75, "ok"),
        (GIB // 10 + MIB, 90, "critical"),
        (0, 100, "critical"),
    ],
)
def test_levels(free: int, percent: int, level: str) -> None:
    found = FileSystem(Path("/x"), GIB, free, 1)
    assert (found.percent, found.level) == (percent, level)
    assert FileSystem(Path("/x"), 0, 0, 1).percent == 100


@pytest.mark.parametrize(("percent", "words"), [(79, None), (80, "80 %"), (93, "93 %")])
def test_memory_that_is_nearly_used_up_is_told(percent: int, words: str | None) -> None:
    host = HostResources(
        cpus=1, memory=100 * GIB, disk=1, disk_free=1, available=(100 - percent) * GIB
    )
    found = _notes([], host)
    assert found == [] if words is None else words in found[0]
    assert _notes([], None) == []
