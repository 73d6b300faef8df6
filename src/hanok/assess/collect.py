"""Measure this machine, interval after interval, into ``NAME.usage.json``.

Each interval is appended to a journal at once, so that ``kill -9`` loses the one that it fell into
and nothing else; every few hundred, and at the end, journal and file become one new file. Both are
bounded: the journal by that number, the file by the window, of which the oldest part is dropped.
What is in memory between two writes is two readings.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hanok.assess.folder import put_usage, read_usage
from hanok.assess.journal import JOURNAL, Entry, Head, entry_line, finding_line, head_line
from hanok.assess.machine import Machine, Reading, rates
from hanok.assess.reading import Tell, tell_nobody
from hanok.durable import sync_path
from hanok.errors import Conflict, HostError, InvalidInput
from hanok.model.usage import MAX_SAMPLES, Finding

FOLD_EVERY = 360  # intervals
_LATE = 1.5  # intervals: a sample over more than this is no sample of one
_PAST = 0.01  # seconds after the end of an interval: a timer may be early
_SOURCE = "hanok assess collect"


class Clock(Protocol):
    """What time it is, and waiting."""

    def wall(self) -> float:
        """Return the seconds since 1970, which an administrator may set."""
        ...

    def steady(self) -> float:
        """Return seconds that only go on, since some moment."""
        ...

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        """Return after ``seconds``, or as soon as ``stop`` is set."""
        ...


class SystemClock:
    """The clock of this machine."""

    def wall(self) -> float:
        """Return the seconds since 1970."""
        return time.time()

    def steady(self) -> float:
        """Return the seconds since the machine started, sleep included (clock_gettime(2))."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        """Return after ``seconds``, or as soon as ``stop`` is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stop.wait()


@dataclass(frozen=True)
class Order:
    """What to collect.

    ``interval``: seconds; ``window``: how many intervals the file keeps; ``count``: after how many
    to end, None: when told to.
    """

    folder: Path
    server: str
    interval: int
    window: int
    count: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidInput when the window is larger than a file may be."""
        if not 1 <= self.window <= MAX_SAMPLES:
            raise InvalidInput(
                f"{self.window} intervals are too many or too few to keep",
                field="--keep",
                expected=f"1 to {MAX_SAMPLES} intervals",
                hint="a longer --interval, or a shorter --keep",
            )


class JournalFile:
    """The journal on disk, locked while it is open: one collector writes it.

    Raises Conflict when another one does, HostError when it cannot be written, InvalidInput when
    the file beside it is not what this collector could go on with.
    """

    def __init__(self, order: Order, head: Head) -> None:
        self._order = order
        self._head = head
        self._path = order.folder / f"{order.server}{JOURNAL}"
        self._descriptor = -1
        self._lines = 0

    def __enter__(self) -> Self:
        with _writing(self._path):
            self._order.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open_locked()
        try:
            self.fold()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.fold()
                with _writing(self._path):
                    self._path.unlink()
                    sync_path(self._order.folder)
        finally:
            os.close(self._descriptor)

    def _open_locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            descriptor = os.open(self._path, flags, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    return descriptor
                os.close(descriptor)  # who had it has ended, and removed it
            except BlockingIOError:
                os.close(descriptor)
                raise Conflict(
                    f"{self._order.server} is being collected into {self._order.folder} already",
                    field="--out",
                    hint="another folder or another --name, or end the other collector",
                ) from None

    def append(self, entry: Entry) -> None:
        """Write one interval so that it survives whatever comes."""
        self._write(entry_line(entry))
        self._lines += 1
        if self._lines >= FOLD_EVERY:
            self.fold()

    def note(self, code: str, text: str) -> None:
        """Write a finding."""
        self._write(finding_line(Finding(code=code, count=1, text=text)))

    def fold(self) -> None:
        """Make file and journal one file, and begin a new journal."""
        usage = read_usage(self._order.folder, self._order.server)
        if usage is not None:
            _refuse_other_interval(usage.interval, self._order.interval)
            put_usage(self._order.folder, usage)
        with _writing(self._path):
            os.ftruncate(self._descriptor, 0)
        self._lines = 0
        self._write(head_line(self._head))

    def _write(self, line: bytes) -> None:
        with _writing(self._path):
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise HostError(f"{self._path} cannot be written: no room for a whole line")
            os.fdatasync(self._descriptor)


def _refuse_other_interval(there: float, wanted: int) -> None:
    if there != wanted:
        raise InvalidInput(
            f"what is there was measured every {there:g} s",
            field="--interval",
            expected=f"{there:g}s",
            hint="or another folder, or move the file away",
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn OSError into HostError."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"{path} cannot be written: {error.strerror}",
            hint="may this user write there, and is there room?",
        ) from error


@dataclass(frozen=True)
class _Moment:
    """A reading and when it was made, by both clocks."""

    reading: Reading
    wall: float
    steady: float


class Collector:
    """Measures ``machine`` into a journal, an interval after the other."""

    def __init__(
        self, order: Order, machine: Machine, clock: Clock, journal: JournalFile, cores: int | None
    ) -> None:
        self._order = order
        self._machine = machine
        self._clock = clock
        self._journal = journal
        self._cores = cores
        self.done = 0

    async def run(self, stop: asyncio.Event, tell: Tell) -> None:
        """Measure until enough or ``stop`` is set. What is left of an interval is not measured."""
        before = self._look()
        while not stop.is_set() and self.done != self._order.count:
            tell(f"{self.done} intervals measured", self._fraction())
            await self._clock.wait(self._to_next(before.wall), stop)
            after = self._look()
            if self._index(after.wall) != self._index(before.wall):
                self._keep(before, after)
                before = after
        tell(f"{self.done} intervals measured", 1.0)

    def _look(self) -> _Moment:
        return _Moment(self._machine.read(), self._clock.wall(), self._clock.steady())

    def _fraction(self) -> float | None:
        return None if self._order.count is None else self.done / self._order.count

    def _index(self, wall: float) -> int:
        return math.floor(wall / self._order.interval)

    def _to_next(self, begun: float) -> float:
        """Return the seconds to the end of the interval that began at about ``begun``."""
        end = (self._index(begun) + 1) * self._order.interval
        # A clock that was set back would make this long: look again after an interval.
        return min(max(end - self._clock.wall(), 0.0), self._order.interval) + _PAST

    def _keep(self, before: _Moment, after: _Moment) -> None:
        """Write the interval that ended between the two, unless what was seen is not just it."""
        seconds = after.steady - before.steady
        interval = self._order.interval
        if abs((after.wall - before.wall) - seconds) > interval / 2:
            self._journal.note("clock-set", "the clock was set: the interval is left out")
        elif seconds > _LATE * interval:
            self._journal.note("late", "the machine slept, or was too busy to be measured in time")
        elif seconds >= interval / 2:  # else the first, of which only the end was seen
            values = rates(before.reading, after.reading, seconds, self._cores)
            self._journal.append(Entry(self._index(after.wall) - 1, values))
            self.done += 1


async def collect(
    order: Order,
    machine: Machine,
    clock: Clock,
    stop: asyncio.Event,
    tell: Tell = tell_nobody,
) -> int:
    """Measure ``machine`` as ``order`` says, until ``stop`` is set; return how many intervals.

    Raises Conflict when it is being collected there already, HostError when that cannot be written,
    InvalidInput when what is there cannot be gone on with.
    """
    sizes = machine.sizes()
    head = Head(
        server=order.server,
        interval=order.interval,
        window=order.window,
        sizes=sizes,
        source=_SOURCE,
    )
    with JournalFile(order, head) as journal:
        collector = Collector(order, machine, clock, journal, sizes.cores)
        await collector.run(stop, tell)
    return collector.done
