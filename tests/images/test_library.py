"""The library around a build: once for many, nothing left of what failed, nothing outside it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path

import pytest

from hanok.errors import CommandFailed, Conflict, HostError, InvalidInput, NotFound
from hanok.images.library import ImageLibrary
from hanok.images.recipes import resolve
from hanok.model.image import Image
from tests.images.builds import QuickBuilds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds as another uid need root")


def _silent(message: str, fraction: float | None) -> None:
    return


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".apt-cache"}


@pytest.fixture
def folder(short_tmp: Path) -> Path:
    """A folder for images."""
    return short_tmp / "images"


async def test_built_once_then_found(folder: Path) -> None:
    runner = QuickBuilds()
    library = ImageLibrary(folder, runner)
    assert library.find("micro") is None
    assert library.list() == []
    image = await library.ensure("micro", (), _silent)
    assert await library.ensure("micro", (), _silent) == image
    assert runner.count == 1
    assert library.find("micro") == library.get(image.id) == image
    assert library.list() == [image]
    assert image.id == resolve("micro").id
    assert _names(folder) == {image.id}
    await library.verify(image)


async def test_files_are_for_all_to_read_and_for_none_to_write(folder: Path) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    image = await library.ensure("micro", (), _silent)
    path = library.path(image)
    assert path.stat().st_mode & 0o777 == 0o755
    for file in path.iterdir():
        assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o644, 0)
    assert {file.name for file in path.iterdir()} - {"image.json"} == set(image.checksums)


async def test_many_at_once_build_once(folder: Path) -> None:
    runner = QuickBuilds()
    runner.gate.clear()
    libraries = [ImageLibrary(folder, runner) for _ in range(3)]
    waiting: set[str] = set()
    tasks = [
        asyncio.create_task(library.ensure("micro", (), lambda text, _: waiting.add(text)))
        for library in libraries
    ]
    while "waiting for another build of the same image" not in waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    runner.gate.set()
    images = await asyncio.gather(*tasks)
    assert runner.count == 1
    assert images[0] == images[1] == images[2]
    assert _names(folder) == {images[0].id}


async def test_failed_build_tells_its_last_lines_and_leaves_nothing(folder: Path) -> None:
    runner = QuickBuilds(failure="I: running apt-get update...\nE: it did not work")
    with pytest.raises(CommandFailed, match="it did not work"):
        await ImageLibrary(folder, runner).ensure("micro", (), _silent)
    assert _names(folder) == set()


async def test_missing_package_is_bad_input(folder: Path) -> None:
    runner = QuickBuilds(failure="E: Unable to locate package ngins")
    with pytest.raises(InvalidInput, match="Debian 12 has no package ngins") as caught:
        await ImageLibrary(folder, runner).ensure("debian:12", ("ngins",), _silent)
    assert caught.value.field == "packages"
    assert _names(folder) == set()


async def test_cancelled_build_leaves_nothing(folder: Path) -> None:
    runner = QuickBuilds()
    runner.gate.clear()
    task = asyncio.create_task(ImageLibrary(folder, runner).ensure("micro", (), _silent))
    while runner.count == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _names(folder) == set()


def _link(out: Path) -> None:
    (out / "disk.qcow2").unlink()
    (out / "disk.qcow2").symlink_to("/etc/shadow")


def _hard_link(out: Path) -> None:
    (out / "second").hardlink_to(out / "disk.qcow2")


def _other_owner(out: Path) -> None:
    os.chown(out / "initrd-cloud", 0, 0)


def _backing(out: Path) -> None:
    head = bytearray((out / "disk.qcow2").read_bytes())
    head[8:16] = (104).to_bytes(8, "big")
    (out / "disk.qcow2").write_bytes(head)


def _missing(out: Path) -> None:
    (out / "initrd-generic").unlink()


@pytest.mark.parametrize("spoil", [_link, _hard_link, _other_owner, _backing, _missing])
async def test_what_foreign_code_may_leave_is_not_taken(folder: Path, spoil: object) -> None:
    library = ImageLibrary(folder, QuickBuilds(spoil=spoil))  # type: ignore[arg-type]
    with pytest.raises(HostError):
        await library.ensure("micro", (), _silent)
    assert _names(folder) == set()
    assert library.find("micro") is None


async def test_damage_is_found_and_named(folder: Path) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    image = await library.ensure("micro", (), _silent)
    file = library.path(image) / "initrd-cloud"
    file.write_text("other")
    with pytest.raises(HostError, match="initrd-cloud"):
        await library.verify(image)
    file.unlink()
    with pytest.raises(HostError, match="initrd-cloud"):
        await library.verify(image)


async def test_image_without_a_file_is_built_again(folder: Path) -> None:
    runner = QuickBuilds()
    library = ImageLibrary(folder, runner)
    image = await library.ensure("micro", (), _silent)
    (library.path(image) / "disk.qcow2").unlink()
    assert library.find("micro") is None
    await library.verify(await library.ensure("micro", (), _silent))
    assert runner.count == 2


@pytest.mark.parametrize(
    "change",
    [
        {"disk": "../../secret"},
        {"checksums": {"/etc/shadow": "00"}},
        {"id": "f" * 16},
        {"unknown": 1},
        {"kernels": [{"name": "k", "vmlinuz": "..", "initrd": "i", "cmdline": "", "modes": []}]},
    ],
)
async def test_metadata_that_is_not_ours_is_ignored(
    folder: Path, change: dict[str, object]
) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    image = await library.ensure("micro", (), _silent)
    path = library.path(image) / "image.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert library.get(image.id) is None
    assert library.list() == []
    await library.delete(image.id)
    assert _names(folder) == set()


@pytest.mark.parametrize("image_id", ["", "..", "../x", "F" * 16, "0" * 16, ".apt-cache"])
async def test_what_is_not_here_cannot_be_deleted(folder: Path, image_id: str) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    await library.ensure("micro", (), _silent)
    assert library.get(image_id) is None
    with pytest.raises(NotFound):
        await library.delete(image_id)
    assert len(library.list()) == 1


async def test_delete_waits_for_no_build(folder: Path) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    image = await library.ensure("micro", (), _silent)
    with (folder / f".lock-{image.id}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict):
            await library.delete(image.id)
    await library.delete(image.id)
    assert library.find("micro") is None
    assert _names(folder) == set()


def test_sweep_leaves_the_living_alone(folder: Path) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    library.sweep()  # a folder that is not there is nothing to sweep
    living, dead = "a" * 16, "b" * 16
    for name in (f".build-{living}", f".build-{dead}", f".trash-{dead}-x", living):
        (folder / name / "inner").mkdir(parents=True)
    with (folder / f".lock-{living}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library.sweep()
        assert _names(folder) == {f".build-{living}", f".lock-{living}", living}
    library.sweep()
    assert _names(folder) == {living}


async def test_id_of_an_image_is_its_folder(folder: Path) -> None:
    library = ImageLibrary(folder, QuickBuilds())
    image: Image = await library.ensure("debian:13", ("nginx",), _silent)
    assert library.path(image) == folder / image.id
    assert (image.ssh_user, image.cloud_init, image.packages) == ("debian", True, ("nginx",))
