"""Reads an xl.cfg back as xl does, for tests: by the grammar of libxlu_cfg, not by our own code."""

from __future__ import annotations

import re

_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LINE = re.compile(r"([A-Za-z0-9_.]+)[ \t]*=[ \t]*(.*)")


def parse(text: str) -> list[tuple[str, str | int | list[str]]]:
    """Return keys and values in their order; a key may come twice."""
    return [_setting(line) for line in text.split("\n") if line]


def _setting(line: str) -> tuple[str, str | int | list[str]]:
    match = _LINE.fullmatch(line)
    assert match is not None, line
    key, value = match.groups()
    if value.startswith("["):
        assert value.endswith("]")
        return key, _items(value[1:-1].strip())
    if value.startswith('"'):
        assert _STRING.fullmatch(value), value
        return key, _unquote(value)
    return key, int(value)


def _items(text: str) -> list[str]:
    found = []
    while text:
        match = _STRING.match(text)
        assert match is not None, text
        found.append(_unquote(match[0]))
        text = text[match.end() :]
        assert text == "" or text.startswith(", ")
        text = text[2:]
    return found


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _escaped(match[1]), text[1:-1])


def _escaped(char: str) -> str:
    assert char in "\"'\\", f"an escape with another meaning: {char!r}"
    return char


def disk_fields(text: str) -> dict[str, str]:
    """Return the fields of a disk by the grammar of libxlu_disk: ``target`` takes all the rest."""
    found: dict[str, str] = {}
    while text:
        key, _, rest = text.partition("=")
        if key == "target":
            return {**found, key: rest.removesuffix(",")}
        found[key], _, text = rest.partition(",")
    return found


def split_fields(text: str) -> dict[str, str]:
    """Return the fields of a card or a channel, which are split at commas."""
    return dict(part.split("=", 1) for part in text.split(","))
