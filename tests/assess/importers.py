"""What tests of importers share: files made of text, and imports of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hanok.assess.base import Format, Given
from hanok.assess.importing import import_files
from hanok.assess.limits import LIMITS, Limits
from hanok.errors import HanokError
from hanok.model.usage import Usage


def imported(
    *paths: Path, kind: Format | None = None, given: Given | None = None, limits: Limits = LIMITS
) -> dict[str, Usage]:
    """Return the servers that ``paths`` are about, by name."""
    found = import_files(paths, kind, given or Given(), limits)
    return {usage.server: usage for usage in found.usages}


def one(*paths: Path, kind: Format | None = None, given: Given | None = None) -> Usage:
    """Return the only server that ``paths`` are about."""
    (usage,) = imported(*paths, kind=kind, given=given).values()
    return usage


def attempted(
    *paths: Path, kind: Format | None = None, given: Given | None = None
) -> dict[str, Usage] | HanokError:
    """Return what ``imported`` does, or the error that a user would see; any other is raised."""
    try:
        return imported(*paths, kind=kind, given=given)
    except HanokError as error:
        return error


def codes(usage: Usage) -> Mapping[str, int]:
    """Return how often what was found."""
    return {finding.code: finding.count for finding in usage.findings}
