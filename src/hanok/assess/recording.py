"""What importers have read so far, by server, and what becomes of it: a ``Usage`` each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hanok.assess.findings import Notes, with_gaps
from hanok.assess.grid import (
    Span,
    Track,
    first_and_last,
    known,
    on_grid,
    phase,
    spans,
    tidy,
    usual_step,
)
from hanok.assess.limits import LIMITS, Limits
from hanok.errors import InvalidInput
from hanok.model.usage import (
    MAX_BYTES,
    MAX_CORES,
    MAX_INTERVAL,
    MAX_SAMPLES,
    SERVER_PATTERN,
    Metric,
    Sizes,
    Usage,
    by_metric,
)
from hanok.model.validation import shown

_LONE_STEP = 300.0  # seconds: a single sample does not tell how often it is measured
_CAPPED_SHARE = 0.01  # of samples above what the server has: more is a wrong unit
_LEAST_MEMORY = 1 << 30  # of a server that nobody knows the memory of
_MUCH = 1000  # as much as memory in KiB is off when it is taken for bytes
_NOISE_FACTOR = 1.001  # clocks and roundings do that
_SIZE_OF = {Metric.CPU: "cores", Metric.MEMORY: "memory"}
_EXPECTED_NAME = "letters, digits, '.', '_' and '-', starting with a letter or a digit"


def check_server(name: str, field: str) -> str:
    """Return ``name`` if a server may be called so, spaces in it as ``_``.

    Raises InvalidInput naming ``field``.

    A name becomes a file name, and lands in spreadsheets: one that starts with =, +, - or @ would
    be a formula there.
    """
    given, name = name, name.strip().replace(" ", "_")
    if re.fullmatch(SERVER_PATTERN, name) is None:
        raise InvalidInput(
            f"{shown(given)} cannot be a server's name", field=field, expected=_EXPECTED_NAME
        )
    return name


@dataclass
class Recording:
    """What was read of one server; ``sizes`` holds the largest seen of cores, memory and disk."""

    server: str
    tracks: dict[Metric, Track] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    @property
    def is_of_use(self) -> bool:
        """Whether anything of it is known."""
        return any(not math.isnan(value) for one in self.tracks.values() for value in one.values)

    def size(self, name: str, value: float) -> None:
        """Take note that it has at least ``value`` of ``name`` (cores, memory or disk)."""
        most = MAX_CORES if name == "cores" else MAX_BYTES
        if value > most:
            self.notes.add("out-of-range", f"{value:g} of {name}: more than {most:g}: left out")
        elif value >= 1:
            self.sizes[name] = max(self.sizes.get(name, 0), round(value))


@dataclass(frozen=True)
class Wanted:
    """What the results should be like.

    ``interval``: seconds, None: as it was measured. ``sizes``: of servers whose data has none.
    ``strict``: units were named by a person, and may be wrong.
    """

    source: str = ""
    interval: float | None = None
    sizes: Sizes = field(default_factory=Sizes)
    strict: bool = False


class Recordings:
    """All that was read; bounded, so that a hostile file cannot fill the memory."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._by_name: dict[str, Recording] = {}
        self._by_given: dict[str, Recording] = {}
        self._points = 0

    def __iter__(self) -> Iterator[Recording]:
        return (self._by_name[name] for name in sorted(self._by_name))

    def __len__(self) -> int:
        return len(self._by_name)

    def of(self, server: str, place: str) -> Recording:
        """Return what is known of ``server``. Raises InvalidInput naming ``place``."""
        found = self._by_given.get(server)
        return self._begin(server, place) if found is None else found

    def _begin(self, given: str, place: str) -> Recording:
        if len(self._by_name) >= self._limits.servers:
            raise InvalidInput(
                "there are too many servers",
                field=place,
                expected=f"at most {self._limits.servers}",
            )
        name = check_server(given, place)
        if name in self._by_name:
            raise InvalidInput(
                f"{shown(given)} and another name are both {name!r} here", field=place
            )
        found = self._by_name[name] = self._by_given[given] = Recording(name)
        if name != given:
            found.notes.add("renamed", f"it is {shown(given)} in the data")
        return found

    def add(
        self, recording: Recording, metric: Metric, end: float, value: float, length: float = 0.0
    ) -> None:
        """Keep a sample in the metric's unit that ended at ``end``, seconds since 1970.

        A value that cannot be is a gap, and noted. Raises InvalidInput when there are too many.
        """
        if not 0 <= value <= metric.limit:  # false for NaN too
            recording.notes.add(
                "out-of-range", f"{metric} {value:g}: not from 0 to {metric.limit:g}: left out"
            )
            value = math.nan
        self._add(recording, metric, end, value, length)

    def add_gap(self, recording: Recording, metric: Metric, end: float) -> None:
        """Keep that ``metric`` was to be measured, and is not known. Raises as ``add`` does."""
        self._add(recording, metric, end, math.nan, 0.0)

    def _add(
        self, recording: Recording, metric: Metric, end: float, value: float, length: float
    ) -> None:
        self._points += 1
        if self._points > self._limits.points:
            raise InvalidInput(
                "there are too many samples to import at once",
                field="FILE",
                expected=f"at most {self._limits.points} numbers",
                hint="import the files of some servers at a time",
            )
        recording.tracks.setdefault(metric, Track()).add(end, value, length)


def to_usage(recording: Recording, wanted: Wanted) -> Usage:
    """Return what was read of a server on its grid.

    Raises InvalidInput when it has no samples, spans too much time, or its units must be wrong.
    """
    notes = Notes()
    notes.extend(recording.notes.findings())
    tidied = _tidied(recording, notes)
    tracks = {metric: kept for metric, one in tidied.items() if len(kept := known(one))}
    if not tracks:
        raise InvalidInput(
            f"nothing of {recording.server} could be used",
            field=recording.server,
            hint="; ".join(one.text for one in notes.findings()) or None,
        )
    sizes = _sizes(recording, wanted)
    for metric in by_metric(tracks):
        _check_capacity(recording.server, metric, tracks[metric], sizes, wanted.strict, notes)
    steps = {metric: usual_step(tidied[metric]) or _LONE_STEP for metric in tracks}
    most = max(by_metric(tracks), key=lambda metric: len(tracks[metric]))
    interval = wanted.interval or min(steps[most], MAX_INTERVAL)
    cut = {metric: spans(tracks[metric], steps[metric]) for metric in by_metric(tracks)}
    start, samples = _gridded(recording.server, cut, interval)
    return Usage(
        server=recording.server,
        start=datetime.fromtimestamp(start, UTC),
        interval=interval,
        samples=samples,
        sizes=sizes,
        source=wanted.source,
        findings=with_gaps(notes.findings(), samples),
    )


def _tidied(recording: Recording, notes: Notes) -> dict[Metric, Track]:
    """Return all tracks in order; a row that is out of order counts once, not for each metric."""
    found = Notes()
    tidied = {}
    for metric, track in recording.tracks.items():
        of_metric = Notes()
        tidied[metric] = tidy(track, of_metric)
        found.most(of_metric.findings())
    notes.extend(found.findings())
    return tidied


def _sizes(recording: Recording, wanted: Wanted) -> Sizes:
    told = wanted.sizes.model_dump(exclude_none=True)
    return Sizes(**{**told, **recording.sizes})


def _gridded(
    server: str, found: Mapping[Metric, Sequence[Span]], interval: float
) -> tuple[float, dict[Metric, tuple[float | None, ...]]]:
    """Return the start of the grid and the series on it."""
    shifts = {metric: phase(each, interval) for metric, each in found.items()}
    ends = [first_and_last(each, interval, shifts[metric]) for metric, each in found.items()]
    first, last = min(one[0] for one in ends), max(one[1] for one in ends)
    count = last - first + 1
    if count > MAX_SAMPLES:
        raise _too_long(server, first * interval, (last + 1) * interval, interval)
    return first * interval, {
        metric: tuple(
            _rounded(metric, value)
            for value in on_grid(each, interval, shifts[metric], first, count)
        )
        for metric, each in found.items()
    }


def _too_long(server: str, begin: float, end: float, interval: float) -> InvalidInput:
    first, last = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" for at in (begin, end))
    return InvalidInput(
        f"{server} has samples from {first} to {last}: {(end - begin) / interval:.0f} intervals"
        f" of {interval:g} s",
        field="--interval",
        expected=f"at most {MAX_SAMPLES} intervals",
        hint="a longer --interval, or is one of the times wrong?",
    )


def _rounded(metric: Metric, value: float | None) -> float | None:
    """Return a value with the digits that mean something, to keep files small."""
    if value is None:
        return None
    return round(value, 4) if metric is Metric.CPU else float(round(value))


def _check_capacity(
    server: str, metric: Metric, track: Track, sizes: Sizes, strict: bool, notes: Notes
) -> None:
    """Cap what is above what the server has. Raises InvalidInput when a person named the unit and
    it is not rare: then the unit is wrong.
    """
    name = _SIZE_OF.get(metric)
    most = getattr(sizes, name) if name else None
    peak = max(track.values)
    if metric is Metric.MEMORY and peak < (most or _LEAST_MEMORY) / _MUCH:
        notes.add("maybe-wrong-unit", f"memory in use is never more than {peak:g} bytes")
    if most is None or peak <= most:
        return
    above = [at for at, value in enumerate(track.values) if value > most]
    noise = peak <= _NOISE_FACTOR * most
    if strict and not noise and len(above) > _CAPPED_SHARE * len(track):
        raise _wrong_unit(server, metric, peak, most, len(above), len(track))
    for at in above:
        track.values[at] = float(most)
    if not noise:
        notes.add("above-size", f"{metric} up to {peak:g} of {most}: taken as {most}", len(above))


def _wrong_unit(
    server: str, metric: Metric, peak: float, most: int, above: int, number: int
) -> InvalidInput:
    unit = "cores" if metric is Metric.CPU else "bytes"
    hint = (
        "percent of the whole machine is cpu:percent, percent of one core is cpu:percent-of-core"
        if metric is Metric.CPU
        else "other units: memory:KiB, memory:MiB, memory:percent; --memory says what there is"
    )
    return InvalidInput(
        f"{server} would use up to {peak:g} {unit} of {most}, and more than it has in {above} of"
        f" {number} samples: the unit must be wrong",
        field=f"--map {metric}",
        expected=f"a unit in which {metric} is at most {most} {unit}",
        hint=hint,
    )
