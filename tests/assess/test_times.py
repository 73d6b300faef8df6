"""Times as tools write them, and the two hours a year that are not what they seem."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.assess.findings import Notes
from hanok.assess.times import Times, parse_zone
from hanok.errors import InvalidInput

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29T12:00:00Z",
        "2026-11-29 12:00:00.000Z",
        "2026/11/29 21:00:00+09:00",
        "1795953600",
        "1795953600000",
        "1795953600000000",
        "1795953600000000000",
        "1795953600.0",
        " 2026-11-29T12:00:00 ",
    ],
)
def test_what_is_read(text: str) -> None:
    assert Times(None, Notes()).parse(text, None) == NOON


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "0",
        "-1",
        "1e308",
        "nan",
        "9" * 41,
        "2026-13-01",
        "=NOW()",
        "\u0661" * 10,
    ],
)
@pytest.mark.parametrize("unit", [None, "iso", "unix-s"])
def test_what_is_none(text: str, unit: str | None) -> None:
    assert Times(None, Notes()).parse(text, unit) is None


def test_a_unit_that_cannot_be_is_told_and_the_right_one_taken() -> None:
    notes = Notes()
    assert Times(None, notes).parse("1376314846", "unix-ms") == 1376314846
    assert notes.count("wrong-time-unit") == 1


def test_without_a_zone_it_is_utc_and_told() -> None:
    notes = Notes()
    assert Times(None, notes).parse("2026-11-29 12:00", None) == NOON
    assert notes.count("no-zone") == 1
    assert Times(BERLIN, notes).parse("2026-11-29 13:00", None) == NOON
    assert notes.count("no-zone") == 1


def test_the_hour_that_comes_twice_goes_on() -> None:
    notes = Notes()
    clock = Times(BERLIN, notes)
    begin = datetime(2026, 10, 24, 23, 30, tzinfo=UTC).timestamp()
    for at in range(8):  # 01:30 to 03:00 there, 02:00 to 02:59 twice
        moment = begin + at * 1800
        local = datetime.fromtimestamp(moment, BERLIN).replace(tzinfo=None)
        assert clock.local(local) == moment
    assert notes.count("twice-a-year") == 4


def test_the_hour_that_is_skipped_is_told() -> None:
    notes = Notes()
    Times(BERLIN, notes).parse("2026-03-29 02:30", None)
    assert notes.count("no-such-time") == 1


@given(
    st.datetimes(datetime(1991, 1, 2), datetime(2100, 1, 1)), st.sampled_from(["+09:00", "-0330"])
)
def test_offsets(moment: datetime, zone: str) -> None:
    found = Times(parse_zone(zone), Notes()).parse(moment.isoformat(), None)
    assert found == moment.replace(tzinfo=parse_zone(zone)).timestamp()


@pytest.mark.parametrize("text", ["", "Mars/Olympus", "../../etc/passwd", "/etc/hosts", "+99:00"])
def test_no_zone(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_zone(text)
    assert caught.value.field == "--zone"
