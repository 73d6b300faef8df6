"""A host and an outside world for every test, and the proof that nothing is left of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.proc import find_owned
from tests.network.namespaces import World, make_world


@pytest.fixture
def world() -> Iterator[World]:
    """A host of our own with an outside."""
    with make_world() as made:
        yield made


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory with a short path; no process may be left of it."""
    folder = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    yield folder
    left = list(find_owned(folder))
    shutil.rmtree(folder)
    assert left == []
