"""A driver of Xen on a Xen that is played, and networks that are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hanok.hypervisors.xen import XenHypervisor
from tests.hypervisors.xen.stand_in import FakeXen, Wires


@pytest.fixture
async def xen(xenstore: Path) -> AsyncIterator[FakeXen]:
    played = FakeXen()
    await played.xenstored.start(xenstore)
    yield played
    await played.close()


@pytest.fixture
def xenstore(short_tmp: Path) -> Path:
    """Where the played xenstored listens."""
    return short_tmp / "xenstore"


@pytest.fixture
def wires() -> Wires:
    return Wires()


@pytest.fixture
async def driver(
    xen: FakeXen, wires: Wires, tmp_path: Path, xenstore: Path
) -> AsyncIterator[XenHypervisor]:
    made = XenHypervisor(xen, tmp_path, wires, xenstore=xenstore)
    yield made
    await made.close()
