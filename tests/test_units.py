"""Sizes: what people write, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import InvalidInput
from hanok.units import GIB, KIB, MIB, TIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (4096, 4096),
        ("65536B", 65536),
        ("1k", KIB),
        ("512M", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("512mb", 512 * MIB),
        (" 4G ", 4 * GIB),
        ("1.5G", GIB + 512 * MIB),
        ("2T", 2 * TIB),
        ("8192T", 8192 * TIB),
    ],
)
def test_what_people_write(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "M", "lots", "-1M", "1.M", "0", 0, -5, "0.0001K", "1e3", "5P", "8193T", "1_000"),
        *("\u0663M", "1M\x00", "1 2M", True, "9" * 400),
    ],
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_size(text, field="memory")
    assert caught.value.field == "memory"
    assert "512M" in (caught.value.expected or "")
    assert len(caught.value.message) < 80


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_size(text)
    except InvalidInput:
        return
    assert 1 <= size <= 8192 * TIB


@given(st.integers(1, 8192 * TIB))
def test_formatted_sizes_parse_to_about_the_same(size: int) -> None:
    again = parse_size(format_size(size))
    assert abs(again - size) <= size * 0.05


@given(st.sampled_from([1, KIB, MIB, GIB, TIB]), st.integers(1, 1023))
def test_whole_sizes_come_back_exactly(factor: int, number: int) -> None:
    assert parse_size(format_size(number * factor)) == number * factor
