"""What a collector has measured since it last wrote its file: one line an interval.

The first line is the head, a JSON object. Every other line is either a list, the interval's number
since 1970 and the values of all metrics in the order of ``Metric``, or a finding. A line is one
write, so that a collector that is killed leaves at most one that is cut: it is found and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hanok.assess.findings import Notes, with_gaps
from hanok.assess.limits import LIMITS, Limits
from hanok.assess.reading import read_whole
from hanok.errors import InvalidInput
from hanok.model.base import Frozen
from hanok.model.usage import MAX_INTERVAL, MAX_SAMPLES, Finding, Metric, ServerName, Sizes, Usage

JOURNAL = ".usage.journal"
_METRICS = tuple(Metric)
_LATEST = 7_200_000_000  # seconds since 1970: in the year 2198


class Head(Frozen):
    """Whose journal it is. ``interval``: seconds; ``window``: how many intervals are kept."""

    format: Literal[1] = 1
    server: ServerName
    interval: int = Field(ge=1, le=MAX_INTERVAL)
    window: int = Field(ge=1, le=MAX_SAMPLES)
    sizes: Sizes = Sizes()
    source: str = Field(default="", max_length=200)


@dataclass(frozen=True)
class Entry:
    """One interval: its number since 1970, and the values by ``Metric`` (None: not known)."""

    index: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Journal:
    """What a journal holds; ``head`` is None when the collector was killed while writing it."""

    head: Head | None
    entries: tuple[Entry, ...] = ()
    findings: tuple[Finding, ...] = ()
    cut: int = field(default=0)


def head_line(head: Head) -> bytes:
    """Return the first line."""
    return head.model_dump_json().encode() + b"\n"


def entry_line(entry: Entry) -> bytes:
    """Return the line of one interval."""
    return json.dumps([entry.index, *entry.values], separators=(",", ":")).encode() + b"\n"


def finding_line(finding: Finding) -> bytes:
    """Return the line of a finding."""
    return finding.model_dump_json().encode() + b"\n"


def read_journal(path: Path, name: str, limits: Limits = LIMITS) -> Journal:
    """Return what the journal of the server ``name`` holds.

    Lines that are cut are left out and counted. Raises InvalidInput when it is another server's,
    when it is beyond ``limits``, or no journal at all.
    """
    first, *lines = read_whole(path, limits.journal_bytes).split(b"\n")
    if not lines:  # not even the head was written whole
        return Journal(None, cut=1 if first else 0)
    try:
        head = Head.model_validate_json(first)
    except ValidationError:
        raise InvalidInput(
            f"{path.name} is no journal of a collector", field=path.name, hint="remove it"
        ) from None
    if head.server != name:
        raise InvalidInput(
            f"the file is named after {name!r}, and is about {head.server!r}", field=path.name
        )
    entries: list[Entry] = []
    findings: list[Finding] = []
    cut = 0
    for line in filter(None, lines):
        found = _parse(line, _LATEST // head.interval)
        if isinstance(found, Entry):
            entries.append(found)
        elif found is not None:
            findings.append(found)
        else:
            cut += 1
    return Journal(head, tuple(entries), tuple(findings), cut)


def _parse(line: bytes, last: int) -> Entry | Finding | None:
    try:
        if not line.startswith(b"["):
            return Finding.model_validate_json(line)
        index, *values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(index, int) and 0 <= index < last and len(values) == len(_METRICS)
    if not whole or not all(map(_is_sample, values, _METRICS)):
        return None
    return Entry(index, tuple(values))


def _is_sample(value: object, metric: Metric) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and 0 <= value <= metric.limit


def merged(usage: Usage | None, journal: Journal) -> Usage | None:
    """Return ``usage`` with what ``journal`` has beyond its end, as much as its window holds.

    None when neither holds anything. Raises InvalidInput when their intervals differ.
    """
    head = journal.head
    if head is None:
        return usage
    if usage is not None and usage.interval != head.interval:
        raise InvalidInput(
            f"{usage.server} was measured every {usage.interval:g} s, and now every"
            f" {head.interval} s",
            field="interval",
            expected=f"{usage.interval:g} s, as in the file that is there",
            hint="collect into another folder, or move the file away",
        )
    begin = None if usage is None else round(usage.start.timestamp() / head.interval)
    known = 0 if usage is None or begin is None else begin + usage.length
    new = {entry.index: entry.values for entry in journal.entries if entry.index >= known}
    if not new:
        # Entries that are all known: the collector was killed when it had written its file.
        is_new = usage is not None and not journal.entries
        return _told(usage, usage.samples, usage.start, journal) if usage and is_new else usage
    end = max(new) + 1
    first = min(new) if begin is None else begin
    first = max(first, end - head.window)
    samples = {
        metric: tuple(_series(usage, begin, metric, new, range(first, end))) for metric in _METRICS
    }
    start = datetime.fromtimestamp(first * head.interval, UTC)
    base = usage or Usage(
        server=head.server, start=start, interval=head.interval, samples={}, source=head.source
    )
    return _told(base, samples, start, journal)


def _series(
    usage: Usage | None,
    begin: int | None,
    metric: Metric,
    new: dict[int, tuple[float | None, ...]],
    wanted: range,
) -> Iterator[float | None]:
    """Yield the values of ``metric`` in the intervals ``wanted``."""
    old: Sequence[float | None] = () if usage is None else usage.samples.get(metric, ())
    offset, at = begin or 0, _METRICS.index(metric)
    for index in wanted:
        if 0 <= index - offset < len(old) and begin is not None:
            yield old[index - offset]
        else:
            values = new.get(index)
            yield None if values is None else values[at]


def _told(
    base: Usage,
    samples: dict[Metric, tuple[float | None, ...]],
    start: datetime,
    journal: Journal,
) -> Usage:
    notes = Notes()
    notes.extend(base.findings)
    notes.extend(journal.findings)
    if journal.cut:
        notes.add("cut-line", "a line of the journal is cut: the collector was killed", journal.cut)
    sizes = base.sizes if journal.head is None else journal.head.sizes
    return Usage(
        server=base.server,
        start=start,
        interval=base.interval,
        samples=samples,
        sizes=sizes,
        source=base.source,
        findings=with_gaps(notes.findings(), samples),
    )
