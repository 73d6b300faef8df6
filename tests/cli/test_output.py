"""Tables, errors and what guests may print, as pure functions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.cli.logs import terminal_safe
from hanok.cli.output import Cell, Output, draw_table, printable
from hanok.errors import InvalidInput, NotFound


def lines(titles: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> list[str]:
    return ["  ".join(cell.text for cell in row) for row in draw_table(titles, rows, width)]


def test_a_table_is_as_wide_as_its_content() -> None:
    assert lines(("NAME", ">SIZE"), [("web", "512 MiB"), ("database", "1 GiB")], 100) == [
        "NAME         SIZE",
        "web       512 MiB",
        "database    1 GiB",
    ]


def test_long_cells_are_folded_and_nothing_is_lost() -> None:
    ports = ", ".join(f"{port}:{port}" for port in range(8080, 8100))
    shown = lines(("NAME", "PORTS"), [("web", ports)], 60)
    assert max(len(line) for line in shown) <= 60
    assert "".join(line[6:] for line in shown[1:]).replace(" ", "") == ports.replace(" ", "")


@settings(deadline=None)  # a busy machine is no error
@given(
    st.lists(st.tuples(*[st.text(alphabet="ab ,-", max_size=80)] * 3), max_size=5),
    st.integers(min_value=40, max_value=120),
)
def test_tables_fit_their_width(rows: list[tuple[str, ...]], width: int) -> None:
    shown = lines(("ONE", "TWO", ">THREE"), rows, width)
    assert all(len(line) <= width for line in shown)
    for row in rows:
        for cell in row:
            for letter in "ab-":
                assert sum(line.count(letter) for line in shown) >= cell.count(letter)


def test_control_characters_of_guests_are_taken_out() -> None:
    assert printable("ok\x1b[2Jgone\x07\x9b1m") == "ok?[2Jgone??1m"
    assert draw_table(("A",), [(Cell("x\x1by\nz"),)], 80)[1][0].text == "x?y z"


def test_a_line_shows_what_a_host_says_and_does_not_obey_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A remote host chooses its version, names and paths: half a character, or a turned one."""
    out = Output()
    said = "9\x1b]0;title\x07\ud800\u202ereversed"
    out.line(said)
    out.note(said)
    out.pairs([("answers", said)])
    found = capfd.readouterr()
    shown = "9?]0;title???reversed"
    assert found.out == f"{shown}\nanswers  {shown}\n"
    assert found.err == f"{shown}\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain text\twith tab", "plain text\twith tab"),
        ("[\x1b[0;32m  OK  \x1b[0m] Started", "[\x1b[0;32m  OK  \x1b[0m] Started\x1b[0m"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1bP+q544e\x1b\\b", "ab"),
        ("a\x1b[6nb\x9b6n", "ab?6n"),
        ("a\x1b", "a?"),
    ],
)
def test_logs_on_a_terminal_keep_colours_only(line: str, shown: str) -> None:
    assert terminal_safe(line) == shown


def test_an_error_tells_field_expected_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = InvalidInput("no size", field="memory", expected="such as 512M", hint="try again")
    Output().error(error, place="shop.yaml:3")
    assert capsys.readouterr().err.splitlines() == [
        "error: shop.yaml:3: no size",
        "  field:    memory",
        "  expected: such as 512M",
        "  hint:     try again",
    ]


def test_an_error_for_programs_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.as_json = True
    out.error(NotFound("no VM 'x'"))
    captured = capsys.readouterr()
    assert captured.out == ""
    found = json.loads(captured.err)
    assert (found["code"], found["status"], found["detail"]) == ("not-found", 404, "no VM 'x'")


def test_columns_are_folded_between_words_first() -> None:
    rows: list[tuple[str, ...]] = [
        ("a-name-of-one-word", "some words that fold well"),
        ("b", "-"),
    ]
    assert lines(("NAME", "WORDS"), rows, 36) == [
        "NAME                WORDS           ",
        "a-name-of-one-word  some words that ",
        "                    fold well       ",
        "b                   -               ",
    ]
