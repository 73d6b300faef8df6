"""Console sessions in pages: what was typed and what it printed.

A block of the kind ``console`` is run: each ``$ `` begins a command, what follows up to the next
one is what it printed. A block after ``<!-- file: NAME -->`` is written to that file first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_BLOCK = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)
# What differs from one run, or from one host, to the next; the longest first.
_VOLATILE = (
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
    (r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b", "MAC"),
    (r"\b[0-9a-f]{12,16}\b", "ID"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "MOMENT"),
    (r"\b[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d UTC \d{4}\b", "MOMENT"),
    (r"\b10\.\d+\.\d+\.\d+\b", "ADDRESS"),
    (r"\bpid \d+", "pid N"),
    (r"\b\d+\.\d+\.\d+-\d+(-cloud)?-amd64 .*", "KERNEL"),
    (r"\b\d+\.\d+\.\d+-\d+(-cloud)?-amd64\b", "KERNEL"),
    (r"\b\d+(?:\.\d+)? [KMGT]iB\b(?= of memory| on disk| is free| is missing)", "SIZE"),
    (r"; \d+(?:\.\d+)? [KMGT]iB resident", "; SIZE resident"),
    (r"\b\d+ MiB(?= fits|$)", "SIZE"),
    (r"\b\d+\.\d+ s\b", "SECONDS"),
    (r"\bqemu/(tcg|kvm)\b", "qemu/ACCELERATOR"),
    (r"\bpc-q35-\d+\.\d+\b", "MACHINE"),
    (r"\bisolation \S+", "isolation I"),
    (r"^limits .*$", "limits L"),
    (r"^( *clocksource:) .*$", r"\1 C"),
    (r" overhead\)", ")"),
)


@dataclass(frozen=True)
class Step:
    """One command and what it prints; or a file (``name``) and its text. ``start``: offsets."""

    command: str
    output: str
    start: int
    end: int
    is_file: bool = False


def steps(page: str) -> Iterator[Step]:
    """Return the files and commands of ``page`` in order, with where each output lies in it."""
    for block in _BLOCK.finditer(page):
        if block["file"]:
            yield Step(block["file"], block["body"], block.start("body"), block.end("body"), True)
        elif block["kind"] == "console":
            yield from _commands(block["body"], block.start("body"))


def _commands(body: str, at: int) -> Iterator[Step]:
    assert body.startswith("$ "), f"a console block begins with a command: {body[:40]!r}"
    for part in re.split(r"^(?=\$ )", body, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        begin = at + len(command) + 1
        yield Step(command.removeprefix("$ "), output, begin, at + len(part))
        at += len(part)


def normal(text: str) -> str:
    """Return ``text`` with what is volatile named, and columns without their widths."""
    lines = []
    for line in text.strip().splitlines():
        for pattern, name in _VOLATILE:
            line = re.sub(pattern, name, line)
        lines.append(re.sub(r"\s+", " ", line).strip())
    return "\n".join(lines)


def replayed(page: str, run: Callable[[Step], str]) -> str:
    """Run all steps of ``page`` and return it with what they printed now."""
    pieces, last = [], 0
    for step in steps(page):
        printed = run(step)
        pieces += [page[last : step.start], step.output if step.is_file else printed]
        last = step.end
    return "".join([*pieces, page[last:]])
