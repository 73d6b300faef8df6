"""The layouts of PlanetLab and Bitbrains, with small data of our own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from hanok.assess.base import Format, Given
from hanok.errors import InvalidInput, NotFound
from hanok.model.usage import Metric, Sizes
from tests.assess.importers import codes, imported, one

PUBLISHED = ";\t".join(
    (
        "Timestamp [ms]",
        "CPU cores",
        "CPU capacity provisioned [MHZ]",
        "CPU usage [MHZ]",
        "CPU usage [%]",
        "Memory capacity provisioned [KB]",
        "Memory usage [KB]",
        "Disk read throughput [KB/s]",
        "Disk write throughput [KB/s]",
        "Network received throughput [KB/s]",
        "Network transmitted throughput [KB/s]",
    )
)
META = "id,start_time,stop_time,cpu_count,cpu_capacity,mem_capacity\nv1,x,y,4,8000,1048576\n"
TRACE = "id,timestamp,duration,cpu_count,cpu_usage\n"


def test_planetlab_a_file_a_machine(tmp_path: Path) -> None:
    folder = tmp_path / "20110303"
    folder.mkdir()
    (folder / "host_a").write_text("24\n34\n\n0\n")
    (folder / "host_b").write_text("100\n1e308\nx\n-1\n")
    found = imported(folder)
    assert found["host_a"].start == datetime(2011, 3, 3, tzinfo=UTC)
    assert found["host_a"].interval == 300
    assert found["host_a"].samples == {Metric.CPU: (0.24, 0.34, None, 0.0)}
    assert found["host_b"].samples == {Metric.CPU: (1.0,)}
    assert codes(found["host_b"]) == {"not-a-number": 1, "out-of-range": 2}


def test_planetlab_a_row_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "20110303.csv"
    path.write_text("a,10,20\nb x,30,40\n")
    found = imported(path, given=Given(sizes=Sizes(cores=4)))
    assert found["a"].samples == {Metric.CPU: (0.4, 0.8)}
    assert codes(found["b_x"]) == {"renamed": 1}


def test_planetlab_without_a_day(tmp_path: Path) -> None:
    path = tmp_path / "host"
    path.write_text("10\n20\n")
    with pytest.raises(InvalidInput) as caught:
        one(path)
    assert caught.value.hint is not None
    assert "--start" in caught.value.hint
    start = datetime(2011, 4, 1, 12, tzinfo=UTC)
    assert one(path, given=Given(start=start)).start == start


def test_bitbrains_as_published(tmp_path: Path) -> None:
    path = tmp_path / "7.csv"
    rows = [
        f"{1376314800 + 300 * at};\t4;\t8000;\t{mhz};\t25;\t1048576;\t524288;\t1;\t2;\t3;\t4"
        for at, mhz in enumerate((2000, 4000))
    ]
    path.write_text("\n".join((PUBLISHED, *rows)) + "\n")
    usage = one(path)
    assert usage.server == "7"
    assert usage.sizes == Sizes(cores=4, memory=1 << 30)
    assert usage.samples == {
        Metric.CPU: (1.0, 2.0),
        Metric.MEMORY: (1 << 29, 1 << 29),
        Metric.DISK_READ: (1024, 1024),
        Metric.DISK_WRITE: (2048, 2048),
        Metric.NETWORK_RECEIVE: (3072, 3072),
        Metric.NETWORK_SEND: (4096, 4096),
    }
    assert codes(usage) == {"wrong-time-unit": 2}


def test_bitbrains_as_opendc_has_it(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text(META)
    path = tmp_path / "trace.csv"
    path.write_text(
        TRACE + '"v1",2013-08-12 13:40:00.000Z,300000,4,2000\n'
        '"v1",2013-08-12 13:50:00.000Z,600000,4,4000\n'
        '"v1",2013-08-12 13:55:00.000Z,300000,4,9000\n'
    )
    usage = one(path)
    assert usage.samples == {Metric.CPU: (1.0, 2.0, 2.0, 4.0)}
    assert codes(usage) == {"above-size": 1}
    assert one(tmp_path).samples == usage.samples


def test_bitbrains_without_its_table_of_vms(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE + "v1,2013-08-12 13:40:00.000Z,300000,4,2000\n")
    with pytest.raises(NotFound):
        one(path)
    (tmp_path / "meta.csv").write_text(META.replace("v1", "v2"))
    with pytest.raises(InvalidInput) as caught:
        one(path)
    assert caught.value.field == "trace.csv:2"


def test_vms_without_samples_are_left_out_and_told(tmp_path: Path) -> None:
    from hanok.assess.importing import import_files

    (tmp_path / "meta.csv").write_text(META + "v2,x,y,1,1000,1\n")
    path = tmp_path / "trace.csv"
    path.write_text(TRACE + "v1,2013-08-12 13:40:00.000Z,300000,4,2000\n")
    found = import_files([path], None, Given())
    assert [usage.server for usage in found.usages] == ["v1"]
    assert found.skipped == {"v2": "no samples"}


@pytest.mark.parametrize(
    ("row", "field"), [("v1,x,y,0,8000,1\n", "meta.csv:2"), ("=a,x,y,1,8000,1\n", "meta.csv:2")]
)
def test_bad_tables_of_vms(tmp_path: Path, row: str, field: str) -> None:
    path = tmp_path / "meta.csv"
    path.write_text(META.partition("\n")[0] + "\n" + row)
    with pytest.raises(InvalidInput) as caught:
        one(path)
    assert caught.value.field == field


def test_another_table_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInput) as caught:
        one(path, kind=Format.BITBRAINS)
    assert caught.value.hint == "--format csv reads other tables"
