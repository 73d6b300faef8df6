"""``template`` and ``clone`` against recorded answers."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from hanok.cli.clone import summary
from hanok.cli.listing import spans
from tests.cli import recorded
from tests.cli.conftest import Hanok
from tests.cli.stand_in import Answer, StandIn, ndjson
from tests.cli.test_follow import on_terminal

HUNDRED = [f"web-{number}" for number in range(1, 101)]


def cloned(names: list[str], *steps: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """Return how a clone operation goes on, to its end with ``names``."""
    done = {"state": "done", "fraction": 1.0, "finished": 1790000008.3, "result": {"names": names}}
    going = [recorded.operation("clone", "base", **step) for step in steps]
    return [*going, recorded.operation("clone", "base", **{**done, **changes})]


def test_templates_are_listed(api: StandIn, hanok: Hanok) -> None:
    found = [
        recorded.template_view(clones=["web-1", "web-2"], created=1.6e9),
        recorded.template_view("warm-micro", owner="warm", size=0, created=1.6e9),
        recorded.template_view("shop-web", owner="stack", stack="shop", created=time.time()),
    ]
    api.on("GET", "templates", found)
    hanok.environ = {"COLUMNS": "80", "TZ": "UTC"}
    lines = hanok("template", "list").stdout.splitlines()
    assert " ".join(lines[0].split()) == (
        "NAME IMAGE VCPUS MEMORY MODE MADE FOR CLONES SIZE CREATED"
    )
    assert " ".join(lines[1].split()) == "base micro 1 256 MiB para you 2 50 MiB 2020-09-13"
    assert " ".join(lines[2].split()) == (
        "warm-micro micro 1 256 MiB para warm start 0 - 2020-09-13"
    )
    assert "stack shop" in lines[3]
    assert len(lines) == 4
    assert max(len(line) for line in lines) <= 80
    assert json.loads(hanok("template", "list", "--json").stdout) == found
    assert hanok("template", "ls").stdout == "\n".join(lines) + "\n"


def test_a_template_that_cannot_be_cloned_says_why(api: StandIn, hanok: Hanok) -> None:
    found = [
        recorded.template_view(),
        recorded.template_view("old", reason="QEMU was changed\x1b[2J since"),
        recorded.template_view("new", state="making"),
    ]
    api.on("GET", "templates", found)
    shown = hanok("template", "list").stdout
    assert shown.splitlines()[4:] == [
        "",
        "old is not instant:  QEMU was changed?[2J since",
        "new is not instant:  it is being made",
    ]


def test_no_templates_say_how_to_make_one(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "templates", [])
    assert "hanok template create base --from VM" in hanok("template", "list").stdout
    assert json.loads(hanok("template", "list", "--json").stdout) == []


def test_show_names_all_clones(api: StandIn, hanok: Hanok) -> None:
    clones = [*sorted(HUNDRED), "db", "odd\x1b[1mname"]
    api.on("GET", "templates/base", recorded.template_view(clones=clones, used=0))
    shown = hanok("template", "show", "base").stdout
    words = " ".join(shown.split())
    assert "clones 102: db, odd?[1mname, web-1 to web-100" in words
    assert "instant clones yes" in words
    assert "memory 256 MiB, of which 48 MiB in use" in words
    assert "made for you" in words
    assert "last cloned never" in words
    api.on("GET", "templates/old", recorded.template_view("old", reason="QEMU was changed"))
    assert "instant clones no: QEMU was changed" in " ".join(
        hanok("template", "show", "old").stdout.split()
    )


def test_names_that_make_no_run_are_folded(api: StandIn, hanok: Hanok) -> None:
    clones = [f"a-long-name-of-a-clone-{number}" for number in range(1, 80, 2)]
    api.on("GET", "templates/base", recorded.template_view(clones=clones))
    assert f"  40: {', '.join(clones)}\n" in hanok("template", "show", "base").stdout
    shown = on_terminal(hanok, "template", "show", "base").decode()
    # A pseudo-terminal without a size has the width of a pipe.
    assert max(len(re.sub(r"\x1b\[[0-9]+m", "", line)) for line in shown.splitlines()) <= 100
    assert re.findall(r"a-long-name-of-a-clone-[0-9]+", shown) == clones


def test_create_follows_and_says_what_to_try(api: StandIn, hanok: Hanok) -> None:
    going = recorded.operation("template", "base", message="saving its memory", fraction=0.4)
    done = recorded.operation("template", "base", state="done", message="made", fraction=1.0)
    api.on("POST", "templates", recorded.operation("template", "base"), status=202)
    api.stream("GET", "operations/op1/follow", ndjson(going, done))
    api.on("GET", "templates/base", recorded.template_view())
    made = hanok("template", "create", "base", "--from", "web")
    assert made.returncode == 0, made.stderr
    assert api.only("POST", "templates").json == {"name": "base", "source": "web"}
    assert made.stderr.splitlines() == ["template base: saving its memory", "template base: made"]
    assert made.stdout.splitlines() == [
        "base is made of web: 50 MiB on disk.",
        "Try: hanok clone base --count 3 --name base-{n}",
    ]
    as_json = hanok("template", "create", "base", "--from", "web", "--json")
    assert json.loads(as_json.stdout) == recorded.template_view()


def test_a_template_with_clones_is_not_deleted(api: StandIn, hanok: Hanok) -> None:
    told = recorded.problem(
        "conflict", 409, "base has clones: web-1, web-2", hint="delete them first"
    )
    api.on("DELETE", "templates/base", told, status=409)
    api.add("DELETE", "templates/old", Answer(204))
    api.on("GET", "templates", [recorded.template_view()])
    done = hanok("template", "delete", "base", "old")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["old is deleted"]
    assert done.stderr.splitlines() == [
        "error: base has clones: web-1, web-2",
        "  hint:     delete them first",
    ]
    as_json = hanok("template", "rm", "base", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stderr)["code"] == "conflict"
    assert json.loads(as_json.stdout) == [recorded.template_view()]


def test_few_clones_are_shown_one_by_one(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "clones", recorded.operation("clone", "base"), status=202)
    api.stream("GET", "operations/op1/follow", ndjson(*cloned(["web-2", "web-1"])))
    vms = [recorded.vm_view(name, ports=[]) for name in ("web-1", "web-2", "other")]
    api.on("GET", "vms", vms)
    options = ["--count", "2", "--name", "web-{n}", "--network", "a", "--network", "b"]
    done = hanok("clone", "base", *options)
    assert done.returncode == 0, done.stderr
    assert api.only("POST", "clones").json == {
        "template": "base",
        "name": "web-{n}",
        "count": 2,
        "networks": ["a", "b"],
    }
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["NAME", "web-2", "web-1"]
    assert lines[3:] == [
        "",
        "2 clones of base are ready, web-2, web-1, 8.3 s",
        "Try: hanok exec web-2 -- uname -a",
    ]
    assert json.loads(hanok("clone", "base", *options, "--json").stdout) == {
        "names": ["web-2", "web-1"]
    }


def test_many_clones_are_summed_up(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "clones", recorded.operation("clone", "base"), status=202)
    steps = [{"message": f"{n} of 100 ready", "fraction": n / 100} for n in range(101)]
    final = cloned(HUNDRED, *steps, message="100 of 100 ready")
    api.stream("GET", "operations/op1/follow", ndjson(*final))
    done = hanok("clone", "base", "--count", "100", "--name", "web-{n}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "100 clones of base are ready, web-1 to web-100, 8.3 s",
        "Try: hanok exec web-1 -- uname -a",
    ]
    assert [line.split()[2] for line in done.stderr.splitlines()] == [
        str(n) for n in range(0, 101, 10)
    ]
    assert not [asked for asked in api.asked if asked.target == "/v1/vms"]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("--linked", {"kind": "linked"}),
        ("--full --publish 8080:80", {"kind": "full", "publish": ["8080:80"]}),
        ("--first 0 --count 3", {"first": 0, "count": 3}),
        ("", {}),
    ],
)
def test_clone_sends_the_options_and_no_defaults(
    api: StandIn, hanok: Hanok, options: str, sent: dict[str, object]
) -> None:
    api.on("POST", "clones", recorded.operation("clone", "base"), status=202)
    done = hanok("clone", "base", "--name", "web", *options.split(), "--no-wait", "--json")
    assert json.loads(done.stdout) == recorded.operation("clone", "base")
    assert api.only("POST", "clones").json == {"template": "base", "name": "web", **sent}
    assert len(api.asked) == 1


def test_clones_that_failed_fail_the_command(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "clones", recorded.operation("clone", "base"), status=202)
    error = recorded.problem("not-ready", 502, "web-7 did not become ready", hint="none was kept")
    failed = recorded.operation("clone", "base", state="failed", error=error)
    api.stream("GET", "operations/op1/follow", ndjson(failed))
    done = hanok("clone", "base", "--count", "100", "--name", "web-{n}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: web-7 did not become ready",
        "  hint:     none was kept",
    ]
    told = recorded.problem("invalid-input", 422, "3 clones need {n} in the name", field="name")
    refused = StandIn(api.home)
    refused.on("POST", "clones", told, status=422)
    api.answers = refused.answers
    done = hanok("clone", "base", "--count", "3", "--name", "web")
    assert done.returncode == 2
    assert "3 clones need {n} in the name" in done.stderr


def test_a_template_can_be_one_that_is_not_there(api: StandIn, hanok: Hanok) -> None:
    assert hanok("template", "show", "gone").returncode == 1
    assert hanok("clone", "gone", "--name", "x").returncode == 1


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], []),
        (["a"], ["a"]),
        (["w-1", "w-2"], ["w-1", "w-2"]),
        (["w-1", "w-2", "w-3"], ["w-1 to w-3"]),
        (["w-8", "w-9", "w-10", "db", "w-12"], ["w-8 to w-10", "db", "w-12"]),
        (["w-08", "w-09", "w-10"], ["w-08", "w-09", "w-10"]),
        (["1", "2", "3"], ["1 to 3"]),
        (["w-3", "w-2", "w-1"], ["w-3", "w-2", "w-1"]),
        (["a-1", "b-2", "c-3"], ["a-1", "b-2", "c-3"]),
    ],
)
def test_runs_of_numbers_are_put_together(names: list[str], told: list[str]) -> None:
    assert spans(names) == told


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["web"], "1 clone of base is ready, web"),
        (HUNDRED, "100 clones of base are ready, web-1 to web-100"),
        ([f"n{n}-db" for n in range(1, 6)], "5 clones of base are ready, n1-db to n5-db"),
        (["a\x1b[2J"], "1 clone of base is ready, a?[2J"),
        ([], "0 clones of base are ready"),
    ],
)
def test_the_summary_of_clones(names: list[str], said: str) -> None:
    assert summary(names, "base") == said
