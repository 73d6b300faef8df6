"""Images of the catalog, through the daemon and from the command: from a server on the loopback."""

from __future__ import annotations

import hashlib
import lzma
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.errors import Conflict, HostError, NotFound
from hanok.units import MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.daemon.test_crash import settled
from tests.daemon.test_import import BOOT, cli, uploads
from tests.fake_image import fake_images
from tests.images.web import Handler, Web, breaks, serving, status, whole

DISK = BOOT + random.Random(8).randbytes(4 * MIB - 512)
PACKED = lzma.compress(DISK, preset=0)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of our own."""
    return tmp_path_factory.mktemp("catalog") / "catalog.yaml"


@pytest.fixture(scope="module")
def started(catalog: Path) -> Iterator[Daemon]:
    """A daemon that knows it."""
    catalog.write_text("")
    with fake_images() as images, new_daemon("fake", images, HANOK_CATALOG=str(catalog)) as daemon:
        yield daemon


@pytest.fixture
def daemon(started: Daemon) -> Iterator[Daemon]:
    """The daemon, without pulled images and parts of them before and after."""
    yield started
    for image in started.client.images():
        if image["ref"].startswith("own:"):
            started.client.delete_image(image["ref"])
    for name in uploads(started):
        (started.home / "uploads" / name).unlink()


def offer(catalog: Path, web: Web, content: bytes, ending: str = "") -> None:
    """Put what ``web`` serves into the catalog, as test:1."""
    digest = hashlib.sha512(content).hexdigest()
    url = web.url + ending
    catalog.write_text(
        f'- {{ref: "test:1", os: Test Linux, urls: ["{url}"], digest: "sha512:{digest}",'
        " format: raw, ssh_user: test, memory: 256M}\n"
    )


def test_the_command_pulls_an_image(daemon: Daemon, catalog: Path) -> None:
    with serving(DISK, breaks(MIB), whole) as web:
        offer(catalog, web, DISK)
        done = cli(daemon, "image", "pull", "test:1")
        assert done.returncode == 0, done.stderr
        assert "test:1 is here as own:test-1" in done.stdout
        assert "MiB downloaded" in done.stderr
        count = len(web.requests)
        assert cli(daemon, "image", "pull", "test:1").returncode == 0
        assert len(web.requests) == count, "it was here already"
    image = daemon.client.image("own:test-1")
    assert (image["ssh_user"], image["cloud_init"], image["agent"]) == ("test", True, False)
    assert (image["os"], image["minimum_memory"]) == ("Test Linux", 256 * MIB)
    assert image["firmware"] == ["bios"]
    assert uploads(daemon) == []
    told = cli(daemon, "image", "catalog").stdout
    assert "test:1" in told
    assert "own:test-1" in told
    assert "ubuntu:24.04" in told


def test_a_packed_image_is_unpacked(daemon: Daemon, catalog: Path) -> None:
    with serving(PACKED, whole) as web:
        offer(catalog, web, PACKED, ".xz")
        daemon.done(daemon.client.pull_image({"image": "test:1", "name": "box"}))
    image = daemon.client.image("own:box")
    assert image["imported"]["sha256"] == hashlib.sha256(DISK).hexdigest()
    assert uploads(daemon) == []


def test_wrong_bytes_make_no_image(daemon: Daemon, catalog: Path) -> None:
    with serving(DISK, whole) as web:
        offer(catalog, web, DISK + b"!")
        with pytest.raises(HostError, match="thrown away"):
            daemon.done(daemon.client.pull_image({"image": "test:1"}))
    assert [one["ref"] for one in daemon.client.images()] == ["micro"]
    assert uploads(daemon) == []


def test_what_cannot_be_pulled_is_told(daemon: Daemon, catalog: Path) -> None:
    with pytest.raises(NotFound, match="catalog"):
        daemon.client.pull_image({"image": "plan9:4"})
    with serving(DISK, status(404)) as web:
        offer(catalog, web, DISK)
        with pytest.raises(HostError, match="status 404"):
            daemon.done(daemon.client.pull_image({"image": "test:1"}))
    with serving(DISK, whole) as web:
        offer(catalog, web, DISK)
        daemon.done(daemon.client.pull_image({"image": "test:1"}))
        offer(catalog, web, DISK + b"another build")
        with pytest.raises(Conflict, match="another build"):
            daemon.client.pull_image({"image": "test:1"})


def test_a_daemon_that_dies_goes_on_where_the_file_was(daemon: Daemon, catalog: Path) -> None:
    gate = threading.Event()

    def stalls(handler: Handler, content: bytes) -> None:
        handler.begin(200, Content_Length=len(content))
        handler.wfile.write(content[: 2 * MIB])
        gate.wait(60)

    with serving(DISK, stalls, whole) as web:
        offer(catalog, web, DISK)
        daemon.client.pull_image({"image": "test:1"})
        parts = daemon.home / "uploads"

        def has_come() -> bool:
            return any(path.stat().st_size == 2 * MIB for path in parts.glob("part-*"))

        wait_until(has_come, 20, "a part has come")
        daemon.kill()
        gate.set()
        daemon.start()
        wait_until(lambda: settled(daemon), 60, "the pull has ended")
        assert web.requests[-1][1] == f"bytes={2 * MIB}-"
    assert daemon.client.image("own:test-1")["disk_size"] == len(DISK)
