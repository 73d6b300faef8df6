"""Plain CSV: columns by name, units, and what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hanok.assess.base import Format, Given
from hanok.assess.times import parse_zone
from hanok.errors import HanokError, InvalidInput
from hanok.model.usage import Metric, Sizes
from tests.assess.importers import attempted, codes, imported, one

MAPS = ("when=time", "host=server", "cpu=cpu:percent", "mem=memory:MiB")
SIZES = Sizes(cores=4, memory=8 << 30)


def table(path: Path, *rows: str) -> Path:
    """Write a table with the usual header."""
    path.write_text("\n".join(("when,host,cpu,mem", *rows)) + "\n")
    return path


def given_maps(maps: Sequence[str] = MAPS, sizes: Sizes = SIZES, zone: str | None = None) -> Given:
    """Return what is said about the usual table."""
    return Given(maps=maps, sizes=sizes, zone=None if zone is None else parse_zone(zone))


def refusal(path: Path, maps: Sequence[str] = MAPS, sizes: Sizes = SIZES) -> InvalidInput:
    """Return the error that importing ``path`` ends with."""
    with pytest.raises(InvalidInput) as caught:
        imported(path, given=given_maps(maps, sizes))
    return caught.value


def test_units_and_zones(tmp_path: Path) -> None:
    path = table(
        tmp_path / "load.csv",
        "2026-11-29T09:05:00+09:00,a,50,1024",
        "2026-11-29T09:10:00+09:00,a,25,2048",
        "2026-11-29T00:05:00Z,b,100,1",
        "2026-11-29T00:10:00Z,b,0,1",
    )
    found = imported(path, given=given_maps())
    assert sorted(found) == ["a", "b"]
    assert found["a"].start.isoformat() == "2026-11-29T00:00:00+00:00"
    assert found["a"].interval == 300
    assert found["a"].samples[Metric.CPU] == (2.0, 1.0)
    assert found["a"].samples[Metric.MEMORY] == (1 << 30, 2 << 30)
    assert found["a"].findings == ()
    assert found["b"].samples[Metric.CPU] == (4.0, 0.0)


@pytest.mark.parametrize(
    ("target", "text", "value"),
    [
        ("cpu", "1.5", 1.5),
        ("cpu:percent-of-core", "150", 1.5),
        ("cpu:fraction", "0.5", 2.0),
        ("memory:percent", "50", 4 << 30),
        ("memory:kB", "2000000", 2e9),
        ("disk_read:KiB/s", "2", 2048),
        ("disk_write:sectors", "2", 1024),
        ("network_send:Mbit", "8", 1e6),
        ("network_receive:MB/s", "1e1", 1e7),
    ],
)
def test_every_kind_of_unit(tmp_path: Path, target: str, text: str, value: float) -> None:
    path = tmp_path / "web.csv"
    path.write_text(f"t;x\n2026-11-29T00:05Z;{text}\n2026-11-29T00:10Z;{text}\n")
    usage = one(path, given=given_maps(("t=time", f"x={target}")))
    assert usage.server == "web"
    assert usage.samples == {Metric(target.partition(":")[0]): (value, value)}


def test_sizes_from_columns(tmp_path: Path) -> None:
    path = tmp_path / "web.csv"
    path.write_text("t,load,n,ram,hd\n1795953600,50,8,16,1\n1795953900,100,8,16,1\n")
    maps = ("t=time", "load=cpu:percent", "n=cores", "ram=memory_size:GiB", "hd=disk_size:TB")
    usage = one(path, given=Given(maps=maps))
    assert usage.sizes == Sizes(cores=8, memory=16 << 30, disk=10**12)
    assert usage.samples[Metric.CPU] == (4.0, 8.0)


def test_what_is_wrong_with_samples_is_left_out_and_told(tmp_path: Path) -> None:
    path = table(
        tmp_path / "load.csv",
        "2026-11-29 00:10,a,50,1",
        "2026-11-29 00:05,a,50,",
        "2026-11-29 00:05,a,50,",
        "2026-11-29 00:15,a,NaN,1",
        "2026-11-29 00:20,a,1e308,1",
        "2026-11-29 00:25,a,=1+1,1",
        "2026-11-29 00:30,a,-5,1",
        "yesterday,a,50,1",
        "2026-11-29 00:35,a,50,1",
        "2026-11-29 00:50,a,50,1",
    )
    usage = one(path, given=given_maps())
    assert usage.samples[Metric.CPU] == (2.0, 2.0, None, None, None, None, 2.0, None, None, 2.0)
    assert codes(usage) == {
        "duplicates": 1,
        "gaps": 6,
        "maybe-wrong-unit": 1,
        "no-time": 1,
        "no-zone": 9,
        "not-a-number": 2,
        "out-of-range": 2,
        "unordered": 1,
    }
    first = next(found.text for found in usage.findings if found.code == "not-a-number")
    assert first == "load.csv:5: 'NaN' in 'cpu': left out"


def test_an_interval_of_choice(tmp_path: Path) -> None:
    rows = [f"{1795953600 + 60 * at},a,{at % 2 * 100},1" for at in range(1, 61)]
    path = table(tmp_path / "load.csv", *rows)
    usage = one(path, given=Given(maps=MAPS, sizes=SIZES, interval=600.0))
    assert usage.samples[Metric.CPU] == (2.0,) * 6


def test_zones_are_those_of_the_option(tmp_path: Path) -> None:
    path = table(tmp_path / "load.csv", "2026-11-29 09:05,a,1,1", "2026-11-29 09:10,a,1,1")
    usage = one(path, given=given_maps(zone="Asia/Seoul"))
    assert usage.start.isoformat() == "2026-11-29T00:00:00+00:00"
    assert "no-zone" not in codes(usage)


@pytest.mark.parametrize("name", ["=HYPERLINK()", "+a", "-a", "@a", "../a", "", "a" * 200, "\x1b"])
def test_names_that_are_formulas_or_paths(tmp_path: Path, name: str) -> None:
    error = refusal(table(tmp_path / "load.csv", f"1795953600,{name},1,1"))
    assert error.field == "load.csv:2"


def test_two_names_that_would_be_one_file(tmp_path: Path) -> None:
    path = table(tmp_path / "load.csv", "1795953600,a b,1,1", "1795953600,a_b,1,1")
    assert refusal(path).field == "load.csv:3"


def test_percents_of_one_core_are_refused_as_percents_of_all(tmp_path: Path) -> None:
    rows = [f"{1795953600 + 300 * at},a,{at * 10},1" for at in range(40)]
    error = refusal(table(tmp_path / "load.csv", *rows))
    assert error.field == "--map cpu"
    assert "cpu:percent-of-core" in (error.hint or "")


def test_memory_beyond_what_there_is(tmp_path: Path) -> None:
    rows = [f"{1795953600 + 300 * at},a,1,4000000" for at in range(40)]
    error = refusal(table(tmp_path / "load.csv", *rows))
    assert error.field == "--map memory"


def test_a_rare_peak_above_all_cores_is_cut(tmp_path: Path) -> None:
    rows = [f"{1795953600 + 300 * at},a,{101 if at == 7 else 50},4000" for at in range(200)]
    usage = one(table(tmp_path / "load.csv", *rows), given=given_maps())
    assert usage.samples[Metric.CPU][7] == 4.0
    assert codes(usage) == {"above-size": 1}


def test_fractions_named_percent_are_told(tmp_path: Path) -> None:
    rows = [f"{1795953600 + 300 * at},a,0.{at},4000" for at in range(10, 40)]
    usage = one(table(tmp_path / "load.csv", *rows), given=given_maps())
    assert codes(usage) == {"maybe-fraction": 1}


def test_memory_in_too_small_a_unit_is_told(tmp_path: Path) -> None:
    rows = [f"{1795953600 + 300 * at},a,1,2" for at in range(3)]
    usage = one(table(tmp_path / "load.csv", *rows), given=given_maps())
    assert codes(usage) == {"maybe-wrong-unit": 1}


@pytest.mark.parametrize(
    ("maps", "field"),
    [
        ((), "--format"),
        (("when=time",), "--map"),
        (("cpu=cpu",), "--map"),
        (("when=time", "cpu=cpuu"), "--map"),
        (("when=time", "cpu=cpu:furlongs"), "--map cpu"),
        (("when=time:minutes", "cpu=cpu"), "--map"),
        (("when=time", "cpu=cpu", "mem=cpu"), "--map"),
        (("when=time", "Cpu=cpu"), "--map"),
        (("when=time", "cpu"), "--map"),
        (("when=time", "host=cpu"), "load.csv, --map host"),
    ],
)
def test_maps_that_say_nothing(tmp_path: Path, maps: Sequence[str], field: str) -> None:
    path = table(tmp_path / "load.csv", "1795953600,a,1,1")
    assert refusal(path, maps).field == field


def test_the_nearest_column_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "load.csv", "1795953600,a,1,1")
    assert refusal(path, ("When =time", "CPUs=cpu")).hint == "did you mean 'when'?"


def test_a_share_of_what_nobody_knows(tmp_path: Path) -> None:
    error = refusal(table(tmp_path / "load.csv", "1795953600,a,1,1"), sizes=Sizes())
    assert error.field == "--cores"


def test_names_of_columns_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "web.csv"
    path.write_text('"when","a=b:c, d"\n1795953600,1\n1795953900,1\n')
    usage = one(path, given=Given(maps=("when=time", "a=b:c, d=cpu:cores")))
    assert usage.length == 2


def test_packed_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "web.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbft\tx\r\n1795953600\t1\r\n1795953900\t1\r\n"))
    usage = one(path, given=Given(maps=("t=time", "x=cpu")))
    assert (usage.server, usage.length) == ("web", 2)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(st.text(max_size=12), max_size=6), max_size=8), quoted=st.booleans())
def test_whatever_is_in_a_table_it_is_read_or_refused(
    tmp_path: Path, rows: list[list[str]], quoted: bool
) -> None:
    path = tmp_path / "load.csv"
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows(rows)
    path.write_bytes(b"when,host,cpu,mem\n" + text.getvalue().encode("utf-8", "surrogatepass"))
    outcome = attempted(path, kind=Format.CSV, given=given_maps())
    assert isinstance(outcome, HanokError) or all(usage.length for usage in outcome.values())
