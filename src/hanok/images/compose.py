"""Makes the image ``lab``: its system as it is, and this very Hanok on a second disk.

The system takes minutes to build and changes seldom, Hanok's files may have changed a moment ago.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from hanok.durable import sync_path
from hanok.images.builder import METADATA
from hanok.images.filing import hash_file
from hanok.images.payload import make_payload
from hanok.images.recipes import Recipe
from hanok.model.image import Image
from hanok.proc import Runner

PAYLOAD = "hanok.img"


async def compose(
    recipe: Recipe, system: Image, source: Path, folder: Path, runner: Runner
) -> Path:
    """Return a finished image folder inside the new folder ``folder``; ``source`` holds ``system``.

    Raises Conflict, HostError and CommandFailed as ``make_payload`` does.
    """
    target, work = folder / "image", folder / "payload"
    for path in (target, work):
        path.mkdir(mode=0o755)
    for name in system.checksums:
        _link(source / name, target / name)
    disk = target / PAYLOAD
    await make_payload(disk, work, recipe.payload, runner)
    disk.chmod(0o644)
    image = system.model_copy(
        update={
            "id": recipe.id,
            "ref": recipe.ref,
            "os": recipe.os,
            "more_disks": (PAYLOAD,),
            "checksums": {**system.checksums, PAYLOAD: hash_file(disk)},
            "created": time.time(),
            "size": system.size + disk.stat().st_blocks * 512,
        }
    )
    path = target / METADATA
    path.write_text(image.model_dump_json(indent=2) + "\n")
    path.chmod(0o644)
    for name in (PAYLOAD, METADATA):
        sync_path(target / name)
    sync_path(target)
    return target


def _link(source: Path, target: Path) -> None:
    """Have the same file in two folders, or a copy where file systems have no such thing."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    target.chmod(0o644)
    sync_path(target)
