"""The wheel, built from this checkout and installed elsewhere, for an ordinary user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hanok.images.payload import installed_packages
from hanok.model.image import Image
from hanok.proc import find_owned, is_alive
from tests.daemon.harness import wait_until
from tests.ordinary.account import Ordinary, find_python, make_ordinary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as 'make wheel' builds it."""
    if not (ROOT / ".venv/bin/python").exists():
        pytest.skip("the wheel is built by .venv, which 'make setup' makes")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / "scripts/wheel.sh", folder], check=True, capture_output=True)
    (found,) = folder.glob("hanok-*.whl")
    return found


@pytest.fixture(scope="session")
def venv(wheel: Path) -> Iterator[Path]:
    """A virtual environment outside the checkout that every user may run, with the wheel in it."""
    python = find_python()
    if python is None:
        pytest.skip("there is no Python 3.11 with venv in /usr that an ordinary user may run")
    folder = Path(tempfile.mkdtemp(prefix="hk-venv-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
        _install(folder, wheel)
        for path in folder.rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))
        yield folder
    finally:
        shutil.rmtree(folder)


def _install(folder: Path, wheel: Path) -> None:
    """Install by pip; what Hanok needs is copied where this Python has the same, else fetched."""
    python = folder / "bin/python"
    site = next(folder.glob("lib/python*/site-packages"))
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if site.parent.name == f"python{sys.version_info[0]}.{sys.version_info[1]}":
        _copy_packages(site)
        subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    else:
        pins = re.findall(r"^(\S+==[^\s\\]+)", (ROOT / "requirements.lock").read_text(), re.M)
        (folder / "pins").write_text("\n".join(pins))
        subprocess.run([*pip, "install", "--constraint", folder / "pins", wheel], check=True)
    subprocess.run([*pip, "check"], check=True)


def _copy_packages(site: Path) -> None:
    for package in installed_packages():
        for entry in package.files.files or []:
            source = Path(str(entry.locate()))
            if ".." in entry.parts or "__pycache__" in entry.parts or not source.is_file():
                continue
            target = site / entry
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


@pytest.fixture(scope="module")
def make_user(venv: Path, micro_image: tuple[Image, Path]) -> Iterator[Callable[..., Ordinary]]:
    """Give new users who share the images of the tests; nothing of theirs may be left."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    users: list[tuple[Path, Ordinary]] = []

    def make(**options: str | bool) -> Ordinary:
        folder = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
        folder.chmod(0o711)
        images = {"HANOK_IMAGES": str(micro_image[1].parent)}
        user = make_ordinary(folder, venv, **{**images, **options})  # type: ignore[arg-type]
        users.append((folder, user))
        return user

    try:
        yield make
        for _, user in users:
            if user.data.exists():
                _leave(user)
    finally:
        for folder, user in users:
            for process in find_owned(user.data):
                os.kill(process.pid, 9)
            shutil.rmtree(folder)


def _leave(user: Ordinary) -> None:
    """Delete all VMs, end the daemon, and see that nothing is left."""
    names = [vm["name"] for vm in user.json("list")]
    if names:
        user.ok("delete", "--force", *names)
    pid = daemon_of(user)
    if pid is not None:
        os.kill(pid, 15)
        wait_until(lambda: not is_alive(pid), 30, "the daemon ends")
    assert [process for process in find_owned(user.data) if is_alive(process.pid)] == []
    left = [path for name in ("vms", "networks") for path in (user.data / name).iterdir()]
    assert left == []


def daemon_of(user: Ordinary) -> int | None:
    """Return the pid of the daemon of a user's data directory, None when none runs."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            argv = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            environ = Path(entry.path, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hanok.app" in argv and f"HANOK_HOME={user.data}".encode() in environ:
            return int(entry.name)
    return None
