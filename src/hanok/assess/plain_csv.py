"""Plain CSV: the person says which column is what, ``--map "CPU %=cpu:percent"``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.assess.base import Context, server_of_file
from hanok.assess.recording import Recording
from hanok.assess.table import Header, Row, cell, read_rows
from hanok.assess.times import TIME_UNITS, Times
from hanok.assess.units import FACTORS, SHARES, SIZE_UNITS, find_unit, parse_number
from hanok.errors import InvalidInput
from hanok.model.usage import Metric
from hanok.model.validation import did_you_mean, shown

TIME, SERVER = "time", "server"
_OPTION = "--map"
_METRICS = frozenset(metric.value for metric in Metric)
_TARGETS = (TIME, SERVER, *Metric, *SIZE_UNITS)
_SUSPECT_FROM = 20  # values, before percents that look like fractions are told
_EXAMPLE = '--map "Time=time" --map "Host=server" --map "CPU %=cpu:percent"'
_SIZE_NAMES = {"cores": "cores", "memory_size": "memory", "disk_size": "disk"}


@dataclass(frozen=True)
class Column:
    """What a column is: ``target`` is time, server, a metric or a size, in ``unit``."""

    name: str
    target: str
    unit: str | None
    factor: float = 1.0

    @property
    def is_share(self) -> bool:
        """Whether its values are parts of what the server has."""
        return self.target in _METRICS and self.unit in SHARES


def parse_map(text: str) -> Column:
    """Return the column that ``NAME=TARGET`` or ``NAME=TARGET:UNIT`` stands for.

    Raises InvalidInput.
    """
    name, equals, rest = text.rpartition("=")
    target, _, unit = rest.partition(":")
    if not equals or not name or target not in _TARGETS:
        raise InvalidInput(
            f"{shown(text)} says not what a column is",
            field=_OPTION,
            expected=f"COLUMN=TARGET:UNIT, and TARGET one of {', '.join(_TARGETS)}",
            hint=did_you_mean(target, _TARGETS) or f"such as {_EXAMPLE}",
        )
    if target == SERVER:
        return Column(name.strip(), target, None)
    if target == TIME:
        return Column(name.strip(), target, _time_unit(unit))
    factors = FACTORS[Metric(target)] if target in _METRICS else SIZE_UNITS[target]
    found, factor = find_unit(factors, unit or None, f"{_OPTION} {name}")
    return Column(name.strip(), target, found, factor)


def _time_unit(unit: str) -> str | None:
    if unit and unit not in TIME_UNITS:
        raise InvalidInput(
            f"{shown(unit)} is no unit of time here",
            field=_OPTION,
            expected=f"one of {', '.join(TIME_UNITS)}, or none",
        )
    return unit or None


class _Seen:
    """What the values of a column look like."""

    def __init__(self) -> None:
        self.good = 0
        self.bad = 0
        self.parts = 0  # neither 0 nor 1 nor more
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.good += 1
        self.parts += 0 < value < 1
        self.largest = max(self.largest, value)


@dataclass(frozen=True)
class _Layout:
    """Which cells of a file's rows are what; ``server`` is None when the table names none."""

    time: int
    time_unit: str | None
    server: int | None
    values: Sequence[tuple[Column, int]]


class PlainCsv:
    """Reads tables whose columns ``given.maps`` names."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._columns = [parse_map(text) for text in context.given.maps]
        self._clocks: dict[str, Times] = {}
        self._seen: dict[str, dict[Column, _Seen]] = {}
        targets = [column.target for column in self._columns]
        for target in targets:
            if targets.count(target) > 1:
                raise InvalidInput(
                    f"several columns are {target}",
                    field=_OPTION,
                    expected="one column of each kind",
                )

    def read(self, path: Path) -> None:
        """Read a table. Raises NotFound or InvalidInput naming file, line or option."""
        rows = read_rows(path, self._context.limits, self._context.tell)
        layout = self._layout(Header(next(rows, Row((), f"{path.name}:1"))), path)
        self._seen = {}
        for row in rows:
            self._read_row(row, layout, path)
        _judge(path, layout, self._seen, self._context)

    def finish(self) -> None:
        """Do nothing: each row was told by itself."""

    def _layout(self, header: Header, path: Path) -> _Layout:
        by_target = {column.target: column for column in self._columns}
        if not _METRICS & by_target.keys():
            raise InvalidInput(
                f"nobody said what the columns of {path.name} are: {header.listed()}",
                field=_OPTION,
                expected="COLUMN=TARGET:UNIT for the time and at least one metric",
                hint=f"such as {_EXAMPLE}",
            )
        time, server = by_target.get(TIME), by_target.get(SERVER)
        if time is None:
            raise InvalidInput(
                f"none of the columns is the time: {header.listed()}",
                field=_OPTION,
                expected="COLUMN=time",
            )
        return _Layout(
            header.find(time.name, _OPTION),
            time.unit,
            None if server is None else header.find(server.name, _OPTION),
            [
                (column, header.find(column.name, _OPTION))
                for column in self._columns
                if column.target not in (TIME, SERVER)
            ],
        )

    def _read_row(self, row: Row, layout: _Layout, path: Path) -> None:
        recording = self._recording(row, layout, path)
        moment = self._moment(recording, row, layout)
        seen = self._seen.setdefault(recording.server, {})
        values: list[tuple[Column, float | None]] = []
        for column, at in layout.values:
            value = _value(recording, row, column, at, seen.setdefault(column, _Seen()))
            if column.target in _METRICS:
                values.append((column, value))
            elif value is not None:
                recording.size(_SIZE_NAMES[column.target], value * column.factor)
        if moment is not None:  # the row has all sizes now that shares are of
            for column, value in values:
                self._add(recording, column, moment, value)

    def _recording(self, row: Row, layout: _Layout, path: Path) -> Recording:
        given = self._context.given.server
        if layout.server is not None:
            name = cell(row, layout.server)
        else:
            name = given or server_of_file(path)
        return self._context.recordings.of(name, row.place)

    def _moment(self, recording: Recording, row: Row, layout: _Layout) -> float | None:
        clock = self._clocks.get(recording.server)
        if clock is None:
            clock = Times(self._context.given.zone, recording.notes)
            self._clocks[recording.server] = clock
        text = cell(row, layout.time)
        moment = clock.parse(text, layout.time_unit)
        if moment is None:
            recording.notes.add("no-time", f"{row.place}: {shown(text)} is no time: left out")
        return moment

    def _add(
        self, recording: Recording, column: Column, moment: float, value: float | None
    ) -> None:
        metric = Metric(column.target)
        if value is None:
            self._context.recordings.add_gap(recording, metric, moment)
            return
        factor = column.factor * (self._whole(recording, column) if column.is_share else 1.0)
        self._context.recordings.add(recording, metric, moment, value * factor)

    def _whole(self, recording: Recording, column: Column) -> float:
        """Return what the values of a column are parts of. Raises InvalidInput."""
        name = "cores" if column.target == Metric.CPU else "memory"
        known = recording.sizes.get(name) or getattr(self._context.given.sizes, name)
        if known is None:
            raise InvalidInput(
                f"{shown(column.name)} is a part of the {name} of {recording.server}, and nobody"
                " said how much that is",
                field=f"--{name}",
                hint=f"--{name} says it for all, --map 'COLUMN={_size_target(name)}' for each",
            )
        return float(known)


def _size_target(name: str) -> str:
    return next(target for target, size in _SIZE_NAMES.items() if size == name)


def _value(recording: Recording, row: Row, column: Column, at: int, seen: _Seen) -> float | None:
    """Return the number in a cell, None for none; what is neither is noted."""
    text = cell(row, at)
    if not text:
        return None
    value = parse_number(text)
    if value is None:
        seen.bad += 1
        recording.notes.add(
            "not-a-number", f"{row.place}: {shown(text)} in {shown(column.name)}: left out"
        )
        return None
    seen.add(value)
    return value


def _judge(
    path: Path, layout: _Layout, seen: Mapping[str, Mapping[Column, _Seen]], context: Context
) -> None:
    """Refuse columns without a number, and note those whose unit looks wrong."""
    for column, _ in layout.values:
        found = [(server, by[column]) for server, by in seen.items() if column in by]
        if any(one.bad for _, one in found) and not any(one.good for _, one in found):
            raise InvalidInput(
                f"no cell of {shown(column.name)} is a number",
                field=f"{path.name}, {_OPTION} {column.name}",
                expected="numbers with a decimal point, such as 12.5",
            )
        for server, one in found if column.unit == "percent" else ():
            if _looks_like_fractions(one):
                context.recordings.of(server, path.name).notes.add(
                    "maybe-fraction",
                    f"{shown(column.name)} is never more than {one.largest:g} %: if these are"
                    f" fractions, it is {column.target}:fraction",
                )


def _looks_like_fractions(seen: _Seen) -> bool:
    return seen.good >= _SUSPECT_FROM and seen.largest <= 1 and 2 * seen.parts > seen.good
