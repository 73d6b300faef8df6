"""What hostile files cost the programs that look at them: ``python -m tests.foreign.measure``.

In a process of its own, since the kernel keeps the most that children ever took for good.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
import stat
import tempfile
from pathlib import Path

from hanok.errors import HanokError
from hanok.images.foreign.take import ForeignOrder
from hanok.images.library import ImageLibrary
from hanok.model.image import ImportRequest
from hanok.proc import Account, SystemRunner
from hanok.units import GIB, KIB
from tests.conftest import BUILD_UID
from tests.foreign.hostile import CASES, Case, Place


def main() -> None:
    """Import all files, and print what that took as JSON: bytes and CPU seconds."""
    folder = Path(tempfile.mkdtemp(prefix="hk-cost-", dir="/tmp"))
    try:
        folder.chmod(0o711)
        files = [made for name, case in CASES.items() if (made := _make(folder, name, case))]
        child = os.fork()  # what making them took is not its children's
        if child == 0:
            library = ImageLibrary(folder / "images", SystemRunner(), Account(BUILD_UID, BUILD_UID))
            slowest = max(_seconds(library, number, *made) for number, made in enumerate(files))
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            told = {"files": len(files), "slowest": slowest, "memory": used.ru_maxrss * KIB}
            print(json.dumps(told), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        raise SystemExit(os.waitstatus_to_exitcode(status))
    finally:
        shutil.rmtree(folder)


def _make(folder: Path, name: str, case: Case) -> tuple[Path, Case] | None:
    """Return a file that a daemon could be sent, or None: the command refuses the others."""
    place = folder / name.replace(" ", "-").replace(",", "")
    (place / "in").mkdir(parents=True)
    (place / "canary").write_bytes(b"canary")
    path = case.make(Place(place / "in", place / "canary"))
    told = path.lstat()
    fits = stat.S_ISREG(told.st_mode) and told.st_size < GIB and path.suffix != ".ovf"
    return (path, case) if fits else None


def _seconds(library: ImageLibrary, number: int, path: Path, case: Case) -> float:
    """Return the CPU seconds that children take for one import."""
    said = {
        key.removeprefix("--"): value
        for key, value in zip(case.options[::2], case.options[1::2], strict=True)
    }
    wanted = ImportRequest.model_validate({"name": f"n{number}", "file": "f", **said})
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    before = _taken()
    try:
        asyncio.run(library.take(ForeignOrder(path, digest, wanted), lambda message, done: None))
    except HanokError:
        assert not case.taken, path
    else:
        assert case.taken, path
    return _taken() - before


def _taken() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
