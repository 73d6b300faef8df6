"""``hanok plan`` on a small fleet of files: what it prints, writes and refuses."""

from __future__ import annotations

import gzip
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hanok.cli import planwork
from hanok.cli.base import Session
from hanok.errors import HostError
from tests.cli.conftest import Hanok
from tests.consolidation.fleets import usage

SERVERS = """\
servers:
  a: {group: db}
  b: {group: db}
  c: {}
rules:
  headroom: {reserve: 0.1}
  apart: [[db]]
"""
HOSTS = """\
kinds:
  small: {cores: 8, memory: 32G, price: 4000}
offers: [small]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "servers.yaml").write_text(SERVERS)
    (tmp_path / "hosts.yaml").write_text(HOSTS)
    usages = tmp_path / "usage"
    usages.mkdir()
    for name in "abc":
        text = usage(name, [1.0, 2.0] * 24, [2e9] * 48).model_dump_json()
        (usages / f"{name}.usage.json.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def plan(hanok: Hanok, folder: Path, *words: str) -> Any:
    given = ("--usage", "usage", "--hosts", "hosts.yaml", "--effort", "1")
    return hanok("plan", "servers.yaml", *given, *words, cwd=folder)


def test_a_plan_is_printed_written_shown_and_checked(hanok: Hanok, folder: Path) -> None:
    done = plan(hanok, folder, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "3 servers fit on 2 hosts" in done.stdout
    assert "gap 0.0%" in done.stdout
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == ["plan.json", "report.html", "report.pdf"]
    written = json.loads((folder / "out/plan.json").read_text())
    assert written["inputs"]["servers"] == "../servers.yaml"
    assert len({vm["host"] for vm in written["vms"] if vm["name"] in "ab"}) == 2

    shown = hanok("plan", "show", "out", "a", cwd=folder)
    assert "apart from b (rules.apart.0)" in shown.stdout
    assert "why this size" in shown.stdout
    host = hanok("plan", "show", "out", "small-1", "--json", cwd=folder)
    assert json.loads(host.stdout)["kind"] == "small"
    missing = hanok("plan", "show", "out", "small-9", cwd=folder)
    assert missing.returncode == 1
    assert "did you mean 'small-" in missing.stderr

    good = hanok("plan", "check-rules", "out", cwd=folder)
    assert (good.returncode, good.stdout) == (0, "The plan keeps every rule.\n")
    for vm in written["vms"]:
        vm["host"] = "small-1"
    (folder / "out/plan.json").write_text(json.dumps(written))
    bad = hanok("plan", "check-rules", "out", "--json", cwd=folder)
    assert bad.returncode == 1
    assert "apart" in {fault["rule"] for fault in json.loads(bad.stdout)}


def test_the_same_input_gives_the_same_json(hanok: Hanok, folder: Path) -> None:
    first, second = (plan(hanok, folder, "--json") for _ in range(2))
    assert first.stdout == second.stdout
    assert json.loads(first.stdout)["search"]["reproducible"] is True
    assert first.stderr == ""


def test_plans_side_by_side(hanok: Hanok, folder: Path) -> None:
    assert plan(hanok, folder, "--out", "out").returncode == 0
    words = ("--case", "load=2", "--case", "hosts=-1", "--case", "failures=1")
    done = hanok("plan", "what-if", "out", *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    cases = {case["name"]: case for case in json.loads(done.stdout)}
    assert list(cases) == ["as planned", "load=2", "hosts=-1", "failures=1"]
    assert cases["as planned"]["hosts"] == 2
    assert cases["load=2"]["hosts"] >= 2
    assert cases["hosts=-1"]["hosts"] is None
    assert "impossible" in cases["hosts=-1"]["note"]
    assert cases["failures=1"]["spares"] == 1
    table = hanok("plan", "compare", "out", "out/plan.json", cwd=folder)
    assert table.returncode == 0
    assert "CASE" in table.stdout
    assert hanok("plan", "compare", "out", cwd=folder).returncode == 2
    assert hanok("plan", "what-if", "out", "--case", "x", cwd=folder).returncode == 2


def test_plans_made_by_hand_are_judged(hanok: Hanok, folder: Path) -> None:
    hand = folder / "mine.yaml"
    hand.write_text(
        "assignment: {a: small-1, b: small-2, c: {host: small-2, memory: 4G}}\n"
        "buy: {small-1: {kind: small}, small-2: {kind: small}}\n"
    )
    words = ("--servers", "servers.yaml", "--usage", "usage", "--hosts", "hosts.yaml")
    good = hanok("plan", "check-rules", "mine.yaml", *words, cwd=folder)
    assert good.returncode == 0, good.stdout + good.stderr
    nameless = hanok("plan", "check-rules", "mine.yaml", cwd=folder)
    assert nameless.returncode == 2
    assert "--servers" in nameless.stderr
    hand.write_text("assignment:\n  a: smal-1\nbuy: {small-1: {kind: small}}\n")
    wrong = hanok("plan", "check-rules", "mine.yaml", *words, cwd=folder)
    assert wrong.returncode == 2
    assert "mine.yaml:2: there is no host 'smal-1'" in wrong.stderr
    assert "did you mean 'small-1'?" in wrong.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("servers.yaml", "group", "gruop", ["servers.yaml:2", "servers.a.gruop", "mean 'group'"]),
        ("servers.yaml", "[[db]]", "[[dbs]]", ["servers.yaml:7", "rules.apart.0", "mean 'db'"]),
        ("servers.yaml", "reserve: 0.1", "reserve: 2", ["servers.yaml:6", "less than 1"]),
        ("hosts.yaml", "[small]", "[smal]", ["hosts.yaml:3", "offers.0", "mean 'small'"]),
        ("hosts.yaml", "offers: [small]", "", ["hosts.yaml", "at_hand or offers"]),
        ("hosts.yaml", "price: 4000", "watts: [1, 2]", ["hosts.yaml:2", "kinds.small.watts"]),
        ("hosts.yaml", "32G", "32X", ["kinds.small.memory", "such as 512M or 4G"]),
    ],
)
def test_errors_name_the_file_the_line_and_the_field(
    hanok: Hanok, folder: Path, file: str, old: str, new: str, told: list[str]
) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    done = plan(hanok, folder)
    assert done.returncode == 2
    for text in told:
        assert text in done.stderr


def test_the_least_money_needs_prices(hanok: Hanok, folder: Path) -> None:
    path = folder / "hosts.yaml"
    path.write_text(path.read_text().replace(", price: 4000", ""))
    done = plan(hanok, folder, "--objective", "money")
    assert done.returncode == 2
    assert "hosts.yaml:2: nothing says what a small costs" in done.stderr


def test_an_impossible_input_gets_its_causes(hanok: Hanok, folder: Path) -> None:
    path = folder / "servers.yaml"
    path.write_text(path.read_text() + "  together: [[a, c], [c, b]]\n")
    done = plan(hanok, folder, "--json")
    assert done.returncode == 1
    (cause,) = json.loads(done.stderr)["causes"]
    assert cause["parts"] == ["rules.together.0", "rules.together.1", "rules.apart.0"]


def test_ctrl_c_gives_the_best_so_far(hanok: Hanok, folder: Path) -> None:
    """A fleet whose bound is out of reach, and more effort than a test has time."""
    servers = ["servers:"]
    for number in range(12):
        name = f"n{number}"
        servers.append(f"  {name}: {{}}")
        text = usage(name, [3.0] * 48, [1e9] * 48).model_dump_json()
        (folder / f"usage/{name}.usage.json").write_text(text)
    (folder / "servers.yaml").write_text("\n".join([*servers, "rules: {headroom: {reserve: 0}}"]))
    (folder / "hosts.yaml").write_text(HOSTS.replace("cores: 8", "cores: 8, overhead: {cores: 0}"))
    files = (str(folder / "servers.yaml"), "--usage", str(folder / "usage"))
    words = ("--hosts", str(folder / "hosts.yaml"), "--effort", "1000000")
    running = hanok.popen("plan", *files, *words, "--out", str(folder / "out"))
    assert running.stderr is not None
    for line in running.stderr:
        if b"Ctrl-C stops with the best" in line:
            running.send_signal(signal.SIGINT)
            break
    out, told = running.communicate(timeout=120)
    assert running.returncode == 0, told
    assert b"Stopping with the best plan so far" in told
    assert b"(stopped early)" in out
    found = json.loads((folder / "out/plan.json").read_text())["search"]
    assert (found["stopped"], found["reproducible"]) == (True, False)


def test_ctrl_c_is_answered_by_the_search_and_not_by_its_handler() -> None:
    """It may have come in the middle of a line that is being written."""
    lines: list[str] = []
    session = cast(Session, SimpleNamespace(out=SimpleNamespace(note=lines.append)))
    with planwork.stoppable(session) as stop:
        assert not stop.heed()
        signal.raise_signal(signal.SIGINT)
        assert lines == []
        assert stop.heed()
        assert stop.heed()
        assert len(lines) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_missing_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(HostError, match="numba") as caught:
        planwork.require_extra()
    assert "hanok[plan]" in (caught.value.hint or "")
