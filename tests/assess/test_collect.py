"""The collector, on a machine and a clock that do as they are told; as typed: tests/cli."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.assess import collect as collecting
from hanok.assess.collect import JournalFile, Order, collect
from hanok.assess.folder import read_usage, read_usages
from hanok.assess.journal import Entry, Head, Journal, entry_line, head_line, merged, read_journal
from hanok.assess.machine import Reading, ThisMachine, rates
from hanok.errors import Conflict, HostError, InvalidInput
from hanok.model.usage import Metric, Sizes, Usage

BEGIN = 1_800_000_000
INTERVAL = 10
ZERO = Reading(0.0, 0.0, {}, {})
HEAD = Head(server="web", interval=INTERVAL, window=50)
FIRST = BEGIN // INTERVAL


@dataclass
class Clock:
    """Time that passes only by waiting. ``at`` may do something after so many waits."""

    now: float = BEGIN + 3.0
    steadily: float = 50.0
    waits: int = 0
    at: dict[int, Callable[[Clock], None]] = field(default_factory=dict)

    def wall(self) -> float:
        """The time of day."""
        return self.now

    def steady(self) -> float:
        """The time since the machine started."""
        return self.steadily

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        """Let time pass."""
        self.now += seconds
        self.steadily += seconds
        self.waits += 1
        if self.waits in self.at:
            self.at[self.waits](self)


@dataclass
class Steady:
    """A machine that uses the same all the time: 1.5 of 4 cores, and 100 bytes a second."""

    clock: Clock

    def read(self) -> Reading:
        """Its counters now."""
        seconds = self.clock.steadily
        moved = (100 * seconds, 200 * seconds)
        return Reading(1.5 * seconds, 5000.0, {"sda": moved}, {"eth0": moved})

    def sizes(self) -> Sizes:
        """What it has."""
        return Sizes(cores=4, memory=10_000)


def order(folder: Path, count: int | None = None, window: int = 100) -> Order:
    """Return what is collected here."""
    return Order(folder, "web", INTERVAL, window, count)


def collected(folder: Path, clock: Clock, count: int = 5, window: int = 100) -> Usage:
    """Collect ``count`` intervals more, and return what is there then."""
    asyncio.run(collect(order(folder, count, window), Steady(clock), clock, asyncio.Event()))
    usage = read_usage(folder, "web")
    assert usage is not None
    return usage


def test_whole_intervals_are_measured(tmp_path: Path) -> None:
    usage = collected(tmp_path, Clock())
    assert usage.start.timestamp() == BEGIN  # 7 of its 10 s were seen
    assert usage.samples[Metric.CPU] == (1.5,) * 5
    assert usage.samples[Metric.NETWORK_SEND] == (200.0,) * 5
    assert usage.sizes == Sizes(cores=4, memory=10_000)
    assert usage.findings == ()
    assert [path.name for path in tmp_path.iterdir()] == ["web.usage.json"]


def test_an_interval_of_which_only_the_end_was_seen_is_not_told(tmp_path: Path) -> None:
    assert collected(tmp_path, Clock(now=BEGIN + 8.0)).start.timestamp() == BEGIN + INTERVAL


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    clock = Clock()
    collected(tmp_path, clock)
    clock.now += 30
    usage = collected(tmp_path, clock)
    assert usage.samples[Metric.CPU] == (1.5,) * 5 + (None,) * 3 + (1.5,) * 5
    assert [(one.code, one.count) for one in usage.findings] == [("gaps", 3)]


def test_the_file_keeps_a_window(tmp_path: Path) -> None:
    usage = collected(tmp_path, Clock(), count=30, window=7)
    assert usage.length == 7
    assert usage.start.timestamp() == BEGIN + 23 * INTERVAL


def test_the_journal_is_folded_before_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "FOLD_EVERY", 4)
    lines = []

    def look(_clock: Clock) -> None:
        lines.append((tmp_path / "web.usage.journal").read_bytes().count(b"\n"))

    clock = Clock(at=dict.fromkeys(range(2, 20), look))
    assert collected(tmp_path, clock, count=20).samples[Metric.CPU] == (1.5,) * 20
    assert max(lines) <= 4


def sleep(clock: Clock) -> None:
    """The machine sleeps for 43 s."""
    clock.now += 43
    clock.steadily += 43


def test_sleep_is_a_gap(tmp_path: Path) -> None:
    usage = collected(tmp_path, Clock(at={3: sleep}))
    assert usage.samples[Metric.CPU] == (1.5,) * 2 + (None,) * 5 + (1.5,) * 3
    assert {one.code for one in usage.findings} == {"late", "gaps"}


@pytest.mark.parametrize("step", [-35, 35])
def test_a_clock_that_is_set_makes_no_wrong_sample(tmp_path: Path, step: float) -> None:
    def set_clock(clock: Clock) -> None:
        clock.now += step

    usage = collected(tmp_path, Clock(at={3: set_clock}), count=9)
    assert set(usage.samples[Metric.CPU]) <= {1.5, None}
    assert usage.samples[Metric.CPU].count(1.5) >= 5
    assert "clock-set" in {one.code for one in usage.findings}


def test_a_stop_ends_it_in_order(tmp_path: Path) -> None:
    stop = asyncio.Event()
    clock = Clock(at={4: lambda _clock: stop.set()})
    done = asyncio.run(collect(order(tmp_path), Steady(clock), clock, stop))
    assert done == 4
    assert [path.name for path in tmp_path.iterdir()] == ["web.usage.json"]


def test_another_interval_is_refused(tmp_path: Path) -> None:
    collected(tmp_path, Clock())
    other = replace(order(tmp_path, 1), interval=20)
    with pytest.raises(InvalidInput) as caught:
        asyncio.run(collect(other, Steady(Clock()), Clock(), asyncio.Event()))
    assert caught.value.field == "--interval"
    assert len(read_usages(tmp_path)) == 1


def test_two_collectors_do_not_write_one_file(tmp_path: Path) -> None:
    with JournalFile(order(tmp_path), Head(server="web", interval=INTERVAL, window=9)) as journal:
        journal.append(Entry(BEGIN // INTERVAL, (1.0,) * 6))
        with pytest.raises(Conflict):
            asyncio.run(collect(order(tmp_path), Steady(Clock()), Clock(), asyncio.Event()))
    assert read_usages(tmp_path)[0].length == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError):
        asyncio.run(collect(order(tmp_path / "file"), Steady(Clock()), Clock(), asyncio.Event()))


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with JournalFile(order(tmp_path), HEAD) as journal:
        journal.append(Entry(FIRST, (1.0,) * 6))
        own = os.dup(journal._descriptor)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, journal._descriptor)
        with pytest.raises(HostError, match="No space left"):
            journal.append(Entry(FIRST + 1, (2.0,) * 6))
        os.dup2(own, journal._descriptor)
        os.close(own)
        os.close(full)
    assert read_usages(tmp_path)[0].samples[Metric.CPU] == (1.0,)


def test_a_window_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        order(tmp_path, window=600_001)
    assert caught.value.field == "--keep"


def journal_of(count: int) -> bytes:
    """Return a journal of ``count`` intervals."""
    entries = (Entry(FIRST + at, (float(at), *(None,) * 5)) for at in range(count))
    return head_line(HEAD) + b"".join(map(entry_line, entries))


@given(st.integers(0, 12), st.data())
def test_wherever_it_is_cut_all_whole_lines_are_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject
) -> None:
    whole = journal_of(count)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    path = tmp_path_factory.mktemp("j") / "web.usage.journal"
    path.write_bytes(cut)
    usage = merged(None, read_journal(path, "web"))
    lines = max(0, cut.count(b"\n") - 1)
    found = 0 if usage is None else usage.length
    # A line whose end alone is cut is whole.
    assert found in (lines, lines + (cut + b"\n" in whole))


def test_a_collector_that_died_between_file_and_journal_counts_nothing_twice(
    tmp_path: Path,
) -> None:
    path = tmp_path / "web.usage.journal"
    path.write_bytes(journal_of(5))
    usage = read_usage(tmp_path, "web")
    assert usage is not None
    (tmp_path / "web.usage.json").write_text(usage.model_dump_json())
    assert read_usage(tmp_path, "web") == usage
    assert collected(tmp_path, Clock(), count=2).samples[Metric.CPU][:5] == (0, 1, 2, 3, 4)


@given(st.sets(st.integers(0, 200), min_size=1), st.sets(st.integers(0, 200)))
def test_merging_keeps_the_last_window_and_invents_nothing(old: set[int], new: set[int]) -> None:
    def entries(numbers: set[int], value: float) -> tuple[Entry, ...]:
        return tuple(Entry(FIRST + at, (value,) * 6) for at in sorted(numbers))

    before = merged(None, journal_with(entries(old, 1.0)))
    assert before is not None
    usage = merged(before, journal_with(entries(new, 2.0)))
    assert usage is not None
    end = max(old | new)
    assert usage.length <= HEAD.window
    assert round(usage.end.timestamp() / INTERVAL) == FIRST + end + 1
    begin = round(usage.start.timestamp() / INTERVAL) - FIRST
    for at, value in enumerate(usage.samples[Metric.CPU], begin):
        if at <= max(old):
            assert value == (1.0 if at in old else None)
        else:
            assert value == (2.0 if at in new else None)


def journal_with(entries: tuple[Entry, ...]) -> Journal:
    """Return a journal with ``entries``."""
    return Journal(HEAD, entries)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1]",
        b"[]",
        b"{}",
        b'["a",1,1,1,1,1,1]',
        b"[-1,1,1,1,1,1,1]",
        b"[" * 5000,
        b"[1152921504606846976,1,1,1,1,1,1]",
        b"[180000001,-1,1,1,1,1,1]",
        b"[180000001,NaN,1,1,1,1,1]",
    ],
)
def test_lines_that_are_none_are_left_out_and_told(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "web.usage.journal").write_bytes(journal_of(2) + line + b"\n")
    (usage,) = read_usages(tmp_path)
    assert usage.samples[Metric.CPU] == (0.0, 1.0)
    assert "cut-line" in {one.code for one in usage.findings}


@pytest.mark.parametrize(
    "content", [b"nonsense\n", b"{}\n", head_line(HEAD.model_copy(update={"server": "other"}))]
)
def test_files_that_are_no_journals(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "web.usage.journal").write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_usages(tmp_path)
    assert caught.value.field == "web.usage.journal"


def test_rates() -> None:
    before = Reading(10.0, 1.0, {"sda": (100, 0), "sdb": (0, 0)}, {"eth0": (5, 5)})
    after = Reading(30.0, 7.0, {"sda": (200, 50), "sdc": (9, 9)}, {"eth0": (4, 25)})
    assert rates(before, after, 10.0, 4) == (2.0, 7.0, 10.0, 5.0, None, 2.0)
    assert rates(before, after, 10.0, 1)[0] == 1.0  # ticks of 10 ms may add up to a little more
    assert rates(after, before, 10.0, 4)[0] is None
    assert rates(ZERO, ZERO, 10.0, 4) == (0.0,) * 6


def test_this_machine_can_be_measured() -> None:
    machine = ThisMachine()
    before, after = machine.read(), machine.read()
    assert after.busy >= before.busy > 0
    sizes = machine.sizes()
    assert sizes.cores == os.cpu_count()
    assert sizes.memory is not None
    assert 0 < after.memory < sizes.memory
    assert "lo" not in after.cards
