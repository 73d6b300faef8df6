"""Files that were made to hurt: refused, or read within bounds."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hanok.assess.base import Format, Given
from hanok.assess.importing import guess
from hanok.assess.limits import LIMITS
from hanok.assess.reading import read_json
from hanok.errors import InvalidInput, NotFound
from hanok.model.usage import Metric
from hanok.units import GIB, KIB, MIB
from tests.assess.importers import attempted, imported

MAPS = Given(maps=("t=time", "x=cpu"))
TINY = replace(LIMITS, text_bytes=4 * KIB, rows=20, servers=3, points=30, files=2, json_bytes=KIB)


def refusal(path: Path, given: Given = MAPS, kind: Format = Format.CSV) -> InvalidInput:
    """Return the error that importing ``path`` within tiny limits ends with."""
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=kind, given=given, limits=TINY)
    return caught.value


def test_ten_gigabytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    with path.open("wb") as file:
        file.write(b"t,x\n1795953600,1\n")
        file.truncate(10 * GIB)  # a hole: nothing is written, and reading it would take minutes
    tracemalloc.start()
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=Format.CSV, given=MAPS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.expected == "at most 4 GiB, unpacked"
    assert peak < 4 * MIB


def test_a_bomb_of_gzip_is_bounded_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(MIB))
    tracemalloc.start()
    with pytest.raises(InvalidInput) as caught:
        read_json(path, replace(LIMITS, json_bytes=2 * MIB))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.expected == "at most 2 MiB, unpacked"
    assert peak < 16 * MIB


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"t,x\n" + b"1795953600,1\n" * 21, "load.csv:21"),  # rows
        (b"t,x\n" + b"," * 70_000, "load.csv"),  # bytes
        (b"t,x\n" + b"1" * 3000 + b"\n" + b"1" * 3000, "load.csv"),
        (b't,x\n1795953600,"1\n2\n3"\n', "load.csv:2"),  # a row over lines
        (b't,x\n1795953600,"1', "load.csv:2"),
        (b"t,x\n1795953600,\xff\n", "load.csv:2"),
        (b"t,x\n1795953600,\0\n", "load.csv:2"),
        ("t,x\n".encode("utf-16"), "load.csv:1"),
        (b"", "--map"),
        (b"\n\n\n", "--map"),
        (b"t,x\n", "FILE"),
        (b"t,x\n1,1\n", "FILE"),
        (b"\x1f\x8bnothing", "load.csv"),
        (gzip.compress(b"t,x\n1795953600,1\n")[:-9], "load.csv"),
    ],
)
def test_tables(tmp_path: Path, content: bytes, field: str) -> None:
    path = tmp_path / "load.csv"
    path.write_bytes(content)
    assert refusal(path).field == field


def test_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_bytes(b"t,x\n" + b"1" * (LIMITS.line + 1))
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=Format.CSV, given=MAPS)
    assert caught.value.field == "load.csv:2"


def test_more_columns_than_a_table_has(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("t,x\n" + "," * 5000)
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=Format.CSV, given=MAPS)
    assert caught.value.expected == "at most 4096"


def test_more_servers_than_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("t,x,s\n" + "".join(f"1795953600,1,s{at}\n" for at in range(4)))
    assert refusal(path, Given(maps=(*MAPS.maps, "s=server"))).field == "load.csv:5"


def test_more_numbers_than_fit(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("t,x,y,z\n" + "1795953600,1,1,1\n" * 11)
    given = Given(maps=(*MAPS.maps, "y=memory", "z=disk_read"))
    assert refusal(path, given).expected == "at most 30 numbers"


def test_more_files_than_are_read(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text("t,x\n1795953600,1\n")
    assert refusal(tmp_path).expected == "at most 2"


def test_two_times_that_are_ages_apart(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("t,x\n1995-01-01,1\n1995-01-02,1\n1995-01-02T00:00:01,1\n2198-01-01,1\n")
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=Format.CSV, given=replace(MAPS, interval=1.0))
    assert caught.value.field == "--interval"
    assert "1994-12-31" in caught.value.message


@pytest.mark.parametrize(
    "make", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")]
)
@pytest.mark.parametrize("kind", [None, *Format])
def test_files_that_never_end(
    tmp_path: Path, make: Callable[[Path], None], kind: Format | None
) -> None:
    path = tmp_path / "load.csv"
    make(path)
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=kind, given=Given(maps=MAPS.maps))
    assert "no file" in caught.value.message or "day" in caught.value.message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        imported(tmp_path / "load.csv", given=MAPS)
    with pytest.raises(NotFound):
        imported(tmp_path, given=MAPS)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"sysstat": 1e999}', "{", "NaN", '{"sysstat": {"hosts": [1]}}', '{"a"', "[]"],
)
@pytest.mark.parametrize("kind", [Format.SYSSTAT, Format.PROMETHEUS])
def test_json_that_is_none_or_not_what_it_should_be(
    tmp_path: Path, text: str, kind: Format
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        imported(path, kind=kind)
    assert (caught.value.field or "").startswith("x.json")


def test_json_of_very_many_parts(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([[]] * 100))
    with pytest.raises(InvalidInput) as caught:
        read_json(path, replace(LIMITS, json_parts=100))
    assert caught.value.expected == "at most 100"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ('{"sysstat": {"hosts": []}}', Format.SYSSTAT),
        ('{"status":"success","data":{"resultType":"matrix"}}', Format.PROMETHEUS),
        ("24\n34\n", Format.PLANETLAB),
        ("a_b,24,34\n", Format.PLANETLAB),
        ('"id","timestamp","duration","cpu_count","cpu_usage"\n', Format.BITBRAINS),
        ("Timestamp [ms];\tCPU cores;\tCPU usage [MHZ]\n", Format.BITBRAINS),
    ],
)
def test_guesses(tmp_path: Path, head: str, kind: Format) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(head.encode()))
    assert guess(path) is kind


@pytest.mark.parametrize("head", ["", "{}", "a,b,c\n1,2,3\n", "\0\0"])
def test_what_cannot_be_guessed(tmp_path: Path, head: str) -> None:
    path = tmp_path / "x"
    path.write_text(head)
    with pytest.raises(InvalidInput) as caught:
        guess(path)
    assert caught.value.field == "--format"


def test_samples_that_are_days_apart(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("t,x\n1991-01-02,1\n1991-01-05,3\n1991-01-08,5\n")
    (usage,) = imported(path, kind=Format.CSV, given=MAPS).values()
    assert usage.interval == 86400
    assert usage.samples[Metric.CPU] == (1.0,) * 3 + (3.0,) * 3 + (5.0,) * 3


@pytest.mark.parametrize("cores", [10**9, pytest.param(10**400, id="googol"), -1, 0, 1e308])
def test_cores_that_nobody_has(tmp_path: Path, cores: float) -> None:
    path = tmp_path / "x.json"
    sample = {
        "timestamp": {"date": "2026-11-29", "time": "00:10:00", "utc": 1, "interval": 600},
        "io": {"io-reads": {"bread": 1}},
    }
    host = {"nodename": "a", "number-of-cpus": cores, "statistics": [sample]}
    path.write_text(json.dumps({"sysstat": {"hosts": [host]}}))
    (usage,) = imported(path).values()
    assert usage.sizes.cores is None


@pytest.mark.parametrize("interval", [-1, 1e12, 86400.0 * 299])
def test_samples_about_ages(tmp_path: Path, interval: float) -> None:
    path = tmp_path / "x.json"
    sample = {
        "timestamp": {"date": "1991-01-02", "time": "00:10:00", "utc": 1, "interval": interval},
        "io": {"io-reads": {"bread": 1}},
    }
    path.write_text(json.dumps({"sysstat": {"hosts": [{"nodename": "a", "statistics": [sample]}]}}))
    outcome = attempted(path)
    assert isinstance(outcome, InvalidInput) == (not 0 <= interval <= 86400 * 300)
