"""The manual page hanok(1), from the same tree of commands as the reference.

Source: man(7) for the macros, groff_char(7) for the escapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scripts.docs import settings
from scripts.docs.cli import Command

_FILES = (
    ("/var/lib/hanok", "Root's data directory: images, VMs, templates, networks, the database."),
    ("$XDG_DATA_HOME/hanok", "Another user's; ~/.local/share/hanok without the variable."),
    ("hanokd.sock", "In the data directory: where the daemon answers."),
    ("hanokd.log", "In the data directory: what a daemon that a command started has to say."),
    ("~/.config/hanok/remotes.json", "Remote hosts and the tokens for them."),
)
_STATUS = (
    ("0", "Done."),
    ("1", "Failed."),
    ("2", "Bad input or usage."),
    ("130", "Ctrl-C."),
)


def roff(commands: Sequence[Command], version: str) -> str:
    """Return the page's source."""
    top, *others = commands
    lines = [
        '.\\" Made by "make docs" from the commands themselves: change their help instead.',
        f'.TH HANOK 1 "" "hanok {version}" "Hanok"',
        ".SH NAME",
        f"hanok \\- {_text(top.summary.rstrip('.')).lower()}",
        ".SH SYNOPSIS",
        f".B {_text(top.path)}",
        _text(top.usage.removeprefix(top.path).strip()),
        ".SH DESCRIPTION",
        *_paragraphs(top.help),
        ".SH OPTIONS",
        "Every command takes these, before its name or after it.",
        *_entry("-h, --help", "Show the command's help."),
        *_entry("--json", "Print JSON for programs; sizes are bytes."),
        *_entry("--no-color", "No colours; the variable NO_COLOR does the same."),
        *_entry("--remote NAME", "Do it on this remote host, or 'local'."),
        ".SH COMMANDS",
    ]
    for command in others:
        lines += _command(command)
    lines += [".SH EXIT STATUS", *_entries(_STATUS)]
    lines += ["exec and ssh give the status of the guest's command.", ".SH ENVIRONMENT"]
    lines += [*_entries((one.name, one.text) for one in settings.SETTINGS)]
    lines += [".SH FILES", *_entries(_FILES), ".SH EXAMPLES"]
    lines += [".nf", *(_text(line) for line in top.examples), ".fi"]
    lines += [".SH SEE ALSO", "qemu-system-x86_64(1), xl(1), mmdebstrap(1)"]
    return "\n".join(lines) + "\n"


def _command(command: Command) -> Iterator[str]:
    yield f".SS {_text(command.usage)}"
    yield from _paragraphs(command.help)
    if command.aliases:
        yield _text(f"Also: {', '.join(command.aliases)}.")
    yield from _entries(command.options)
    if command.examples:
        yield from (".PP", ".RS", ".nf", *(_text(line) for line in command.examples), ".fi", ".RE")


def _entries(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, text in pairs:
        yield from _entry(name, text)
    yield ".PP"


def _entry(name: str, text: str) -> Iterator[str]:
    yield from (".TP", f"\\fB{_escaped(name)}\\fR", _text(text))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.replace("`", "").split("\n\n"):
        yield ".PP"
        yield from (_text(line) for line in paragraph.splitlines())


def _text(line: str) -> str:
    """Return a line of text, whatever it begins with."""
    escaped = _escaped(line.replace("`", ""))
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    flat = " ".join(text.split("\n"))
    for character, escape in (("\\", "\\e"), ("-", "\\-"), ("~", "\\(ti"), ("^", "\\(ha")):
        flat = flat.replace(character, escape)
    return "".join(one if ord(one) < 128 else f"\\[u{ord(one):04X}]" for one in flat)
