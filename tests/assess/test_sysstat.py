"""sysstat: recorded output of sadf 12.6.1 (names changed), and what other versions have."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.assess.base import Given
from hanok.assess.sysstat import total_memory
from hanok.assess.times import parse_zone
from hanok.errors import HanokError, InvalidInput
from hanok.model.usage import Metric
from hanok.units import KIB
from tests.assess.importers import attempted, codes, one
from tests.assess.mutations import changed, json_values, places
from tests.golden import check_golden

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "sysstat.json").read_text())


def written(tmp_path: Path, data: object) -> Path:
    """Write ``data`` as JSON."""
    path = tmp_path / "sa.json"
    path.write_text(json.dumps(data))
    return path


def day(*statistics: Mapping[str, Any], **host: object) -> dict[str, Any]:
    """Return what sadf would print of ``statistics``, a sample each 10 minutes from midnight on."""
    return {
        "sysstat": {
            "hosts": [
                {
                    "nodename": "db.example.com",
                    "number-of-cpus": 4,
                    "statistics": [
                        {
                            "timestamp": {
                                "date": "2026-11-29",
                                "time": f"{at // 6:02}:{at % 6 * 10:02}:01",
                                "utc": 1,
                                "interval": 600,
                            },
                            **sample,
                        }
                        for at, sample in enumerate(statistics, 1)
                    ],
                    **host,
                }
            ]
        }
    }


def cpu(idle: float, iowait: float = 0, steal: float = 0) -> dict[str, Any]:
    """Return a sample of CPU."""
    return {"cpu-load": [{"cpu": "all", "iowait": iowait, "steal": steal, "idle": idle}]}


@pytest.mark.parametrize("name", ["sysstat", "sysstat-all"])
def test_recorded(name: str) -> None:
    usage = one(GOLDEN / f"{name}.json")
    check_golden(GOLDEN / f"{name}.usage.json", usage.model_dump_json(indent=1) + "\n")


def test_memory_is_told_nearly_right_without_slab() -> None:
    """The two recordings are of one machine; only the one with -r ALL tells its memory exactly."""
    told = one(GOLDEN / "sysstat-all.json").sizes.memory
    estimated = one(GOLDEN / "sysstat.json").sizes.memory
    assert told is not None
    assert estimated == pytest.approx(told, rel=0.002)


@given(st.integers(4 << 20, 1 << 31), st.lists(st.floats(0.01, 0.95), min_size=1, max_size=30))
def test_memory_from_rounded_shares(total: int, shares: list[float]) -> None:
    samples = [
        {
            "memory": {
                "avail": 1,
                "memused": round(share * total),
                "memused-percent": round(100 * round(share * total) / total, 2),
            }
        }
        for share in shares
    ]
    found = total_memory(samples)
    assert found is not None
    assert found / KIB == pytest.approx(total, rel=0.006 / (100 * max(shares)))


def test_waiting_and_stolen_time_is_no_work(tmp_path: Path) -> None:
    usage = one(written(tmp_path, day(cpu(50), cpu(50, 20, 10), cpu(0, 60, 40))))
    assert usage.samples[Metric.CPU] == (2.0, 0.8, 0.0)
    assert (usage.server, usage.interval, usage.sizes.cores) == ("db", 600, 4)


def test_memory_of_old_versions(tmp_path: Path) -> None:
    memory = {"memfree": 1000, "memused": 7000, "buffers": 500, "cached": 1500}
    usage = one(written(tmp_path, day({"memory": memory}, {"memory": memory})))
    assert usage.sizes.memory == 8000 * KIB
    assert usage.samples[Metric.MEMORY] == (5000 * KIB, 5000 * KIB)


def test_disks_count_once_and_blocks_are_512_bytes(tmp_path: Path) -> None:
    disks = [
        {"disk-device": "sda", "rkB": 2, "wkB": 4},
        {"disk-device": "sdb", "rd_sec": 2, "wr_sec": 4},  # sysstat before 11.3
        {"disk-device": "dm-0", "rkB": 2, "wkB": 4},
    ]
    io = {"io-reads": {"bread": 2.0}, "io-writes": {"bwrtn": 4.0}}
    usage = one(written(tmp_path, day({"disk": disks, "io": io}, {"io": io})))
    assert usage.samples[Metric.DISK_READ] == (3072, 1024)
    assert usage.samples[Metric.DISK_WRITE] == (6144, 2048)


def test_days_are_put_together_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    first, second = tmp_path / "sa29.json", tmp_path / "sa30.json"
    first.write_text(json.dumps(day(*[cpu(50)] * 143)))
    tomorrow = json.dumps(day(*[cpu(75)] * 143)).replace("2026-11-29", "2026-11-30")
    second.write_text(tomorrow)
    usage = one(second, first, first)
    assert usage.length == 287
    assert usage.samples[Metric.CPU][143] is None  # midnight itself is in neither
    assert codes(usage) == {"duplicates": 143, "gaps": 1, "unordered": 1 + 1}


def test_local_times_need_a_zone(tmp_path: Path) -> None:
    data = day(cpu(50), cpu(50))
    for sample in data["sysstat"]["hosts"][0]["statistics"]:
        sample["timestamp"]["utc"] = 0
    path = written(tmp_path, data)
    assert codes(one(path)) == {"no-zone": 2}
    usage = one(path, given=Given(zone=parse_zone("Asia/Seoul")))
    assert usage.start.isoformat() == "2026-11-28T15:00:00+00:00"
    assert usage.findings == ()


def test_restarts_are_told(tmp_path: Path) -> None:
    restart = {"boot": {"date": "2026-11-29", "time": "00:05:00", "utc": 1}}
    usage = one(written(tmp_path, day(cpu(50), cpu(50), restarts=[restart])))
    assert codes(usage) == {"restarts": 1}


@pytest.mark.parametrize(
    ("part", "value", "field"),
    [
        ("nodename", "=cmd", "hosts.0.nodename"),
        ("nodename", 1, "hosts.0.nodename"),
        ("statistics", {}, "hosts.0.statistics"),
        ("statistics", [{"x": 1}], "hosts.0.statistics.0.timestamp"),
        ("statistics", [{"timestamp": {"date": "x"}}], "hosts.0.statistics.0.timestamp"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, part: str, value: object, field: str) -> None:
    data = copy.deepcopy(RECORDED)
    data["sysstat"]["hosts"][0][part] = value
    with pytest.raises(InvalidInput) as caught:
        one(written(tmp_path, data))
    assert caught.value.field == f"sa.json: sysstat.{field}"


@settings(max_examples=300)
@given(st.sampled_from(places(RECORDED)), json_values())
def test_whatever_a_field_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str | int, ...], value: object
) -> None:
    path = written(tmp_path_factory.mktemp("sa"), changed(RECORDED, place, value))
    outcome = attempted(path)
    assert isinstance(outcome, HanokError) or all(usage.length for usage in outcome.values())


@pytest.mark.parametrize("idle", ["NaN", "1e999", "-1e999", "true", '"50"', "null"])
def test_numbers_that_are_none_are_gaps(tmp_path: Path, idle: str) -> None:
    path = written(tmp_path, day(cpu(50), cpu(-12345), cpu(50)))
    path.write_text(path.read_text().replace("-12345", idle))
    assert one(path).samples[Metric.CPU] == (2.0, None, 2.0)
