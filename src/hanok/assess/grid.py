"""From samples as they come to one value an interval: pure functions.

A sample is about the time that ends at its time stamp, as sar, Prometheus and most others have it.
A grid starts at a whole multiple of its interval since 1970. Samples that are as long as the
interval are not cut in two where they lie across: all are moved together by at most half of it, so
that a peak stays as high as it was.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from hanok.assess.findings import Notes

# What people set samplers to, in seconds.
_USUAL = (1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600, 7200, 86400)
_NEAR = 0.05
_JITTER = 1.5  # a sample that is later than this after the one before has a gap before it
_COARSE = 4 / 3
_FINE = 3 / 4
_KNOWN_SHARE = 0.5  # of an interval: below it is a gap
_STEADY = 0.5  # how much samples must agree on their phase to be moved; 1: all the same


class Track:
    """The samples of one metric of one server, in the order in which they came.

    ``ends``: seconds since 1970; ``lengths``: seconds that a sample is about, 0 where its source
    does not say. A value of NaN was to be measured, and is not known.
    """

    def __init__(self) -> None:
        self.ends = array("d")
        self.values = array("d")
        self.lengths = array("f")

    def add(self, end: float, value: float, length: float = 0.0) -> None:
        """Add a sample."""
        self.ends.append(end)
        self.values.append(value)
        self.lengths.append(length)

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class Span:
    """A value and the time that it is about, in seconds since 1970."""

    begin: float
    end: float
    value: float

    @property
    def length(self) -> float:
        """How long it is, in seconds."""
        return self.end - self.begin

    @property
    def middle(self) -> float:
        """The moment in the middle of it."""
        return (self.begin + self.end) / 2


def tidy(track: Track, notes: Notes) -> Track:
    """Return the samples in the order of time, of those at one moment only the largest.

    What was out of order or there twice is counted in ``notes``.
    """
    ends = track.ends
    back = sum(1 for at in range(1, len(ends)) if ends[at] < ends[at - 1])
    order: Sequence[int] = range(len(ends))
    if back:
        notes.add("unordered", "samples that are older than the one before: put in order", back)
        order = sorted(order, key=ends.__getitem__)
    tidied = Track()
    for at in order:
        end, value = ends[at], track.values[at]
        if not tidied.ends or end > tidied.ends[-1]:
            tidied.add(end, value, track.lengths[at])
        elif math.isnan(tidied.values[-1]):
            tidied.values[-1] = value
        elif value == tidied.values[-1] or math.isnan(value):
            notes.add("duplicates", "samples that are there twice: taken once")
        else:
            notes.add("conflicts", "different values at the same time: the largest is taken")
            tidied.values[-1] = max(value, tidied.values[-1])
    return tidied


def known(track: Track) -> Track:
    """Return the samples of a track without those that are not known."""
    found = Track()
    for end, value, length in zip(track.ends, track.values, track.lengths, strict=True):
        if not math.isnan(value):
            found.add(end, value, length)
    return found


def usual_step(track: Track) -> float | None:
    """Return the seconds between the samples of a tidy track, or None where that cannot be told.

    The most common length where the source tells lengths (some merge samples that are equal), else
    the median of the distances, which gaps and jitter hardly move.
    """
    told = [max(1.0, round(length)) for length in track.lengths if length > 0]
    steps = [track.ends[at] - track.ends[at - 1] for at in range(1, len(track))]
    if not told and not steps:
        return None
    step = float(statistics.mode(told) if told else statistics.median_low(steps))
    near = min(_USUAL, key=lambda usual: abs(usual - step))
    return float(near) if abs(near - step) <= _NEAR * near else max(1.0, round(step))


def spans(track: Track, step: float) -> list[Span]:
    """Return the known samples of a tidy track with the time that each is about.

    Where the source does not say, that is from the sample before, or one ``step`` after a gap.
    No moment is in two of them.
    """
    found: list[Span] = []
    before = -math.inf
    for end, value, length in zip(track.ends, track.values, track.lengths, strict=True):
        if length <= 0:
            length = end - before if end - before <= _JITTER * step else step
        found.append(Span(max(end - length, before), end, value))
        before = end
    return found


def phase(found: Sequence[Span], interval: float) -> float:
    """Return by how many seconds the middles of spans are beside those of intervals.

    0.0 when they do not agree, or are not about as long as the interval.
    """
    fit = [span for span in found if _FINE * interval <= span.length <= _COARSE * interval]
    if 2 * len(fit) < len(found) or not fit:
        return 0.0
    turns = [2 * math.pi * ((span.middle / interval) % 1.0) for span in fit]
    east = math.fsum(map(math.cos, turns)) / len(turns)
    north = math.fsum(map(math.sin, turns)) / len(turns)
    if math.hypot(east, north) < _STEADY:
        return 0.0
    share = (math.atan2(north, east) / (2 * math.pi)) % 1.0
    return (share - 0.5) * interval


def first_and_last(found: Sequence[Span], interval: float, shift: float) -> tuple[int, int]:
    """Return the numbers since 1970 of the first and the last interval that spans fall into.

    Spans are in order and apart, so that the first and the last of them tell.
    """
    return _cells(found[0], interval, shift).start, _cells(found[-1], interval, shift).stop - 1


def _cells(span: Span, interval: float, shift: float) -> range:
    """Return the intervals that a span counts for."""
    if span.length <= _COARSE * interval:
        middle = math.floor((span.middle - shift) / interval)
        return range(middle, middle + 1)
    return _covered(span, interval, shift)


def _covered(span: Span, interval: float, shift: float) -> range:
    """Return the intervals whose middle is in the span."""
    first = math.ceil((span.begin - shift) / interval - 0.5)
    return range(first, math.ceil((span.end - shift) / interval - 0.5))


def on_grid(
    found: Sequence[Span], interval: float, shift: float, first: int, count: int
) -> list[float | None]:
    """Return the value of each of ``count`` intervals from ``first`` on, None for a gap.

    An interval has the mean of the samples that fall into it, by their lengths; it is a gap unless
    they are about half of it. One that only jitter left without a sample has the sample that was
    measured in its middle.
    """
    sums, weights = [0.0] * count, [0.0] * count
    for span in found:
        cells = _cells(span, interval, shift)
        weight = span.length if len(cells) == 1 else interval
        for cell in cells:
            if 0 <= cell - first < count:
                sums[cell - first] += weight * span.value
                weights[cell - first] += weight
    for span in found:
        for cell in _covered(span, interval, shift):
            if 0 <= cell - first < count and weights[cell - first] == 0.0:
                sums[cell - first], weights[cell - first] = span.value * interval, interval
    enough = _KNOWN_SHARE * interval * (1 - 1e-9)
    return [
        total / weight if weight >= enough and weight > 0 else None
        for total, weight in zip(sums, weights, strict=True)
    ]
