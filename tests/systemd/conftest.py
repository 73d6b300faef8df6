"""One host with a real systemd for all tests of this folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.images.library import ImageLibrary
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES
from tests.nested.payload import make_payload
from tests.systemd.guest import SystemdHost, systemd_host


@pytest.fixture(scope="package")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    """The host, with this checkout, the image of micro, and hanokd running as its unit."""
    images = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    library = ImageLibrary(images, SystemRunner(), Account(BUILD_UID, BUILD_UID))
    micro = asyncio.run(library.ensure("micro", (), lambda message, fraction: None))
    payload = make_payload(tmp_path_factory.mktemp("payload"), [library.path(micro)])
    with systemd_host(images, payload) as host:
        yield host
