"""Daemons for tests: one a module on the fake hypervisor, one on QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.model.image import Image
from tests.daemon.harness import Daemon, new_daemon
from tests.fake_image import fake_images


@pytest.fixture(scope="module")
def fake_daemon() -> Iterator[Daemon]:
    """A daemon on the fake hypervisor, with a micro image that holds no guest."""
    with fake_images() as images, new_daemon("fake", images) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def qemu_daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon on QEMU, with the real micro image."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent) as daemon:
        yield daemon
