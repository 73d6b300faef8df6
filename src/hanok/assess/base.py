"""What importers of all formats share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hanok.assess.limits import LIMITS, Limits
from hanok.assess.reading import Tell, tell_nobody
from hanok.assess.recording import Recordings
from hanok.model.usage import Sizes


class Format(StrEnum):
    """Where measurements come from."""

    SYSSTAT = "sysstat"
    PROMETHEUS = "prometheus"
    CSV = "csv"
    PLANETLAB = "planetlab"
    BITBRAINS = "bitbrains"


@dataclass(frozen=True)
class Given:
    """What the person who imports says about the data.

    ``maps``: ``COLUMN=METRIC:UNIT`` each. ``zone``: of times without one. ``start``: of data
    without times. ``sizes``: of servers whose data has none. ``server``: the name of the one that a
    table without names is about. ``interval``: seconds of the result, None: as measured.
    """

    maps: Sequence[str] = ()
    zone: tzinfo | None = None
    start: datetime | None = None
    sizes: Sizes = field(default_factory=Sizes)
    server: str | None = None
    interval: float | None = None


@dataclass(frozen=True)
class Context:
    """Where importers put what they read, and how much they may read."""

    given: Given
    recordings: Recordings
    limits: Limits = LIMITS
    tell: Tell = tell_nobody


class Importer(Protocol):
    """Reads the files of one format, one after the other."""

    def read(self, path: Path) -> None:
        """Read a file. Raises NotFound or InvalidInput naming file and field."""
        ...

    def finish(self) -> None:
        """Make samples of what only all files together tell. Raises InvalidInput."""
        ...


def server_of_file(path: Path) -> str:
    """Return the name of a server that has a file of its own: the file's, without its endings."""
    name = path.name.removesuffix(".gz")
    for end in (".csv", ".txt", ".json"):
        name = name.removesuffix(end)
    return name
