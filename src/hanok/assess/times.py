"""Times as people's tools write them, as seconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from hanok.assess.findings import Notes
from hanok.errors import InvalidInput
from hanok.model.validation import shown

EARLIEST = datetime(1991, 1, 1, tzinfo=UTC).timestamp()
LATEST = datetime(2199, 1, 1, tzinfo=UTC).timestamp()
MAX_LENGTH = 300 * 86_400.0  # seconds that one sample can be about
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{1,12})?", re.A)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)", re.A)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}", re.A)
_LONGEST = 40
# Seconds, and thousandths, millionths and milliardths of them; the years 1991 to 2198 in any of
# them are no year in another.
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
TIME_UNITS = ("iso", *(f"unix-{unit}" for unit in _TICKS))


def parse_zone(text: str) -> tzinfo:
    """Return the time zone ``Europe/Berlin``, ``UTC`` or ``+09:00``. Raises InvalidInput."""
    if match := _OFFSET.fullmatch(text):
        hours, minutes = int(match[2]), int(match[3])
        if hours < 24 and minutes < 60:
            offset = timedelta(hours=hours, minutes=minutes)
            return timezone(-offset if match[1] == "-" else offset)
    elif _ZONE.fullmatch(text):
        if text.upper() in ("UTC", "Z"):
            return UTC
        try:
            return ZoneInfo(text)
        except (KeyError, ValueError, OSError):
            pass  # told below, as every other text that is none
    raise InvalidInput(
        f"{shown(text)} is no time zone that this machine knows",
        field="--zone",
        expected="a name such as Europe/Berlin, or an offset such as +09:00",
        hint="names need the package tzdata",
    )


class Times:
    """Reads the times of one server's samples, which mostly go forward.

    ``zone`` is that of times that have none; None: nobody named one, and UTC is taken. In the hour
    that a zone has twice a year, a time that would go back is taken as the second one.
    """

    def __init__(self, zone: tzinfo | None, notes: Notes) -> None:
        self._zone = zone
        self._notes = notes
        self._before = float("-inf")

    def local(self, naive: datetime) -> float:
        """Return a time without a zone in seconds since 1970."""
        if self._zone is None:
            self._notes.add("no-zone", "times without a time zone, and no --zone: taken as UTC")
        zone = self._zone or UTC
        first = naive.replace(tzinfo=zone, fold=0)
        second = first.replace(fold=1)
        moment = first.timestamp()
        if first.utcoffset() != second.utcoffset():
            moment = self._choose(naive, zone, moment, second.timestamp())
        self._before = moment
        return moment

    def _choose(self, naive: datetime, zone: tzinfo, first: float, second: float) -> float:
        if datetime.fromtimestamp(first, zone).replace(tzinfo=None, fold=0) != naive.replace(
            fold=0
        ):
            self._notes.add("no-such-time", f"{naive} was skipped by the clocks there: moved")
            return first
        self._notes.add("twice-a-year", f"{naive} is there twice, in summer time and after it")
        return second if first <= self._before else first

    def parse(self, text: str, unit: str | None) -> float | None:
        """Return the seconds since 1970 of ``text`` in one of TIME_UNITS, or None if it is no time.

        Without a unit it is told from the text: numbers by their size.
        """
        text = text.strip()
        if len(text) > _LONGEST:
            return None
        if unit == "iso" or (unit is None and _NUMBER.fullmatch(text) is None):
            return self._parse_iso(text)
        if _NUMBER.fullmatch(text) is None:
            return None
        return self._parse_number(float(text), None if unit is None else unit.removeprefix("unix-"))

    def _parse_number(self, number: float, unit: str | None) -> float | None:
        right = next((one for one, ticks in _TICKS.items() if is_sane(number / ticks)), None)
        if right is None:
            return None
        if unit is not None and unit != right:
            self._notes.add("wrong-time-unit", f"times in {unit} are in {right}: read so")
        return number / _TICKS[right]

    def _parse_iso(self, text: str) -> float | None:
        try:
            moment = datetime.fromisoformat(text.replace("/", "-"))
            seconds = self.local(moment) if moment.tzinfo is None else moment.timestamp()
        except (ValueError, OverflowError):
            return None
        return seconds if is_sane(seconds) else None


def is_sane(seconds: float) -> bool:
    return EARLIEST <= seconds < LATEST
