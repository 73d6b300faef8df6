"""Bitbrains (GWA-T-12): VMs of a data centre, every five minutes.

Two layouts: the published one, a file a VM with the columns of
http://gwa.ewi.tudelft.nl/datasets/gwa-t-12-bitbrains (``;`` and tabs between them), and the one of
OpenDC (https://github.com/atlarge-research/opendc), a table ``trace`` of all VMs, whose samples say
how long they are, beside a table ``meta`` of what the VMs have. CPU use is in MHz: the share of a
VM's own MHz is that of its cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hanok.assess.base import Context, server_of_file
from hanok.assess.recording import Recording
from hanok.assess.table import Header, Row, cell, read_rows
from hanok.assess.times import MAX_LENGTH, Times
from hanok.assess.units import parse_number
from hanok.errors import InvalidInput, NotFound
from hanok.model.usage import Metric
from hanok.model.validation import shown
from hanok.units import KIB

_CORES, _CAPACITY, _USAGE = "CPU cores", "CPU capacity provisioned [MHZ]", "CPU usage [MHZ]"
_MEMORY_SIZE = "Memory capacity provisioned [KB]"
_TIME = "Timestamp [ms]"
_KIBS = {
    "Memory usage [KB]": Metric.MEMORY,
    "Disk read throughput [KB/s]": Metric.DISK_READ,
    "Disk write throughput [KB/s]": Metric.DISK_WRITE,
    "Network received throughput [KB/s]": Metric.NETWORK_RECEIVE,
    "Network transmitted throughput [KB/s]": Metric.NETWORK_SEND,
}
_TRACE = ("id", "timestamp", "duration", "cpu_count", "cpu_usage")
_META = ("id", "cpu_count", "cpu_capacity", "mem_capacity")
_META_NAMES = ("meta.csv", "meta.csv.gz")


@dataclass(frozen=True)
class _Vm:
    """What a VM of OpenDC's table has: MHz of all its cores together, memory in bytes."""

    cores: float
    mhz: float
    memory: float


class Bitbrains:
    """Reads both layouts; a table ``meta`` is found beside its ``trace``, or given before it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._vms: dict[str, _Vm] = {}
        self._clocks: dict[str, Times] = {}

    def read(self, path: Path) -> None:
        """Read a file. Raises NotFound or InvalidInput naming file and line."""
        rows = read_rows(path, self._context.limits, self._context.tell)
        header = Header(next(rows, Row((), f"{path.name}:1")))
        if {_TIME, _USAGE} <= set(header.names):
            server = self._context.given.server or server_of_file(path)
            recording = self._context.recordings.of(server, path.name)
            columns = _Columns(header)
            for row in rows:
                self._read_published(recording, row, columns)
        elif set(_TRACE) <= set(header.names):
            self._find_meta(path)
            columns = _Columns(header)
            for row in rows:
                self._read_trace(row, columns)
        elif set(_META) <= set(header.names):
            for row in rows:
                self._read_meta(row, _Columns(header))
        else:
            raise InvalidInput(
                "this is neither layout of Bitbrains",
                field=header.place,
                expected=f"columns such as {_TIME} and {_USAGE}, or {', '.join(_TRACE)}",
                hint="--format csv reads other tables",
            )

    def finish(self) -> None:
        """Do nothing: each row was told by itself."""

    def _clock(self, recording: Recording) -> Times:
        clock = self._clocks.get(recording.server)
        if clock is None:
            clock = Times(self._context.given.zone, recording.notes)
            self._clocks[recording.server] = clock
        return clock

    def _read_published(self, recording: Recording, row: Row, columns: _Columns) -> None:
        # The column says ms; the published files have seconds, which is found and noted.
        end = self._clock(recording).parse(columns.text(row, _TIME), "unix-ms")
        if end is None:
            recording.notes.add("no-time", f"{row.place}: no time: left out")
            return
        cores = columns.number(row, _CORES, recording)
        capacity = columns.number(row, _CAPACITY, recording)
        usage = columns.number(row, _USAGE, recording)
        recording.size("cores", cores or 0)
        recording.size("memory", (columns.number(row, _MEMORY_SIZE, recording) or 0) * KIB)
        if usage is not None and capacity and cores:
            share = usage / capacity
            self._context.recordings.add(recording, Metric.CPU, end, share * cores)
        for name, metric in _KIBS.items():
            value = columns.number(row, name, recording)
            if value is not None:
                self._context.recordings.add(recording, metric, end, value * KIB)

    def _find_meta(self, path: Path) -> None:
        """Read the table of VMs beside the trace at ``path``, unless one was given."""
        if self._vms:
            return
        for name in _META_NAMES:
            if (meta := path.parent / name).exists():
                self.read(meta)
                return
        raise NotFound(
            f"there is no table of VMs beside {path.name}",
            field=path.name,
            expected=f"{_META_NAMES[0]} with {', '.join(_META)}",
        )

    def _read_meta(self, row: Row, columns: _Columns) -> None:
        recording = self._context.recordings.of(columns.text(row, "id"), row.place)
        cores, mhz, memory = (columns.number(row, name, recording) for name in _META[1:])
        if not cores or not mhz or cores <= 0 or mhz <= 0:
            raise InvalidInput(
                "a VM needs cores and MHz", field=row.place, expected="numbers above 0"
            )
        self._vms[recording.server] = _Vm(cores, mhz, (memory or 0) * KIB)
        recording.size("cores", cores)
        recording.size("memory", (memory or 0) * KIB)

    def _read_trace(self, row: Row, columns: _Columns) -> None:
        recording = self._context.recordings.of(columns.text(row, "id"), row.place)
        vm = self._vms.get(recording.server)
        if vm is None:
            raise InvalidInput(
                f"{shown(recording.server)} is not in the table of VMs", field=row.place
            )
        end = self._clock(recording).parse(columns.text(row, "timestamp"), None)
        usage = columns.number(row, "cpu_usage", recording)
        duration = columns.number(row, "duration", recording)
        if (
            end is None
            or usage is None
            or duration is None
            or not 0 < duration <= 1000 * MAX_LENGTH
        ):
            recording.notes.add("no-time", f"{row.place}: no time, use or duration: left out")
            return
        share = usage / vm.mhz
        self._context.recordings.add(recording, Metric.CPU, end, share * vm.cores, duration / 1000)


class _Columns:
    """Cells of a table by the names of its columns."""

    def __init__(self, header: Header) -> None:
        self._at: Mapping[str, int] = {name: at for at, name in enumerate(header.names)}

    def text(self, row: Row, name: str) -> str:
        """Return a cell; empty when there is none."""
        at = self._at.get(name)
        return "" if at is None else cell(row, at)

    def number(self, row: Row, name: str, recording: Recording) -> float | None:
        """Return the number in a cell, None for none; what is neither is noted."""
        text = self.text(row, name)
        value = parse_number(text)
        if value is None and text:
            recording.notes.add("not-a-number", f"{row.place}: {shown(text)} in {name}: left out")
        return value
