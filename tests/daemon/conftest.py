"""Daemons for tests: one a module on the fake hypervisor, one on QEMU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.model.image import Image
from tests.daemon.harness import Daemon, new_daemon
from tests.fake_image import make_fake_image


@pytest.fixture(scope="module")
def fake_daemon() -> Iterator[Daemon]:
    """A daemon on the fake hypervisor, with a micro image that holds no guest."""
    # Not below pytest's own folder: that one keeps the VMs' accounts out.
    with tempfile.TemporaryDirectory(prefix="hk-images-", dir="/tmp") as folder:
        images = Path(folder)
        images.chmod(0o755)
        make_fake_image(images)
        with new_daemon("fake", images) as daemon:
            yield daemon


@pytest.fixture(scope="module")
def qemu_daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon on QEMU, with the real micro image."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent) as daemon:
        yield daemon
