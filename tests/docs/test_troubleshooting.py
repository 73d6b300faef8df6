"""The page on troubleshooting has a section for each stable code, and none for another."""

from __future__ import annotations

import re
from pathlib import Path

from hanok.errors import all_error_types

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"


def sections() -> dict[str, str]:
    """Return the text of each section by its title."""
    _, *parts = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


def test_each_code_has_a_section_and_each_section_is_a_code() -> None:
    assert sorted(sections()) == sorted(all_error_types())


def test_each_section_says_something() -> None:
    assert [title for title, text in sections().items() if len(text.split()) < 20] == []
