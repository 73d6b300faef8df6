"""Prometheus: an answer of version 2.42 (names changed), counters that start anew, labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.assess.prometheus import without_port
from hanok.errors import HanokError, InvalidInput
from hanok.model.usage import Metric
from tests.assess.importers import attempted, codes, imported, one
from tests.assess.mutations import changed, json_values, places
from tests.golden import check_golden

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "prometheus.json").read_text())
BEGIN = 1_700_000_100  # a multiple of 300
Values = Sequence[float | None]


def series(name: str, values: Values, **labels: str) -> dict[str, Any]:
    """Return one series with a value every five minutes; None: it was not scraped."""
    return {
        "metric": {"__name__": name, "instance": "web:9100", **labels},
        "values": [
            [BEGIN + at * 300, str(value)] for at, value in enumerate(values) if value is not None
        ],
    }


def cpu(values: Values, core: str = "0", mode: str = "user", **labels: str) -> dict[str, Any]:
    """Return one series of CPU seconds."""
    return series("node_cpu_seconds_total", values, cpu=core, mode=mode, **labels)


def answer(path: Path, *found: Mapping[str, Any]) -> Path:
    """Write an answer with these series."""
    data = {"status": "success", "data": {"resultType": "matrix", "result": list(found)}}
    path.write_text(json.dumps(data))
    return path


def test_recorded() -> None:
    usage = one(GOLDEN / "prometheus.json")
    check_golden(GOLDEN / "prometheus.usage.json", usage.model_dump_json(indent=1) + "\n")


def test_modes_and_cores_are_added_and_idle_is_not(tmp_path: Path) -> None:
    path = answer(
        tmp_path / "x.json",
        cpu([0, 150, 300]),
        cpu([0, 30, 60], core="1", mode="system"),
        cpu([0, 900, 900], core="1", mode="idle"),
        cpu([0, 900, 900], core="1", mode="iowait"),
        cpu([0, 900, 900], core="1", mode="steal"),
    )
    usage = one(path)
    assert usage.samples == {Metric.CPU: (0.6, 0.6)}
    assert (usage.server, usage.sizes.cores) == ("web", 2)
    assert usage.start.timestamp() == BEGIN


def test_a_counter_that_starts_anew_makes_a_gap(tmp_path: Path) -> None:
    path = answer(tmp_path / "x.json", cpu([100, 250, 10, 160]), cpu([5, 5, 5, 5], core="1"))
    usage = one(path)
    assert usage.samples[Metric.CPU] == (0.5, None, 0.5)
    assert codes(usage) == {"counter-reset": 1, "gaps": 1}


@given(
    st.lists(st.tuples(st.floats(0, 300), st.booleans()), min_size=1, max_size=40),
)
def test_however_often_it_starts_anew_nothing_is_invented(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, bool]]
) -> None:
    """Each step adds seconds; before some the counter starts anew, from 0."""
    total = 1e6
    values = [total]
    for seconds, anew in steps:
        total = seconds if anew else total + seconds
        values.append(total)
    path = answer(tmp_path_factory.mktemp("x") / "x.json", cpu(values))
    outcome = attempted(path)
    expected = [
        None if after < before else (after - before) / 300
        for before, after in itertools.pairwise(values)
    ]
    if isinstance(outcome, HanokError):
        assert set(expected) == {None}
        return
    found = list(outcome["web"].samples[Metric.CPU])
    kept = [value for value in expected if value is not None]
    assert [value for value in found if value is not None] == pytest.approx(kept, abs=1e-4)


def test_a_hole_is_a_gap_and_no_mean_over_it(tmp_path: Path) -> None:
    path = answer(tmp_path / "x.json", cpu([0, 150, 300, None, None, 1200, 1350, 1500]))
    assert one(path).samples[Metric.CPU] == (0.5, 0.5, None, None, None, 0.5, 0.5)


def test_files_that_overlap_count_once(tmp_path: Path) -> None:
    first = answer(tmp_path / "1.json", cpu([0, 150, 300, 450]))
    second = answer(tmp_path / "2.json", cpu([None, None, 300, 450, 750]))
    other = answer(tmp_path / "3.json", cpu([0, 150, 300, 450], job="again"))
    usage = one(second, first, other)
    assert usage.samples[Metric.CPU] == (0.5, 0.5, 0.5, 1.0)


def test_disks_cards_and_memory(tmp_path: Path) -> None:
    received, read = "node_network_receive_bytes_total", "node_disk_read_bytes_total"
    path = answer(
        tmp_path / "x.json",
        series(received, [0, 300], device="eth0"),
        series(received, [0, 600], device="eth1"),
        series(received, [0, 900], device="bond0"),
        series(read, [0, 3000], device="sda"),
        series(read, [0, 3000], device="sda1"),
        series("node_memory_MemTotal_bytes", [1000, 1000]),
        series("node_memory_MemAvailable_bytes", [900, 400]),
        series("node_filesystem_size_bytes", [70, 70], device="/dev/sda1", mountpoint="/"),
        series("node_filesystem_size_bytes", [70, 70], device="/dev/sda1", mountpoint="/b"),
        series("node_filesystem_size_bytes", [9, 9], device="tmpfs", mountpoint="/run"),
    )
    usage = one(path)
    assert usage.samples == {
        Metric.NETWORK_RECEIVE: (3,),
        Metric.DISK_READ: (10,),
        Metric.MEMORY: (600,),
    }
    assert (usage.sizes.memory, usage.sizes.disk) == (1000, 70)


def test_servers_are_called_as_they_call_themselves(tmp_path: Path) -> None:
    values = [0, 1, 2]
    path = answer(
        tmp_path / "x.json",
        *(cpu(values, instance=f"10.0.0.{at}:9100") for at in range(4)),
        series("node_uname_info", [1], instance="10.0.0.0:9100", nodename="db.example.com"),
        series("node_uname_info", [1], instance="10.0.0.1:9100", nodename="localhost"),
        series("node_uname_info", [1], instance="10.0.0.2:9100", nodename="localhost"),
    )
    assert sorted(imported(path)) == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "db"]


@pytest.mark.parametrize(
    ("instance", "name"),
    [
        ("db.example.com:9100", "db.example.com"),
        ("10.0.0.1:9100", "10.0.0.1"),
        ("[fd00::1]:9100", "fd00--1"),
        ("db", "db"),
    ],
)
def test_ports_are_no_part_of_names(instance: str, name: str) -> None:
    assert without_port(instance) == name


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({}, "x.json: data.result.0.metric"),
        ({"__name__": "up", "instance": "a"}, "x.json: data.result.0.metric"),
        ({"__name__": "node_cpu_seconds_total"}, "x.json: data.result.0.metric.instance"),
        ({"__name__": "node_cpu_seconds_total", "instance": "=a"}, "instance '=a'"),
    ],
)
def test_labels_that_do_not_tell(tmp_path: Path, labels: dict[str, str], field: str) -> None:
    path = answer(tmp_path / "x.json", {"metric": labels, "values": [[BEGIN, "1"]]})
    with pytest.raises(InvalidInput) as caught:
        imported(path)
    assert caught.value.field == field


def test_an_error_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"status":"error","error":"too many","data":{"resultType":"matrix"}}')
    with pytest.raises(InvalidInput, match="too many"):
        imported(path)


@settings(max_examples=300)
@given(st.sampled_from(places(RECORDED)), json_values())
def test_whatever_a_field_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str | int, ...], value: object
) -> None:
    path = tmp_path_factory.mktemp("x") / "x.json"
    path.write_text(json.dumps(changed(RECORDED, place, value)))
    outcome = attempted(path)
    assert isinstance(outcome, HanokError) or all(usage.length for usage in outcome.values())
