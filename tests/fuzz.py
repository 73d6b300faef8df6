"""How long fuzzers run: bounded in CI, long where ``HANOK_FUZZ=long`` says so."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings

LONG = os.environ.get("HANOK_FUZZ") == "long"


def bounded(short: int, long: int = 100_000) -> settings:
    """Return the settings of a fuzzer: ``short`` examples in CI, always the same ones."""
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=timedelta(seconds=20),
        suppress_health_check=list(HealthCheck),
    )
