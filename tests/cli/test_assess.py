"""``hanok assess`` as typed: files in, files out, tables, JSON, exit statuses, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from tests.cli.conftest import Hanok
from tests.cli.test_imports import imported
from tests.machine import patient

GOLDEN = Path(__file__).parents[1] / "assess" / "golden"
TABLE = """when,host,cpu,mem
2026-11-29 09:05,web,50,1024
2026-11-29 09:10,web,25,2048
2026-11-29 09:20,web,75,NaN
"""
MAPS = ("--map", "when=time", "--map", "host=server", "--map", "cpu=cpu:percent")
SIZES = ("--cores", "4", "--memory", "8G")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with a gap and something that is no number."""
    path = tmp_path / "load.csv"
    path.write_text(TABLE)
    return path


def load(hanok: Hanok, table: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Import ``table`` into the folder ``usage`` beside it."""
    words = ("assess", "import", str(table), "--out", "usage", *MAPS, "--map", "mem=memory:MiB")
    return hanok(*words, *SIZES, *more, cwd=table.parent)


def test_import_and_show(hanok: Hanok, table: Path) -> None:
    done = load(hanok, table, "--zone", "Asia/Seoul")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "1 server in usage, 2026-11-29 00:00 to 2026-11-29 00:20 UTC, every 300 s"
    )
    assert "not-a-number" in done.stdout
    shown = hanok("assess", "show", str(table.parent / "usage"))
    assert shown.returncode == 0
    titles, row, *findings = shown.stdout.splitlines()
    assert titles.split()[:6] == ["SERVER", "FROM", "SPAN", "EVERY", "GAPS", "CORES"]
    wanted = "web 2026-11-29 1200 s 300 s 25.0% 4 3.00 2.00 3.00 2 GiB 1.5 GiB 2 GiB"
    assert row.split() == wanted.split()
    assert findings[0].startswith("web: gaps: intervals of 4")


def test_json(hanok: Hanok, table: Path) -> None:
    done = load(hanok, table, "--json")
    assert done.returncode == 0
    (server,) = json.loads(done.stdout)["servers"]
    assert (server["server"], server["intervals"]) == ("web", 4)
    assert {one["code"] for one in server["findings"]} == {"gaps", "no-zone", "not-a-number"}
    shown = json.loads(hanok("assess", "show", str(table.parent / "usage"), "--json").stdout)
    assert shown[0]["cpu"] == {"peak": 3.0, "mean": 2.0, "p95": 3.0}
    assert shown[0]["gaps"] == {"cpu": 1, "memory": 2}


def test_what_is_there_is_kept(hanok: Hanok, table: Path) -> None:
    load(hanok, table)
    again = load(hanok, table)
    assert again.returncode == 1
    assert "--replace" in again.stderr
    assert load(hanok, table, "--replace").returncode == 0


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--zone", "Mars"), "--zone"),
        (("--interval", "soon"), "--interval"),
        (("--interval", "2d"), "--interval"),
        (("--start", "soon"), "--start"),
        (("--start", "1066-10-14"), "--start"),
        (("--memory", "much"), "--memory"),
        (("--format", "excel"), "--format"),
        (("--map", "x=y"), "--map"),
    ],
)
def test_bad_options(hanok: Hanok, table: Path, words: tuple[str, ...], field: str) -> None:
    done = load(hanok, table, *words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["field"] == field
    assert not (table.parent / "usage").exists()


def test_a_table_nobody_explained_tells_its_columns(hanok: Hanok, table: Path) -> None:
    done = hanok("assess", "import", str(table), "--format", "csv", "--out", "usage")
    assert done.returncode == 2
    assert "'when', 'host', 'cpu', 'mem'" in done.stderr


def test_recorded_ones_are_told_apart(hanok: Hanok, tmp_path: Path) -> None:
    files = [str(GOLDEN / f"{name}.json") for name in ("sysstat", "prometheus")]
    done = hanok("assess", "import", *files, "--out", str(tmp_path / "usage"), "--interval", "60s")
    assert done.returncode == 0, done.stderr
    found = json.loads(hanok("assess", "show", str(tmp_path / "usage"), "--json").stdout)
    assert [(one["server"], one["interval"]) for one in found] == [("web-1", 60.0), ("web-2", 60.0)]


def test_show_names_the_file_that_is_wrong(hanok: Hanok, tmp_path: Path) -> None:
    (tmp_path / "a.usage.json").write_text('{"server": "a"}')
    done = hanok("assess", "show", str(tmp_path), "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["field"] == "a.usage.json.start"
    assert hanok("assess", "show", str(tmp_path / "x")).returncode == 1


def test_long_work_shows_how_far_it_is(hanok: Hanok, tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    with path.open("w") as file:
        file.write("when,cpu\n")
        file.writelines(f"{1_700_000_000 + at},1\n" for at in range(200_000))
    words = ("assess", "import", str(path), "--map", "when=time", "--map", "cpu=cpu", "--out")
    done = hanok(*words, str(tmp_path / "usage"))
    assert done.returncode == 0, done.stderr
    assert "importing: load.csv: " in done.stderr
    assert hanok(*words, str(tmp_path / "again"), "--json").stderr == ""


def test_measuring_is_about_this_machine(hanok: Hanok, tmp_path: Path) -> None:
    done = hanok("--remote", "far", "assess", "collect", "--out", str(tmp_path / "usage"))
    assert done.returncode == 2
    assert (
        json.loads(
            hanok("--json", "assess", "collect", "--for", "5s", "--out", str(tmp_path)).stderr
        )["field"]
        == "--for"
    )


def test_collect_for_a_time(hanok: Hanok, tmp_path: Path) -> None:
    words = ("assess", "collect", "--interval", "1s", "--for", "2s", "--name", "web", "--json")
    done = hanok(*words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new"] == 2
    (shown,) = json.loads(hanok("assess", "show", str(tmp_path), "--json").stdout)
    assert (shown["server"], shown["interval"]) == ("web", 1.0)
    assert 0 <= shown["cpu"]["peak"] <= shown["sizes"]["cores"] == os.cpu_count()
    assert 0 < shown["memory"]["peak"] < shown["sizes"]["memory"]


@retry(stop=stop_after_delay(patient(60)), wait=wait_fixed(0.05), retry=retry_if_result(bool))
def wait_for_lines(journal: Path, count: int) -> bool:
    """Return when ``journal`` has ``count`` intervals."""
    return not journal.exists() or journal.read_bytes().count(b"\n") <= count


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_however_it_ends_nothing_is_lost(
    hanok: Hanok, tmp_path: Path, number: int, status: int
) -> None:
    words = ("assess", "collect", "--interval", "1s", "--name", "web", "--out", str(tmp_path))
    process = hanok.popen(*words)
    journal = tmp_path / "web.usage.journal"
    wait_for_lines(journal, 2)
    before = journal.read_bytes().count(b"\n") - 1
    process.send_signal(number)
    process.communicate(timeout=patient(60))
    assert process.returncode == status
    assert journal.exists() == (number == signal.SIGKILL)
    (shown,) = json.loads(hanok("assess", "show", str(tmp_path), "--json").stdout)
    known = shown["intervals"] - shown["gaps"]["cpu"]
    assert known >= before


def test_quick_parts_import_little(hanok: Hanok) -> None:
    found = imported(hanok, "assess", "--help")
    assert found & {"pydantic", "psutil", "asyncio", "rich", "hanok.assess"} == set()
