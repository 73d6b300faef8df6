"""``hanok assess``: what servers use, measured here or read from what others measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from hanok.cli.base import Lazy, LazyGroup
from hanok.errors import InvalidInput

if TYPE_CHECKING:
    from hanok.model.usage import Usage

_DURATION = re.compile(r"(\d{1,9})([smhdw]?)", re.A)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group(
    "assess",
    cls=LazyGroup,
    sections={
        "Commands": {
            "collect": Lazy("assess_collect", "collect", "Measure this machine into a file."),
            "import": Lazy("assess_import", "import_", "Read what others have measured."),
            "show": Lazy("assess_show", "show", "Show measured servers in a table."),
        }
    },
    examples=(
        "hanok assess collect --for 24h --out usage",
        "hanok assess import sa01.json sa02.json --out usage",
        "hanok assess show usage",
    ),
)
def assess() -> None:
    """Find out what servers use, before they become VMs.

    A folder of measured servers, NAME.usage.json each, is what a plan starts from. No daemon is
    needed, nor root.
    """


def parse_duration(text: str, field: str) -> int:
    """Return the seconds that ``text`` (``10s``, ``5m``, ``24h``, ``30d``, ``2w``) stands for.

    Raises InvalidInput naming ``field``.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = 0 if match is None else int(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= 100 * 366 * 86400:
        raise InvalidInput(
            f"{text[:40]!r} is no time",
            field=field,
            expected="a number with s, m, h, d or w, such as 10s or 24h",
        )
    return seconds


def span(seconds: float) -> str:
    """Return a duration for people: ``300 s``, ``5.5 h``, ``30 d``."""
    for factor, unit in ((86400, "d"), (3600, "h")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:g} s"


def findings_of(usage: Usage) -> list[Mapping[str, Any]]:
    """Return the findings about a server for JSON."""
    return [finding.model_dump() for finding in usage.findings]
