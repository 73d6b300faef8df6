"""A library of images of a test's own, with an image of the shared one in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanok.model.image import Image
from tests.images.stripped import share


@contextmanager
def library_of_its_own(image: Image, folder: Path) -> Iterator[Path]:
    """Give the folder of a library that has ``image`` alone, whose folder elsewhere is ``folder``.

    VMs' accounts reach it; what is imported there concerns nobody else.
    """
    images = Path(tempfile.mkdtemp(prefix="hk-images-", dir="/tmp"))
    images.chmod(0o755)
    try:
        share(folder, images / image.id)
        yield images
    finally:
        shutil.rmtree(images)
