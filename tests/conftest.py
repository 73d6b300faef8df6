"""What all tests share: short folders, the process runner, the guest, and a check for leftovers.

``HANOK_TEST_IMAGES`` names the folder that keeps built images between runs;
``HANOK_TEST_MICRO`` the folder of a ready micro image that is used instead of building one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from hanok.model.image import Image
from hanok.proc import Account, SystemRunner, is_alive, owner_of
from tests.machine import patient

# Guests boot in tests unless a test is about warm starts: making templates takes CPU from others.
os.environ.setdefault("HANOK_WARM", "0")


IMAGES = "/var/cache/hanok-test/images"
BUILD_UID = 1_700_070_000


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their parameter: their content may differ from one collection to the next.

    gzip puts the time into its header, and the two processes that share a run must agree on names.
    """
    return argname if isinstance(val, bytes | bytearray) else None


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder whose path leaves room for unix sockets, reachable by VMs' accounts."""
    folder = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def runner() -> SystemRunner:
    """What starts processes."""
    return SystemRunner()


@pytest.fixture(scope="session")
def micro_image() -> tuple[Image, Path]:
    """The image ``micro`` and its folder, built if there is none yet."""
    if ready := os.environ.get("HANOK_TEST_MICRO"):
        folder = Path(ready)
        return Image.model_validate_json((folder / "image.json").read_bytes()), folder
    images = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    # A thread of its own, since an async test may be the first to ask.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(_build_micro(images))).result()


async def _build_micro(images: Path) -> tuple[Image, Path]:
    from hanok.images.library import ImageLibrary

    def show(message: str, fraction: float | None) -> None:
        print(f"micro: {message}")

    images.mkdir(parents=True, exist_ok=True)
    account = Account(BUILD_UID, BUILD_UID) if os.geteuid() == 0 else None
    library = ImageLibrary(images, SystemRunner(), account)
    image = await library.ensure("micro", (), show)
    return image, library.path(image)


@pytest.fixture(autouse=True)
def no_orphans(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test with VMs no process of a data directory that is gone may be left.

    Data directories that are still there belong to fixtures that are still in use.
    """
    if request.node.get_closest_marker("vm") is None:
        yield
        return
    before = _orphans()
    yield
    # Another test's teardown may be removing its folder at this moment: give it a little time.
    retrying = Retrying(
        stop=stop_after_delay(patient(5)),
        wait=wait_fixed(0.1),
        retry=retry_if_result(bool),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else [],
    )
    assert retrying(lambda: sorted(_orphans() - before)) == []


def _orphans() -> set[str]:
    found = set()
    for entry in os.scandir("/proc"):
        owner = owner_of(int(entry.name)) if entry.name.isdigit() else None
        if owner is None or not owner.home.startswith(f"{tempfile.gettempdir()}/"):
            continue
        if Path(owner.home).exists() or not _is_of_this_run(entry.path):
            continue
        if is_alive(int(entry.name)):
            found.add(f"process {entry.name}: {owner.kind} {owner.ident} of {owner.home}")
    return found


def _is_of_this_run(process: str) -> bool:
    """Whether a process is of our PID namespace: another run has a /tmp of its own in another."""
    try:
        return Path(process, "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:  # it has just ended
        return False
