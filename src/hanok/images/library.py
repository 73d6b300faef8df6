"""The images of a host: one folder each, named by the image's id; built when they are missing.

    <folder>/<id>/           image.json, disk.qcow2, kernels and initrds; never written again
    <folder>/.build-<id>/    a build under way; renamed to <id> when it is whole and flushed
    <folder>/.trash-<id>-N/  an image being deleted
    <folder>/.lock-<id>      held by whoever builds or deletes that image
    <folder>/.apt-cache/     downloaded packages

Several daemons may share one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError

from hanok.durable import sync_path
from hanok.errors import CommandFailed, Conflict, HostError, NotFound, Unsupported
from hanok.filesystems import disk_full, file_system_of, full_error, is_full
from hanok.images.builder import METADATA, Builder
from hanok.images.change import Emulators
from hanok.images.compose import compose
from hanok.images.filing import hash_file
from hanok.images.foreign.take import ForeignOrder, take_foreign
from hanok.images.locks import hold, try_lock, unlock
from hanok.images.paravirtualize import Order, paravirtualize
from hanok.images.progress import Report
from hanok.images.recipes import Recipe, is_own, resolve
from hanok.images.sandbox import remove_foreign, remove_leftovers
from hanok.model.architecture import Arch
from hanok.model.image import Image
from hanok.proc import Account, Runner
from hanok.units import GIB, MIB

_log = logging.getLogger(__name__)
_ID = re.compile(r"[0-9a-f]{16}", re.A)
_BUILD = ".build-"
_TRASH = ".trash-"
_LOCK = ".lock-"
# The smallest image, with what its build leaves behind.
_LEAST_ROOM = 512 * MIB
_STEP = 256 * MIB
_PLENTY = 16 * GIB  # more than any build was seen to need: what lacks room is another disk
_NO_ROOM = re.compile("No space left on device|enough free space|Disk quota exceeded")


class ImageLibrary:
    """Finds, builds, checks and deletes the images below one folder."""

    def __init__(
        self,
        folder: Path,
        runner: Runner,
        build_account: Account | None = None,
        emulators: Emulators | None = None,
    ) -> None:
        """``build_account``: the uid that builds when we are root (default: one of our own).

        ``emulators`` knows what runs a kernel that is put onto a disk.
        """
        self._folder = folder
        self._runner = runner
        self._account = build_account
        self._emulators = emulators
        self._builder = Builder(runner, build_account, folder / ".apt-cache")

    def list(self) -> list[Image]:
        """Return all images, ordered by name and packages."""
        if not self._folder.is_dir():
            return []
        names = [entry.name for entry in os.scandir(self._folder) if _ID.fullmatch(entry.name)]
        found = [image for name in names if (image := self.get(name)) is not None]
        return sorted(found, key=lambda image: (image.ref, image.packages, image.id))

    def get(self, image_id: str) -> Image | None:
        """Return image ``image_id``, or None when it is not here or its metadata is damaged."""
        if _ID.fullmatch(image_id) is None:
            return None
        path = self._folder / image_id / METADATA
        try:
            image = Image.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            _log.warning("%s is not readable as an image: %s", path, error)
            return None
        if image.id != image_id or not all(_is_plain(name) for name in _file_names(image)):
            _log.warning("%s names files outside its folder, or another image", path)
            return None
        return image

    def find(self, ref: str, packages: tuple[str, ...] = ()) -> Image | None:
        """Return the image that ``ref`` with ``packages`` means now, if it is built already.

        Raises InvalidInput when there can be no such image.
        """
        if is_own(ref):
            return self._find_own(ref, packages)
        return self._find(resolve(ref, packages))

    def identity(self, ref: str, packages: tuple[str, ...] = ()) -> str:
        """Return the id of the image that ``ref`` with ``packages`` means now, built or not.

        Raises InvalidInput when there can be no such image, NotFound for one that was made of
        another and is gone.
        """
        if is_own(ref):
            return self._own(ref, packages).id
        return resolve(ref, packages).id

    def path(self, image: Image) -> Path:
        """Return the folder that holds the files of ``image``."""
        return self._folder / image.id

    def architecture(self, ref: str, packages: tuple[str, ...] = ()) -> Arch | None:
        """Return what guests of image ``ref`` run on; None for one of the user's that is gone.

        Raises InvalidInput for an image that is not known.
        """
        if is_own(ref):
            image = self._find_own(ref, packages)
            return None if image is None else image.architecture
        return resolve(ref, packages).architecture

    async def ensure(
        self,
        ref: str,
        packages: tuple[str, ...],
        progress: Callable[[str, float | None], None],
    ) -> Image:
        """Return the image, building it when it is missing; ``progress`` gets message and fraction.

        Of several that ask at once, in this process or others, one builds and the rest wait.
        Raises InvalidInput (image, packages), HostError when this host cannot build,
        CommandFailed with the last lines of a failed build, TimedOut. A failed or cancelled build
        leaves nothing but downloaded packages.
        """
        if is_own(ref):
            return self._own(ref, packages)
        recipe = resolve(ref, packages)
        if (image := self._find(recipe)) is not None:
            return image
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o755)

        def waiting() -> None:
            progress("waiting for another build of the same image", None)

        below = None
        if recipe.stands_on is not None:
            below = await self.ensure(recipe.stands_on.ref, (), progress)
            recipe = resolve(ref, packages)  # what it is made of may have changed during that
        async with hold(self._folder / (_LOCK + recipe.id), waiting) as lock:
            if (image := self._find(recipe)) is not None:
                return image
            return await self._build(recipe, progress, lock, below)

    async def paravirtualize(self, order: Order, progress: Report) -> Image:
        """Return the image that ``order`` describes, making it when it is missing.

        Raises Conflict when another image has its name, GuestError when the disk cannot be
        changed, HostError when nothing here runs the kernel, CommandFailed, TimedOut. A failed or
        cancelled attempt leaves nothing.
        """
        arch = order.kit.image.architecture
        if self._emulators is None:
            raise HostError(f"there is nothing on this host that runs kernels of {arch}")
        emulator = self._emulators(arch)

        async def make(build: Path) -> Path:
            return await paravirtualize(
                order, build, self._account, self._runner, progress, emulator
            )

        return await self._add(order.id, order.ref, make, progress)

    async def take(self, order: ForeignOrder, progress: Report) -> Image:
        """Return the image of a foreign disk, making it when it is missing.

        Raises Conflict when another image has its name, and what ``take_foreign`` raises. A failed
        or cancelled attempt leaves nothing but the file that was given.
        """

        async def make(build: Path) -> Path:
            return await take_foreign(order, build, self._account, self._runner, progress)

        self._folder.mkdir(parents=True, exist_ok=True)
        return await self._add(order.id, order.ref, make, progress)

    async def _add(
        self, image_id: str, ref: str, make: Callable[[Path], Awaitable[Path]], progress: Report
    ) -> Image:
        """Return the image that was named by a user, made by ``make`` when it is missing."""

        def waiting() -> None:
            progress("waiting for another command that makes the same image", None)

        async with hold(self._folder / (_LOCK + image_id), waiting):
            if (image := self.get(image_id)) is not None:
                return image
            self.check_free(ref)
            await self._put(image_id, make)
        image = self.get(image_id)
        if image is None:
            raise HostError(f"the image {ref} vanished after it was made")
        return image

    def check_free(self, ref: str) -> None:
        """Raise Conflict when an image is called ``ref`` already."""
        if (other := self._find_own(ref)) is not None:
            raise Conflict(
                f"the name {ref} is that of another image ({other.id})",
                field="name",
                hint=f"choose another name, or delete that one: hanok image delete {other.id}",
            )

    async def delete(self, image_id: str) -> None:
        """Delete an image. Raises NotFound; Conflict while it is being built or deleted."""
        if self.get(image_id) is None and not self._is_folder(image_id):
            raise NotFound(f"there is no image {image_id[:60]!r}", field="image")
        lock_path = self._folder / (_LOCK + image_id)
        lock = try_lock(lock_path)
        if lock is None:
            raise Conflict(f"image {image_id} is being built", hint="wait for it, then delete it")
        try:
            trash = Path(tempfile.mkdtemp(prefix=f"{_TRASH}{image_id}-", dir=self._folder))
            with contextlib.suppress(FileNotFoundError):
                (self._folder / image_id).rename(trash / image_id)
            sync_path(self._folder)
            await asyncio.to_thread(shutil.rmtree, trash)
        finally:
            unlock(lock_path, lock)

    async def verify(self, image: Image) -> None:
        """Check every file of ``image`` against its checksum; raises HostError naming the first
        that is missing or damaged."""
        for name, expected in image.checksums.items():
            path = self.path(image) / name
            try:
                found = await asyncio.to_thread(hash_file, path)
            except OSError as error:
                found = error.strerror or "not readable"
            if found != expected:
                raise HostError(
                    f"the file {path} of image {image.ref} is damaged or missing",
                    hint=f"hanok image delete {image.id}, then build it again",
                )

    def sweep(self) -> None:
        """Remove what dead builds and deletions left; those that live are left alone."""
        if not self._folder.is_dir():
            return
        if not os.access(self._folder, os.W_OK):  # another user's, who sees to it
            return
        for entry in [Path(found) for found in os.scandir(self._folder)]:
            if entry.name.startswith(_BUILD):
                self._sweep_build(entry)
            elif entry.name.startswith(_TRASH):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name.startswith(_LOCK) and (lock := try_lock(entry)) is not None:
                unlock(entry, lock)

    def _sweep_build(self, build: Path) -> None:
        lock_path = self._folder / (_LOCK + build.name.removeprefix(_BUILD))
        if (lock := try_lock(lock_path)) is not None:
            try:
                remove_leftovers(build)
            finally:
                unlock(lock_path, lock)

    async def _build(
        self,
        recipe: Recipe,
        progress: Callable[[str, float | None], None],
        lock: int,
        below: Image | None,
    ) -> Image:
        async def make(build: Path) -> Path:
            return await self._make(recipe, build, progress, lock, below)

        await self._put(recipe.id, make)
        image = self._find(recipe)
        if image is None:
            raise HostError(f"the image {recipe.ref} vanished after it was built")
        progress("built", 1.0)
        return image

    async def _put(self, image_id: str, make: Callable[[Path], Awaitable[Path]]) -> None:
        """Put what ``make`` makes in a folder of its own where image ``image_id`` belongs."""
        build = self._folder / (_BUILD + image_id)
        target = self._folder / image_id
        async with contextlib.AsyncExitStack() as undo:
            if build.is_dir():
                await remove_foreign(build, self._runner)
            build.mkdir(mode=0o755)
            build.chmod(0o755)
            undo.push_async_callback(remove_foreign, build, self._runner)
            free = file_system_of(self._folder).free
            try:
                finished = await make(build)
            except (CommandFailed, OSError) as error:
                if free > _PLENTY or not self._is_for_want_of_room(error):
                    raise
                needed = max(free + _STEP, _LEAST_ROOM)  # what there was did not do
                raise disk_full(self._folder, "the image", needed) from error
            if target.exists():  # its metadata is damaged, or it would have been found
                await asyncio.to_thread(shutil.rmtree, target)
            finished.rename(target)
            sync_path(self._folder)

    def _is_for_want_of_room(self, error: CommandFailed | OSError) -> bool:
        """Whether a build failed since the file system was full; its files may be gone by now."""
        if isinstance(error, OSError):
            return full_error(error) is not None
        return is_full(self._folder) or _NO_ROOM.search(error.message) is not None

    async def _make(
        self,
        recipe: Recipe,
        build: Path,
        progress: Callable[[str, float | None], None],
        lock: int,
        below: Image | None,
    ) -> Path:
        """Make the image in the folder ``build``, of or with the image ``below`` if it has one."""
        source = None if below is None else self.path(below)
        if below is None or source is None or not recipe.payload:
            return await self._builder.build(recipe, build, progress, lock, source)
        progress("copying this Hanok and its packages", None)
        return await compose(recipe, below, source, build, self._runner)

    def _find(self, recipe: Recipe) -> Image | None:
        image = self.get(recipe.id)
        if image is None or image.ref != recipe.ref:
            return None
        whole = all((self.path(image) / name).is_file() for name in _file_names(image))
        return image if whole else None

    def _own(self, ref: str, packages: tuple[str, ...]) -> Image:
        image = self._find_own(ref, packages)
        if image is None:
            raise NotFound(
                f"there is no image {ref} on this host",
                field="image",
                hint="'hanok image list' shows those that are",
            )
        return image

    def _find_own(self, ref: str, packages: tuple[str, ...] = ()) -> Image | None:
        if packages:
            raise Unsupported(
                f"packages cannot be added to {ref}, which was imported or made of another image",
                field="packages",
                expected="no packages",
            )
        return next((image for image in self.list() if image.ref == ref), None)

    def _is_folder(self, image_id: str) -> bool:
        return _ID.fullmatch(image_id) is not None and (self._folder / image_id).is_dir()


def _file_names(image: Image) -> list[str]:
    names = [image.disk, *image.more_disks, *image.checksums]
    names += [disk.file for disk in image.data_disks]
    for kernel in image.kernels:
        names += kernel.files
    return names


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
