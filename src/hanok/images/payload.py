"""This very Hanok and the Python packages that it runs with, as a disk of a host in a VM.

The packages are those of the running installation where the guest's Python can load them, else
the same versions as wheels. What they contain is told by their RECORD files (PEP 376, PEP 627), so
that the digest of all costs milliseconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path, PurePosixPath

from hanok import __version__
from hanok.errors import CommandFailed, Conflict, HostError
from hanok.proc import Runner
from hanok.units import MIB

# Where it lies in the guest: a virtual environment of the system's Python.
PREFIX = "/opt/hanok"
LABEL = "hanok-opt"
_GUEST_PYTHON = (3, 11)
_GUEST_LIBC = (2, 36)
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
_WHEELS_LIMIT = 600.0
_COMPILE_LIMIT = 300.0
# Raised whenever something else is made of the same files.
_REVISION = 1
_COMMAND = f"""#!{PREFIX}/bin/python3 -P
import sys

from hanok.cli.main import main

sys.exit(main())
"""
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.A)
_EXTRA = re.compile(r"\bextra\b")


@dataclass(frozen=True)
class Package:
    """An installed Python package; ``digest`` names what is in it."""

    name: str
    version: str
    digest: str
    files: metadata.Distribution


def installed_packages() -> list[Package]:
    """Return what Hanok needs, by name. Optional extras are not followed. Raises HostError."""
    found: dict[str, Package] = {}
    waiting = own_requirements()
    while waiting:
        wanted = waiting.pop()
        if wanted in found or wanted == "hanok":
            continue
        try:
            distribution = metadata.distribution(wanted)
        except metadata.PackageNotFoundError:
            continue  # not needed with this Python: its marker says so
        record = distribution.read_text("RECORD") or ""
        digest = hashlib.sha256(record.encode()).hexdigest()
        found[wanted] = Package(wanted, distribution.version, digest, distribution)
        waiting += _names(distribution.requires or [])
    return [found[key] for key in sorted(found)]


def payload_digest() -> str:
    """Return a digest of what ``make_payload`` makes. Raises HostError."""
    content = hashlib.sha256(f"{_REVISION} {_dotted()} {fits_guest()}\n".encode())
    for package in installed_packages():
        content.update(f"{package.name} {package.version} {package.digest}\n".encode())
    for path in _sources():
        content.update(f"{path.relative_to(_root())}\n".encode())
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()


def fits_guest() -> bool:
    """Whether the guest's Python can load this Python's packages, compiled parts included."""
    libc, version = platform.libc_ver()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    same = sys.version_info[:2] == _GUEST_PYTHON and sys.implementation.name == "cpython"
    return same and libc == "glibc" and numbers <= _GUEST_LIBC


async def make_payload(disk: Path, work: Path, digest: str, runner: Runner) -> None:
    """Make the raw ext4 ``disk``, to be mounted at PREFIX, of what is installed as of ``digest``.

    ``work``: a folder that is there and empty. Raises Conflict when what is installed changed
    meanwhile, HostError when wheels are needed and cannot be had.
    """
    site = work / f"lib/python{_dotted()}/site-packages"
    site.mkdir(parents=True)
    packages = installed_packages()
    if fits_guest():
        await asyncio.to_thread(_copy_packages, packages, site)
    else:
        await _fetch_wheels(packages, site, runner)
    for path in _sources():
        _copy(path, site / "hanok" / path.relative_to(_root()))
    _write_metadata(site)
    _write_environment(work)
    if payload_digest() != digest:
        raise Conflict(
            "this Hanok was changed while it was being copied into an image", hint="try again"
        )
    if fits_guest():
        # What is compiled is never compared with its source again: that would cost each start as
        # many system calls as there are modules.
        await runner.run(_compiler(work), timeout=_COMPILE_LIMIT)
    _open_to_all(work)
    used = sum(path.lstat().st_size + 4096 for path in work.rglob("*"))
    size = (used + used // 8) // MIB + 16
    await runner.run(_mke2fs(disk, work, size), timeout=_COMPILE_LIMIT)


def _compiler(work: Path) -> list[str]:
    argv = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # The names in tracebacks are those of the guest.
    return [*argv, "-s", str(work), "-p", PREFIX, str(work / "lib")]


def _mke2fs(disk: Path, work: Path, size: int) -> list[str]:
    return [
        *("mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0", "-O", "^has_journal"),
        *("-E", "root_owner=0:0", "-d", str(work), str(disk), f"{size}M"),
    ]


def own_requirements() -> list[str]:
    """Return the names of what Hanok itself needs. Raises HostError when nothing tells.

    A checkout's own word counts: the metadata of an editable installation may be older.
    """
    project = _root().parents[1] / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text()).get("project", {})
        if content.get("name") == "hanok":
            return _names(content["dependencies"])
    try:
        return _names(metadata.distribution("hanok").requires or [])
    except metadata.PackageNotFoundError:
        raise HostError(
            "Hanok is not installed as a Python package, so what it needs is not known",
            hint="install it, such as by 'pip install --editable .' in its checkout",
        ) from None


def _names(requirements: Iterable[str]) -> list[str]:
    """Return the names, in their normal form (PEP 503), of those that belong to no extra."""
    found = []
    for text in requirements:
        wanted, _, marker = text.partition(";")
        name = _REQUIREMENT.match(wanted)
        if name is not None and _EXTRA.search(marker) is None:
            found.append(re.sub(r"[-_.]+", "-", name[0]).lower())
    return found


def _root() -> Path:
    return Path(str(resources.files("hanok")))


def _sources() -> list[Path]:
    """Return Hanok's own files, in order."""
    found = []
    for folder, folders, names in os.walk(_root()):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _dotted() -> str:
    return ".".join(str(number) for number in _GUEST_PYTHON)


def _copy_packages(packages: Iterable[Package], site: Path) -> None:
    """Copy the files of packages that lie in site-packages: not their scripts."""
    for entry in (entry for package in packages for entry in package.files.files or []):
        path = PurePosixPath(entry)
        if path.is_absolute() or ".." in path.parts or "__pycache__" in path.parts:
            continue
        source = Path(str(entry.locate()))
        if source.is_file():
            _copy(source, site / path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _write_metadata(site: Path) -> None:
    """Say that Hanok is installed there, and what it needs: it may be asked for a lab itself."""
    folder = site / f"hanok-{__version__}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: hanok", f"Version: {__version__}"]
    lines += [f"Requires-Dist: {name}" for name in own_requirements()]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


def _write_environment(work: Path) -> None:
    """Make it a virtual environment of the guest's Python, with the command ``hanok``."""
    (work / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    folder = work / "bin"
    folder.mkdir()
    (folder / "python3").symlink_to("/usr/bin/python3")
    (folder / "hanok").write_text(_COMMAND)


async def _fetch_wheels(packages: list[Package], site: Path, runner: Runner) -> None:
    tag = f"cp{_GUEST_PYTHON[0]}{_GUEST_PYTHON[1]}"
    platforms = [f"{name}_{platform.machine()}" for name in _PLATFORMS]
    argv = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"),
        *("--target", str(site), "--only-binary", ":all:", "--no-compile"),
        *("--python-version", _dotted(), "--implementation", "cp"),
        *(word for abi in (tag, "abi3", "none") for word in ("--abi", abi)),
        *(word for name in platforms for word in ("--platform", name)),
        *(f"{package.name}=={package.version}" for package in packages),
    ]
    try:
        await runner.run(argv, timeout=_WHEELS_LIMIT)
    except CommandFailed as error:
        raise HostError(
            f"this Python is not the guest's ({_dotted()}), and the packages for that one could"
            f" not be fetched: {error.message}",
            hint=f"run Hanok with Python {_dotted()}, or let pip reach a package index",
        ) from error


def _open_to_all(folder: Path) -> None:
    """Give it the modes that installed files have, whatever the umask was."""
    for parent, _, names in os.walk(folder):
        Path(parent).chmod(0o755)
        for path in (Path(parent) / name for name in names):
            if not path.is_symlink():
                is_program = path.parent.name == "bin" or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if is_program else 0o644)
