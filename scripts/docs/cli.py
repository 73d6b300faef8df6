"""The reference of the command line, from click's own tree of commands.

click-man and mkdocs-click look at ``Group.commands``, which is empty here: commands are imported
when they are named. So the tree is walked by what click itself asks, ``list_commands``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from hanok.cli.base import LazyGroup
from hanok.cli.main import cli

COMMON = ("--json", "--remote")
_EVERYWHERE = ("--help", "--no-color", *COMMON)


@dataclass(frozen=True)
class Command:
    """One command as its help shows it; options are pairs of how it is written and its help."""

    path: str
    usage: str
    help: str
    options: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    aliases: tuple[str, ...] = ()

    @property
    def is_group(self) -> bool:
        """Whether it has commands below it."""
        return bool(self.sections)

    @property
    def summary(self) -> str:
        """The first paragraph of its help."""
        return self.help.split("\n\n", 1)[0]


def commands() -> list[Command]:
    """Return ``hanok`` and every command below it, in the order of the help."""
    return list(_walk(cli, "hanok", None))


def _walk(
    command: click.Command,
    name: str,
    parent: click.Context | None,
    aliases: Sequence[str] = (),
) -> Iterator[Command]:
    context = click.Context(command, info_name=name, parent=parent)
    yield _command(command, context, aliases)
    if not isinstance(command, click.Group):
        return
    for child in command.list_commands(context):
        found = command.get_command(context, child)
        if found is not None and not found.hidden:
            yield from _walk(found, child, context, _aliases(command, child))


def _aliases(group: click.Group, name: str) -> list[str]:
    known = group.aliases if isinstance(group, LazyGroup) else {}
    return [alias for alias, target in known.items() if target == name]


def _command(command: click.Command, context: click.Context, aliases: Sequence[str]) -> Command:
    options = []
    for param in command.get_params(context):
        record = None if set(param.opts) & set(_EVERYWHERE) else param.get_help_record(context)
        if isinstance(param, click.Option) and record is not None:
            options.append((record[0], _tidy(record[1])))
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    if isinstance(command, LazyGroup):
        sections = tuple(
            (title, tuple((name, lazy.help) for name, lazy in part.items()))
            for title, part in command.sections.items()
        )
    return Command(
        path=context.command_path,
        usage=f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}",
        help=_tidy(inspect.cleandoc(command.help or "")),
        options=tuple(options),
        examples=tuple(getattr(command, "examples", ())),
        sections=sections,
        aliases=tuple(aliases),
    )


def _tidy(text: str) -> str:
    return text.replace("\b\n", "").replace("``", "`").strip()


def markdown(found: Sequence[Command]) -> str:
    """Return the reference page."""
    top, *others = found
    lines = [
        "<!-- Made by 'make docs' from the commands themselves: change their help instead. -->",
        "# Reference: the command line",
        "",
        f"`{top.usage}`",
        "",
        *_common(),
        "",
    ]
    lines += _contents(top)
    for command in others:
        lines += _section(command)
    return "\n".join(lines).rstrip() + "\n"


def _common() -> list[str]:
    return [
        "Every command takes `--help` (`-h`), `--json` (print JSON for programs; sizes are",
        "bytes), `--no-color`, and `--remote NAME` (do it on this remote host, or `local`;",
        "[remotes](../remotes.md)), before its name or after it; they are left out below.",
        "",
        "| exit status | means |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | failed; [troubleshooting](../troubleshooting.md) has each error's code |",
        "| 2 | bad input or usage |",
        "| 130 | Ctrl-C |",
        "",
        "`exec` and `ssh` give the status of the guest's command.",
    ]


def _contents(top: Command) -> list[str]:
    lines = ["| | command | |", "|---|---|---|"]
    for title, entries in top.sections:
        for place, (name, text) in enumerate(entries):
            group = title if place == 0 else ""
            lines.append(f"| {group} | [`{name}`](#hanok-{name}) | {_cell(text)} |")
    return [*lines, ""]


def _section(command: Command) -> list[str]:
    depth = "#" * (command.path.count(" ") + 1)
    lines = [f"{depth} {command.path}", "", f"`{command.usage}`", "", _paragraphs(command.help), ""]
    if command.aliases:
        lines += [f"Also: {', '.join(f'`{alias}`' for alias in command.aliases)}.", ""]
    if command.options:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in command.options]
        lines.append("")
    if command.examples:
        lines += ["```", *command.examples, "```", ""]
    return lines


def _paragraphs(text: str) -> str:
    """Return help as Markdown: capital metavars stay as they are, angle brackets are no HTML."""
    return re.sub(r"<(?=[a-zA-Z/])", r"\\<", text)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
