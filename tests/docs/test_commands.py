"""Commands in the pages are commands that there are, with options that there are."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hanok.cli.main import cli
from hanok.cli.plan import PlanGroup

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.M | re.S)
_CODE = re.compile(r"`([^`\n]+)`")
_CALL = re.compile(r"(?:^|\| |&& |; )(?:sudo )?(?:\$hanok|\S*bin/hanok|hanok) (.+)$")


def calls(page: Path) -> Iterator[list[str]]:
    """Return the arguments of each call of ``hanok`` in the blocks and the code of a page."""
    text = page.read_text()
    for block in [*_FENCE.findall(text), *_CODE.findall(_FENCE.sub("", text))]:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            typed = re.sub(r"^\s*(\$ )?([A-Z_]+=\S+ )*", "", line)
            if found := _CALL.search(typed):
                yield words(found[1])


def words(text: str) -> list[str]:
    """Return the words of one call: up to a comment, a pipe or a redirection of the shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    return list(itertools.takewhile(lambda word: not word or word.strip("|<>;&"), lexer))


def complaint(args: list[str]) -> str | None:
    """Return what click says of a call that no such command or option exists, if it does."""
    command: click.Command = cli
    context = click.Context(cli, info_name="hanok")
    try:
        while isinstance(command, click.Group):
            _, args, _ = command.make_parser(context).parse_args(args)
            if not args:
                return None  # help of a group, or its options alone
            if isinstance(command, PlanGroup) and args[0] not in command.known:
                args = ["make", *args]
            name, found, args = command.resolve_command(context, args)
            assert found is not None
            command, context = found, click.Context(found, info_name=name, parent=context)
        if "--" in args:
            args = args[: args.index("--")]
        command.make_parser(context).parse_args(args)
    except click.BadOptionUsage:
        return None  # prose that names an option without a value
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    found = [args for args in calls(page) if not {"...", "[OPTIONS]"} & set(args)]
    told = {shlex.join(args): complaint(args) for args in found}
    assert {call: wrong for call, wrong in told.items() if wrong is not None} == {}


def test_a_wrong_command_would_be_seen() -> None:
    assert complaint(["rum", "micro"]) is not None
    assert complaint(["run", "micro", "--nmae", "first"]) is not None
    assert complaint(["image", "lst"]) is not None
    assert complaint(["--remote", "lab", "run", "micro", "--name", "first"]) is None
    assert complaint(words("exec web -- ls -l | head  # all")) is None
    assert len(list(calls(ROOT / "docs/tutorial.md"))) > 15
