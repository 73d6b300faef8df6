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
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from hanok.errors import Conflict, HostError, NotFound
from hanok.images.builder import METADATA, Builder
from hanok.images.compose import compose
from hanok.images.filing import flush, hash_file
from hanok.images.locks import hold, try_lock, unlock
from hanok.images.recipes import Recipe, resolve
from hanok.images.sandbox import remove_foreign, remove_leftovers
from hanok.model.image import Image
from hanok.proc import Account, Runner

_log = logging.getLogger(__name__)
_ID = re.compile(r"[0-9a-f]{16}", re.A)
_BUILD = ".build-"
_TRASH = ".trash-"
_LOCK = ".lock-"


class ImageLibrary:
    """Finds, builds, checks and deletes the images below one folder."""

    def __init__(self, folder: Path, runner: Runner, build_account: Account | None = None) -> None:
        """``build_account``: the uid that builds when we are root (default: one of our own)."""
        self._folder = folder
        self._runner = runner
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
        return self._find(resolve(ref, packages))

    def path(self, image: Image) -> Path:
        """Return the folder that holds the files of ``image``."""
        return self._folder / image.id

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
            flush(self._folder)
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
        build = self._folder / (_BUILD + recipe.id)
        target = self._folder / recipe.id
        async with contextlib.AsyncExitStack() as undo:
            if build.is_dir():
                await remove_foreign(build, self._runner)
            build.mkdir(mode=0o755)
            build.chmod(0o755)
            undo.push_async_callback(remove_foreign, build, self._runner)
            finished = await self._make(recipe, build, progress, lock, below)
            if target.exists():  # its metadata is damaged, or it would have been found
                await asyncio.to_thread(shutil.rmtree, target)
            finished.rename(target)
            flush(self._folder)
        image = self._find(recipe)
        if image is None:
            raise HostError(f"the image {recipe.ref} vanished after it was built")
        progress("built", 1.0)
        return image

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

    def _is_folder(self, image_id: str) -> bool:
        return _ID.fullmatch(image_id) is not None and (self._folder / image_id).is_dir()


def _file_names(image: Image) -> list[str]:
    names = [image.disk, *image.more_disks, *image.checksums]
    for kernel in image.kernels:
        names += [kernel.vmlinuz, kernel.initrd]
    return names


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
