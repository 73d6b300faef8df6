"""A limit that makes writing fail."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from hanok.units import MIB


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The kernel refuses files larger than 1 MiB to this process (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
