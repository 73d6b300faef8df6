"""A daemon on the fake hypervisor that answers over the network, and tokens for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.api.wire import Wire
from tests.daemon.harness import Daemon, new_daemon
from tests.fake_image import fake_images

ROLES = ("viewer", "operator", "administrator")


@dataclass
class Host:
    """A daemon that listens, and every token that was made for it."""

    daemon: Daemon
    made: list[str] = field(default_factory=list)

    @property
    def wire(self) -> Wire:
        """How to reach it over the network now."""
        told = self.daemon.client.host()
        address, fingerprint = told["listen"], told["fingerprint"]
        assert address is not None
        assert fingerprint is not None
        return Wire(int(address.rpartition(":")[2]), fingerprint)

    def token(self, name: str, role: str = "operator", expires_in: int | None = None) -> str:
        """Make a token, in the place of an older one of that name."""
        if any(token["name"] == name for token in self.daemon.client.tokens()):
            self.daemon.client.revoke_token(name)
        wanted = {"name": name, "role": role, "expires_in": expires_in}
        token = self.daemon.client.create_token(wanted)["token"]
        self.made.append(token)
        return token


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """A folder with an image for the fake hypervisor."""
    with fake_images() as folder:
        yield folder


@pytest.fixture(scope="module")
def host(images: Path) -> Iterator[Host]:
    """One daemon a module."""
    with new_daemon("fake", images, HANOK_LISTEN="127.0.0.1:0") as daemon:
        yield Host(daemon)


@pytest.fixture
def new_host(images: Path) -> Iterator[Host]:
    """A daemon of the test's own."""
    with new_daemon("fake", images, HANOK_LISTEN="127.0.0.1:0") as daemon:
        yield Host(daemon)
