"""A folder of measured servers: read with errors that name file and field, written all or none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hanok.assess.folder import put_usage, read_usages, write_all
from hanok.assess.limits import LIMITS
from hanok.errors import Conflict, HostError, InvalidInput, NotFound
from hanok.model.usage import Metric, Usage

START = datetime(2026, 11, 29, tzinfo=UTC)


def usage(server: str, *cpu: float | None) -> Usage:
    """Return a server with these samples."""
    return Usage(server=server, start=START, interval=60, samples={Metric.CPU: cpu or (1.0,)})


def test_written_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "usage"
    wanted = [usage("a", 1, None, 0.25), usage("b")]
    assert list(write_all(folder, wanted)) == wanted
    assert read_usages(folder) == wanted
    assert sorted(path.name for path in folder.iterdir()) == ["a.usage.json", "b.usage.json"]


def test_packed_files_and_others(tmp_path: Path) -> None:
    data = usage("a").model_dump_json().encode()
    (tmp_path / "a.usage.json.gz").write_bytes(gzip.compress(data))
    (tmp_path / "README").write_text("not a server")
    assert read_usages(tmp_path) == [usage("a")]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("{", "a.usage.json"),
        ("[]", None),
        ("{}", "a.usage.json.server"),
        ('{"server": "b"}', "a.usage.json.start"),
        (usage("b").model_dump_json(), "a.usage.json.server"),
        (usage("a", 1, 2).model_dump_json().replace("2]", "-2]"), "a.usage.json.samples.cpu.1"),
        (usage("a", 1, 2).model_dump_json().replace("2]", "NaN]"), "a.usage.json.samples.cpu.1"),
        (usage("a").model_dump_json().replace("60", "-1"), "a.usage.json.interval"),
        (usage("a").model_dump_json().replace("cpu", "gpu"), "a.usage.json.samples.gpu"),
    ],
)
def test_what_is_wrong_names_file_and_field(
    tmp_path: Path, content: str, field: str | None
) -> None:
    (tmp_path / "a.usage.json").write_text(content)
    with pytest.raises(InvalidInput) as caught:
        read_usages(tmp_path)
    assert caught.value.field == (field or "a.usage.json")


def test_a_server_that_is_there_twice(tmp_path: Path) -> None:
    put_usage(tmp_path, usage("a"))
    (tmp_path / "a.usage.json.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InvalidInput) as caught:
        read_usages(tmp_path)
    assert caught.value.field == "a.usage.json.gz"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing measured"):
        read_usages(tmp_path)
    with pytest.raises(NotFound, match="no folder"):
        read_usages(tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput):
        read_usages(tmp_path / "file")


def test_more_than_is_read_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_usage(tmp_path, usage(name, *[1.0] * 10))
    with pytest.raises(InvalidInput, match="too much"):
        read_usages(tmp_path, replace(LIMITS, folder_values=19))
    with pytest.raises(InvalidInput, match="too many files"):
        read_usages(tmp_path, replace(LIMITS, files=1))
    with pytest.raises(InvalidInput, match="too large"):
        read_usages(tmp_path, replace(LIMITS, usage_bytes=20))


def test_names_that_lead_out_of_the_folder_are_never_written(tmp_path: Path) -> None:
    data = json.loads(usage("a").model_dump_json())
    (tmp_path / "a.usage.json").write_text(json.dumps({**data, "server": "../b"}))
    with pytest.raises(InvalidInput) as caught:
        read_usages(tmp_path)
    assert caught.value.field == "a.usage.json.server"


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    put_usage(tmp_path, usage("b", 1))
    (tmp_path / "c.usage.json.gz").write_bytes(gzip.compress(usage("c").model_dump_json().encode()))
    for server in ("b", "c"):
        with pytest.raises(Conflict, match="is there already"):
            list(write_all(tmp_path, [usage("a"), usage(server, 2)]))
    assert [one.server for one in read_usages(tmp_path)] == ["b", "c"]
    list(write_all(tmp_path, [usage("b", 2), usage("c", 2)], replace=True))
    assert [one.samples[Metric.CPU] for one in read_usages(tmp_path)] == [(2.0,), (2.0,)]


def test_all_or_none(tmp_path: Path) -> None:
    def failing() -> Iterator[Usage]:
        yield usage("a")
        raise InvalidInput("b is wrong")

    with pytest.raises(InvalidInput):
        list(write_all(tmp_path, failing()))
    assert list(tmp_path.iterdir()) == []


def test_what_a_collector_writes_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.usage.journal").touch()
    with pytest.raises(Conflict, match="a collector writes"):
        list(write_all(tmp_path, [usage("a")], replace=True))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError):
        list(write_all(tmp_path / "file", [usage("a")]))
