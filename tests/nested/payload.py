"""What a nested host is given: this checkout, Python packages for its Python, images."""

from __future__ import annotations

import compileall
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Where it lies in the nested host; short, since sockets lie below.
CHECKOUT = "srv/hanok"
IMAGES = "srv/images"
# Debian 12's Python, and what its C library can load.
_PYTHON = "3.11"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
# Of the development tools only pytest and what it needs run there, and nothing plans or plots.
_TOOLS = ("pip*", "setuptools*", "mypy*", "*__mypyc*", "ruff*", "grimp*", "bin")
_NUMBERS = ("numba*", "llvmlite*", "numpy*", "matplotlib*", "font[Tt]ools*", "pillow*", "PIL")
_NOT_NEEDED = (*_TOOLS, *_NUMBERS)


def make_payload(work: Path, images: Iterable[Path]) -> Path:
    """Return a compressed archive of it, to be unpacked at ``/``; ``images`` are their folders."""
    packages = _packages()
    tree = work / "tree"
    checkout = tree / CHECKOUT
    _copy_checkout(checkout)
    _make_environment(checkout / ".venv", packages)
    # Saves minutes there, if this is the same Python; else it does no harm.
    compileall.compile_dir(checkout, quiet=2)
    for image in images:
        shutil.copytree(image, tree / IMAGES / image.name)
    archive = work / "payload.tar.zst"
    pack = ["tar", "--use-compress-program=zstd -T2 -6", "--owner=0", "--group=0", "--sort=name"]
    _run([*pack, "-cf", str(archive), "-C", str(tree), "."])
    shutil.rmtree(tree)
    return archive


def _copy_checkout(target: Path) -> None:
    """Copy what git knows of the checkout, or would add, as it is now."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    names = _run([*listed, "--exclude-standard"]).split("\0")
    for name in filter(None, names):
        if (source := ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def _make_environment(target: Path, packages: Path) -> None:
    """Lay out a virtual environment of Debian's Python, with this Hanok in it, editable."""
    site = target / f"lib/python{_PYTHON}/site-packages"
    site.parent.mkdir(parents=True)
    shutil.copytree(packages, site, ignore=shutil.ignore_patterns(*_NOT_NEEDED))
    (site / "hanok.pth").write_text(f"/{CHECKOUT}/src\n")
    (target / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (target / "bin").mkdir()
    (target / "bin/python").symlink_to(f"/usr/bin/python{_PYTHON}")


def _packages() -> Path:
    """Return a folder with the pinned packages, fetched when they are not there yet."""
    lock = ROOT / "requirements.lock"
    state = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    kept = ROOT / "build/nested"
    folder = kept / state
    if not folder.exists():
        draft = kept / "new"
        for old in kept.glob("*"):
            shutil.rmtree(old)
        _run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"),
                *("--require-hashes", "-r", str(lock), "--target", str(draft)),
                *("--only-binary", ":all:", "--python-version", _PYTHON),
                *("--implementation", "cp"),
                *(word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)),
                *(word for tag in _PLATFORMS for word in ("--platform", tag)),
            ]
        )
        draft.rename(folder)
    return folder


def _run(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
