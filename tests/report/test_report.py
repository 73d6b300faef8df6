"""The report says the same as HTML and as PDF, loads nothing, and trusts no text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from hanok.cli.output import Output
from hanok.cli.planprint import print_one, print_plan
from hanok.consolidation.offers import Effort
from hanok.consolidation.outcome import make_plan_file
from hanok.consolidation.whatif import solve
from hanok.model.plan import Inputs, PlanFile, Search
from hanok.report.content import Report, make_report
from hanok.report.html import to_html
from hanok.report.pdf import to_pdf
from tests.consolidation.fleets import fleet, usage
from tests.consolidation.test_plans import traffic_plan

HOSTILE = "<script>alert(1)</script> & 'more' $x^2$ "


@pytest.fixture(scope="module")
def plan() -> PlanFile:
    usages = [usage(f"s{n}", [float(n)] * 48, [1e9] * 48) for n in range(8)]
    found = fleet(usages, rules={"failures": 1})
    choice = solve(found, Effort(1_000), "hosts")
    file = make_plan_file(found, choice, Inputs(servers="x"), Search(effort=1))
    first = file.vms[0].model_copy(update={"why_here": HOSTILE})
    return file.model_copy(
        update={"vms": (first, *file.vms[1:]), "findings": (HOSTILE,), "assumptions": (HOSTILE,)}
    )


@pytest.fixture(scope="module")
def report(plan: PlanFile) -> Report:
    return make_report(plan)


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action")]


def test_the_page_loads_nothing_and_runs_nothing(report: Report) -> None:
    text = to_html(report)
    seen = _Seen()
    seen.feed(text)
    assert "script" not in seen.tags
    assert all(link.startswith("#") for link in seen.links)
    assert not re.search(r"url\((?!#)", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert seen.tags.count("svg") >= 3


def test_all_that_the_page_says_is_there(plan: PlanFile, report: Report) -> None:
    text = to_html(report)
    for vm in plan.vms:
        assert f"<td>{vm.name}</td>" in text
    for host in plan.hosts:
        assert host.name in text
    assert plan.bound.reason.split(",")[0] in text
    titles = [section.title for section in report.sections]
    assert titles == [
        "Before and after",
        "How far from perfect",
        "Hosts",
        "Forecast of a day",
        "Virtual machines",
        "What was assumed",
        "What to look at",
    ]


def test_the_same_plan_gives_the_same_files(plan: PlanFile) -> None:
    first, second = (make_report(plan) for _ in range(2))
    assert to_html(first) == to_html(second)
    pdf = to_pdf(first)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") >= 2
    assert pdf == to_pdf(second)


def test_traffic_has_columns_and_forecasts_where_hosts_limit_it(plan: PlanFile) -> None:
    _, file = traffic_plan()
    found = make_report(file)
    titles = [section.title for section in found.sections]
    assert "Forecast of disk traffic" in titles
    table = next(section.table for section in found.sections if section.title == "Hosts")
    assert table is not None
    assert "disk traffic" in table.titles
    assert all(len(row) == len(table.titles) == len(table.widths) for row in table.rows)
    assert "disk io over a day" in to_html(found)
    assert to_pdf(found).startswith(b"%PDF")
    assert "Forecast of disk traffic" not in [one.title for one in make_report(plan).sections]


def test_the_terminal_has_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    _, file = traffic_plan()
    out = Output()
    print_plan(out, file)
    print_one(out, file, file.used[0])
    text = capsys.readouterr().out
    assert "DISK I/O" in text
    assert "up to 44 MiB/s of 50 MiB/s" in text
