"""A plugin for pytest: why a test failed is printed when it fails, not when all have run.

A nested host may crash before that.
"""

from __future__ import annotations

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print what is printed of a failure at the end too."""
    if report.failed:
        sections = "\n".join(f"--- {title}\n{text}" for title, text in report.sections)
        sys.stdout.write(f"\n{report.longreprtext}\n{sections}\n")
