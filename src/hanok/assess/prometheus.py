"""Prometheus: answers of ``/api/v1/query_range`` about metrics of node_exporter.

The format is https://prometheus.io/docs/prometheus/latest/querying/api/#range-queries, the metrics
those of https://github.com/prometheus/node_exporter. Counters count from the start of a server, so
one that goes back has started anew: what was counted between the two samples is not known.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import cast

from hanok.assess.base import Context
from hanok.assess.devices import counted_disks, is_counted_card
from hanok.assess.reading import read_json
from hanok.assess.recording import Recording, check_server
from hanok.assess.times import is_sane
from hanok.errors import InvalidInput
from hanok.model.usage import Metric
from hanok.model.validation import shown

_CPU = "node_cpu_seconds_total"
_AVAILABLE = "node_memory_MemAvailable_bytes"
_TOTAL = "node_memory_MemTotal_bytes"
_FILE_SYSTEM = "node_filesystem_size_bytes"
_NAME = "node_uname_info"
_DEVICES = {
    "node_disk_read_bytes_total": Metric.DISK_READ,
    "node_disk_written_bytes_total": Metric.DISK_WRITE,
    "node_network_receive_bytes_total": Metric.NETWORK_RECEIVE,
    "node_network_transmit_bytes_total": Metric.NETWORK_SEND,
}
KNOWN = (_CPU, _AVAILABLE, _TOTAL, _FILE_SYSTEM, _NAME, *_DEVICES)
# Not work of this server: idle, waiting for disks, given to others by the hypervisor below it.
_IDLE = frozenset({"idle", "iowait", "steal"})
_HOLE = 1.5  # of the usual step between samples: further apart there is a gap
_QUERY = f'{{__name__=~"{"|".join(KNOWN)}"}}'


class _Series:
    """The samples of one series, of all files together, in the order in which they came."""

    def __init__(self) -> None:
        self._times = array("d")
        self._values = array("d")

    def extend(self, values: Sequence[tuple[float, float]]) -> None:
        """Add (seconds since 1970, value) each."""
        self._times.extend(moment for moment, _ in values)
        self._values.extend(value for _, value in values)

    def tidied(self) -> list[tuple[float, float]]:
        """Return them in the order of time; of several at one moment the first that came."""
        # Backwards, so that the first one is the one that stays.
        found = dict(zip(reversed(self._times), reversed(self._values), strict=True))
        return sorted(found.items())


@dataclass
class _Counted:
    """The increase of counters by the time at which a step ended, summed over series."""

    sums: dict[float, float] = field(default_factory=dict)
    lengths: dict[float, float] = field(default_factory=dict)
    resets: set[float] = field(default_factory=set)

    def add(self, values: Sequence[tuple[float, float]]) -> None:
        """Add one series, (seconds since 1970, value) in order."""
        steps = [end - begin for (begin, _), (end, _) in pairwise(values)]
        usual = median_low(steps) if steps else 0.0
        for ((_, before), (end, after)), step in zip(pairwise(values), steps, strict=True):
            if step > _HOLE * usual:
                continue
            if after < before:
                self.resets.add(end)
            self.sums[end] = self.sums.get(end, 0.0) + (after - before)
            self.lengths[end] = step


@dataclass
class _Instance:
    """All series of one server: by metric, and by what tells them apart (core and mode, device)."""

    series: dict[str, dict[str, _Series]] = field(default_factory=dict)
    cores: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def of(self, metric: str) -> dict[str, list[tuple[float, float]]]:
        """Return the tidy series of ``metric`` by what tells them apart."""
        return {key: one.tidied() for key, one in self.series.get(metric, {}).items()}


class Prometheus:
    """Reads results of range queries; a server's metrics may be in several files."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._instances: dict[str, _Instance] = {}
        self._points = 0

    def read(self, path: Path) -> None:
        """Read a file. Raises NotFound or InvalidInput naming file and field."""
        data = read_json(path, self._context.limits, self._context.tell)
        place = f"{path.name}: data.result"
        for at, one in enumerate(_result(data, path.name)):
            self._read_series(one, f"{place}.{at}")
            self._context.tell(f"{path.name}: {at} series", None)

    def _read_series(self, one: object, place: str) -> None:
        if not isinstance(one, dict) or not isinstance(one.get("metric"), dict):
            raise _not_a_matrix(place)
        labels = {str(key): str(value) for key, value in one["metric"].items()}
        name = _known_name(labels, f"{place}.metric")
        instance = self._instance(labels, f"{place}.metric.instance")
        if name == _NAME:
            instance.names.add(labels.get("nodename", ""))
            return
        values = _values(one.get("values"), f"{place}.values")
        self._points += len(values)
        if self._points > self._context.limits.points:
            raise InvalidInput(
                "there are too many samples to import at once",
                field=place,
                expected=f"at most {self._context.limits.points} numbers",
                hint="import the files of some servers at a time",
            )
        _take(instance, name, labels, values)

    def _instance(self, labels: Mapping[str, str], place: str) -> _Instance:
        instance = labels.get("instance", "")
        if not instance:
            raise InvalidInput(
                "the label instance, which tells servers apart, is missing", field=place
            )
        if len(self._instances) >= self._context.limits.servers:
            raise InvalidInput(
                "there are too many servers",
                field=place,
                expected=f"at most {self._context.limits.servers}",
            )
        return self._instances.setdefault(instance, _Instance())

    def finish(self) -> None:
        """Make samples of counters, now that all files are read. Raises InvalidInput."""
        names = _server_names(self._instances)
        for at, (label, instance) in enumerate(sorted(self._instances.items())):
            self._context.tell(f"{names[label]}: counters", at / len(self._instances))
            recording = self._context.recordings.of(names[label], f"instance {shown(label)}")
            self._finish_server(recording, instance)

    def _finish_server(self, recording: Recording, instance: _Instance) -> None:
        recording.size("cores", len(instance.cores))
        recording.size("disk", sum(one[-1][1] for one in instance.of(_FILE_SYSTEM).values() if one))
        total = _merged(instance.of(_TOTAL))
        recording.size("memory", max(total.values(), default=0.0))
        begins = [self._add_counted(recording, Metric.CPU, instance.of(_CPU).values())]
        for name, metric in _DEVICES.items():
            series = instance.of(name)
            counted = [series[device] for device in _counted_devices(metric, series)]
            begins.append(self._add_counted(recording, metric, counted))
        available = _merged(instance.of(_AVAILABLE))
        # What ends when counters begin is about a time of which they say nothing.
        begin = min(begins) if min(begins) < math.inf else 0.0
        for moment in sorted(available.keys() & total.keys()):
            if moment <= begin:
                continue
            used = max(0.0, total[moment] - available[moment])
            self._context.recordings.add(recording, Metric.MEMORY, moment, used)

    def _add_counted(
        self, recording: Recording, metric: Metric, series: Iterable[Sequence[tuple[float, float]]]
    ) -> float:
        """Add what counters counted; return when the first of it began, infinity for nothing."""
        counted = _Counted()
        for one in series:
            counted.add(one)
        for end in sorted(counted.sums):
            if end in counted.resets:
                recording.notes.add(
                    "counter-reset", f"{metric}: a counter went back, as at a restart: a gap"
                )
                continue
            length = counted.lengths[end]
            rate = counted.sums[end] / length
            self._context.recordings.add(recording, metric, end, rate, length)
        return min((end - counted.lengths[end] for end in counted.sums), default=math.inf)


def _result(data: object, name: str) -> Sequence[object]:
    if not isinstance(data, dict) or not isinstance(data.get("data"), dict):
        raise _not_a_matrix(name)
    if data.get("status") != "success":
        raise InvalidInput(
            f"Prometheus answered with an error: {shown(data.get('error'))}", field=name
        )
    result = data["data"].get("result")
    if data["data"].get("resultType") != "matrix" or not isinstance(result, list):
        raise _not_a_matrix(f"{name}: data")
    return result


def _not_a_matrix(place: str) -> InvalidInput:
    return InvalidInput(
        "this is no result of a range query",
        field=place,
        expected="what /api/v1/query_range answers: a matrix",
        hint=f"query={_QUERY}",
    )


def _known_name(labels: Mapping[str, str], place: str) -> str:
    name = labels.get("__name__")
    if name is None:
        raise InvalidInput(
            "a series has no name: it is the result of rate(), sum() or the like",
            field=place,
            expected="the metrics themselves, as they were scraped",
            hint=f"query={_QUERY}",
        )
    if name not in KNOWN:
        raise InvalidInput(
            f"{shown(name)} is not used", field=place, expected=f"one of {', '.join(KNOWN)}"
        )
    return name


def _values(found: object, place: str) -> list[tuple[float, float]]:
    """Return (seconds since 1970, value) in order; NaN and infinity are left out."""
    if not isinstance(found, list):
        raise _not_a_matrix(place)
    values = [_value(pair, f"{place}.{at}") for at, pair in enumerate(found)]
    good = {moment: value for moment, value in values if math.isfinite(value) and value >= 0}
    return sorted(good.items())


def _value(pair: object, place: str) -> tuple[float, float]:
    try:
        moment, text = cast(tuple[float, str], pair)
        value = float(text) if isinstance(text, str) else math.nan
        if len(text) < 64 and is_sane(moment):
            return float(moment), value
    except (TypeError, ValueError):
        pass  # told below, as every other pair that is none
    raise InvalidInput(
        f"{shown(pair)} is no sample", field=place, expected="[seconds since 1970, text]"
    )


def _take(
    instance: _Instance,
    name: str,
    labels: Mapping[str, str],
    values: Sequence[tuple[float, float]],
) -> None:
    """Keep a series where it belongs. Labels such as ``job`` tell no two things apart."""
    key = labels.get("device", "")
    if name == _CPU:
        instance.cores.add(labels.get("cpu", ""))
        key = f"{labels.get('cpu')} {labels.get('mode')}"
        if labels.get("mode") in _IDLE:
            return
    if name == _FILE_SYSTEM and not key.startswith("/dev/"):
        return
    instance.series.setdefault(name, {}).setdefault(key, _Series()).extend(values)


def _merged(series: Mapping[str, Sequence[tuple[float, float]]]) -> dict[float, float]:
    return {moment: value for one in series.values() for moment, value in one}


def _counted_devices(metric: Metric, series: Mapping[str, object]) -> list[str]:
    if metric in (Metric.DISK_READ, Metric.DISK_WRITE):
        return counted_disks(series)
    return [name for name in series if is_counted_card(name)]


def _server_names(instances: Mapping[str, _Instance]) -> dict[str, str]:
    """Return the names of servers by the label instance.

    The host name that node_uname_info tells, if no other server has the same; else the label
    without its port.
    """
    hosts: dict[str, list[str]] = {}
    for label, instance in instances.items():
        for name in instance.names:
            hosts.setdefault(name.partition(".")[0], []).append(label)
    told = {labels[0]: name for name, labels in hosts.items() if len(labels) == 1}
    return {
        label: check_server(told.get(label) or without_port(label), f"instance {shown(label)}")
        for label in instances
    }


def without_port(instance: str) -> str:
    """Return ``db.example.com:9100`` as ``db.example.com``, ``[fd00::1]:9100`` as ``fd00--1``."""
    host, colon, port = instance.rpartition(":")
    name = host if colon and port.isdecimal() else instance
    return name.strip("[]").replace(":", "-")
