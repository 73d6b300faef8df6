"""PlanetLab: CPU use in percent, every five minutes of a day, without any times.

Two layouts: a file a machine with a number a line, as the traces are published and CloudSim reads
them (https://github.com/beloglazov/planetlab-workload-traces), and a table with a machine a row,
its name first. The day is the one in the name of the file or of its folder (20110303).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from hanok.assess.base import Context, server_of_file
from hanok.assess.reading import read_lines
from hanok.assess.recording import Recording
from hanok.assess.table import read_rows
from hanok.assess.times import is_sane
from hanok.assess.units import parse_number
from hanok.errors import InvalidInput
from hanok.model.usage import Metric
from hanok.model.validation import shown

STEP = 300.0  # seconds
_DAY = re.compile(r"(?<!\d)((?:19|20)\d{6})(?!\d)", re.A)


class PlanetLab:
    """Reads days of PlanetLab. A machine has one core unless ``given.sizes`` says otherwise."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def read(self, path: Path) -> None:
        """Read a file. Raises NotFound or InvalidInput naming file and line."""
        start = self._start(path)
        if _is_column(path, self._context):
            lines = read_lines(path, self._context.limits, self._context.tell)
            self._add(server_of_file(path), path.name, lines, start)
            return
        for row in read_rows(path, self._context.limits, self._context.tell):
            self._add(row.cells[0].strip(), row.place, row.cells[1:], start)

    def finish(self) -> None:
        """Do nothing: each file was told by itself."""

    def _start(self, path: Path) -> float:
        if self._context.given.start is not None:
            return self._context.given.start.timestamp()
        for name in (path.name, path.absolute().parent.name):
            if match := _DAY.search(name):
                try:
                    start = datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC).timestamp()
                except ValueError:
                    continue
                if is_sane(start):
                    return start
        raise InvalidInput(
            "this layout has no times, and no day is in the name of the file or its folder",
            field=path.name,
            expected="a name such as 20110303",
            hint="--start 2011-03-03T00:00Z says when the first sample began",
        )

    def _add(self, name: str, place: str, texts: Iterable[str], start: float) -> None:
        recording = self._context.recordings.of(name, place)
        cores = self._context.given.sizes.cores or 1
        recording.size("cores", cores)
        for at, text in enumerate(texts):
            value = self._value(recording, text, f"{place}, number {at + 1}")
            if value is not None:
                end = start + (at + 1) * STEP
                share = value / 100
                self._context.recordings.add(recording, Metric.CPU, end, share * cores, STEP)

    def _value(self, recording: Recording, text: str, place: str) -> float | None:
        value = parse_number(text)
        if value is None and text.strip():
            recording.notes.add("not-a-number", f"{place}: {shown(text.strip())}: left out")
        return value


def _is_column(path: Path, context: Context) -> bool:
    """Return whether the first line of a file is one number."""
    return parse_number(next(iter(read_lines(path, context.limits)), "")) is not None
