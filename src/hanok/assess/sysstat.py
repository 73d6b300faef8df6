"""sysstat: what ``sadf -j FILE -- -u -r -b -d -n DEV`` prints, or ``-A``.

The format is that of sadf(1) of sysstat 11 and 12 (https://sysstat.github.io/, ``json_stats.c``;
``xml/sysstat.xsd`` in its sources names the same fields). Units are sar(1)'s: blocks of 512 bytes,
KiB called kB. A sample is about the ``interval`` seconds before its time.
"""

from __future__ import annotations

import statistics as averages
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from hanok.assess.base import Context
from hanok.assess.devices import counted_disks, is_counted_card
from hanok.assess.reading import read_json
from hanok.assess.recording import Recording
from hanok.assess.times import MAX_LENGTH, Times, is_sane
from hanok.errors import InvalidInput
from hanok.model.usage import Metric
from hanok.units import KIB

_SECTOR = 512
_LARGEST = 1e18
_HINT = "sadf -j FILE -- -u -r -b -n DEV"
Json = Mapping[str, object]


class Sysstat:
    """Reads files of ``sadf -j``; several of one server are put together."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def read(self, path: Path) -> None:
        """Read a file. Raises NotFound or InvalidInput naming file and field."""
        data = read_json(path, self._context.limits, self._context.tell)
        top = _object(_object(data, path.name).get("sysstat"), f"{path.name}: sysstat")
        for at, host in enumerate(_list(top.get("hosts"), f"{path.name}: sysstat.hosts")):
            place = f"{path.name}: sysstat.hosts.{at}"
            self._read_host(_object(host, place), place)

    def finish(self) -> None:
        """Do nothing: each file was told by itself."""

    def _read_host(self, host: Json, place: str) -> None:
        name = host.get("nodename")
        recording = self._context.recordings.of(
            (name if isinstance(name, str) else "").partition(".")[0], f"{place}.nodename"
        )
        cores = _number(host.get("number-of-cpus"))
        if cores is not None:
            recording.size("cores", cores)
        statistics = _list(host.get("statistics", []), f"{place}.statistics")
        restarts = host.get("restarts")
        if isinstance(restarts, list) and restarts:
            recording.notes.add("restarts", "times that the server started anew", len(restarts))
        clock = Times(self._context.given.zone, recording.notes)
        memory = total_memory([_object(one, f"{place}.statistics") for one in statistics])
        if memory is not None:
            recording.size("memory", memory)
        for at, one in enumerate(statistics):
            spot = f"{place}.statistics.{at}"
            if one != {}:  # sadf -e ends its list with nothing
                self._read_sample(recording, _object(one, spot), clock, memory, spot)

    def _read_sample(
        self, recording: Recording, sample: Json, clock: Times, memory: float | None, place: str
    ) -> None:
        stamp = _object(sample.get("timestamp"), f"{place}.timestamp")
        end, length = _time(stamp, clock, f"{place}.timestamp")
        cores = recording.sizes.get("cores")
        values = {
            Metric.CPU: _cpu(sample, cores),
            Metric.MEMORY: _memory(sample, memory),
            **_disks(sample),
            **_cards(sample),
        }
        recording.size("disk", _file_systems(sample))
        for metric, value in values.items():
            if value is not None:
                self._context.recordings.add(recording, metric, end, value, length)


def _object(value: object, place: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidInput(
            "this is not what sadf -j prints", field=place, expected="an object", hint=_HINT
        )
    return cast(Json, value)


def _list(value: object, place: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise InvalidInput(
            "this is not what sadf -j prints", field=place, expected="a list", hint=_HINT
        )
    return value


def _number(value: object) -> float | None:
    """Return a number that can be true; NaN, infinity and those of 300 digits are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None  # false for NaN too


def _numbers(one: Json, *names: str) -> list[float] | None:
    """Return the numbers called so, or None when one of them is not there."""
    found = [_number(one.get(name)) for name in names]
    return None if None in found else cast(list[float], found)


def _parts(sample: Json, *path: str) -> list[Json]:
    """Return the objects in the list at ``path``; none when there is no such list."""
    value: object = sample
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _part(sample: Json, *path: str) -> Json:
    value: object = sample
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return cast(Json, value) if isinstance(value, dict) else {}


def _time(stamp: Json, clock: Times, place: str) -> tuple[float, float]:
    """Return when a sample ended, in seconds since 1970, and how many seconds it is about."""
    length = _number(stamp.get("interval")) or 0.0
    try:
        moment = datetime.fromisoformat(f"{stamp.get('date')} {stamp.get('time')}")
        # sadf -T writes the server's own time, with "utc": 0 and without an offset.
        in_utc = stamp.get("utc") == 1
        end = moment.replace(tzinfo=UTC).timestamp() if in_utc else clock.local(moment)
    except (ValueError, OverflowError):
        end = -1.0
    if not is_sane(end) or not 0 <= length <= MAX_LENGTH:
        raise InvalidInput(
            "this is no time", field=place, expected="date, time and interval, as sadf -j has them"
        )
    return end, length


def _cpu(sample: Json, cores: int | None) -> float | None:
    """Return the cores in use: what is neither idle, nor waits for disks, nor was stolen."""
    for one in _parts(sample, "cpu-load"):
        numbers = _numbers(one, "idle", "iowait", "steal")
        if one.get("cpu") == "all" and numbers is not None and cores is not None:
            return max(0.0, 100.0 - sum(numbers)) / 100 * cores
    return None


def total_memory(samples: Iterable[Json]) -> float | None:
    """Return the bytes of memory that a server has, which sadf does not print.

    With ``-r ALL`` it is the sum of its parts (since sysstat 11.7, ``kbmemused`` is what is left
    after free, buffers, cached and slab). Without, it is where the shares that each sample prints
    with two decimals agree.
    """
    least, most, middles = 0.0, float("inf"), []
    for sample in samples:
        memory = _part(sample, "memory")
        if (all_of_it := _sum_of_parts(memory)) is not None:
            return all_of_it * KIB
        found = _numbers(memory, "memused", "memused-percent")
        if found is None or found[1] < 0.01:
            continue
        used, percent = found
        least = max(least, used / (percent + 0.005) * 100)
        most = min(most, used / (percent - 0.005) * 100)
        middles.append(used / percent * 100)
    if not middles:
        return None
    return (averages.median(middles) if least > most else (least + most) / 2) * KIB


def _sum_of_parts(memory: Json) -> float | None:
    names = (
        ("memfree", "memused")
        if "avail" not in memory
        else ("memfree", "memused", "buffers", "cached", "slab")
    )
    found = _numbers(memory, *names)
    return None if found is None else sum(found)


def _memory(sample: Json, total: float | None) -> float | None:
    """Return the bytes in use: all but what the kernel could give to programs (``avail``).

    sysstat before 11.5.7 has no ``avail``; its ``memused`` has buffers and cache in it.
    """
    memory = _part(sample, "memory")
    available = _number(memory.get("avail"))
    if available is not None:
        return None if total is None else max(0.0, total - available * KIB)
    old = _numbers(memory, "memused", "buffers", "cached")
    return None if old is None else max(0.0, old[0] - old[1] - old[2]) * KIB


def _disks(sample: Json) -> dict[Metric, float | None]:
    """Return bytes a second of the whole disks; without them, of all devices (``-b``)."""
    disks = {str(one.get("disk-device")): one for one in _parts(sample, "disk")}
    if disks:
        counted = [disks[name] for name in counted_disks(disks)]
        return {
            Metric.DISK_READ: _sum(counted, ("rkB", KIB), ("rd_sec", _SECTOR)),
            Metric.DISK_WRITE: _sum(counted, ("wkB", KIB), ("wr_sec", _SECTOR)),
        }
    read = _number(_part(sample, "io", "io-reads").get("bread"))
    written = _number(_part(sample, "io", "io-writes").get("bwrtn"))
    return {
        Metric.DISK_READ: None if read is None else read * _SECTOR,
        Metric.DISK_WRITE: None if written is None else written * _SECTOR,
    }


def _cards(sample: Json) -> dict[Metric, float | None]:
    cards = [
        one
        for one in _parts(sample, "network", "net-dev")
        if is_counted_card(str(one.get("iface")))
    ]
    return {
        Metric.NETWORK_RECEIVE: _sum(cards, ("rxkB", KIB)),
        Metric.NETWORK_SEND: _sum(cards, ("txkB", KIB)),
    }


def _sum(parts: Sequence[Json], *fields: tuple[str, int]) -> float | None:
    """Return the sum of the first of ``fields`` that each has; None when there are no parts."""
    total = None
    for one in parts:
        found = ((_number(one.get(name)), unit) for name, unit in fields)
        value = next((number * unit for number, unit in found if number is not None), None)
        if value is not None:
            total = (total or 0.0) + value
    return total


def _file_systems(sample: Json) -> float:
    """Return the bytes of the file systems that ``-F`` lists."""
    found = [_numbers(one, "MBfsfree", "MBfsused") for one in _parts(sample, "filesystems")]
    return sum(sum(numbers) for numbers in found if numbers is not None) * KIB * KIB
