"""What all commands share: the session, lazy groups, options, and names that are nearly right."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from hanok.cli.output import Output
from hanok.client.chosen import LOCAL, chosen_name
from hanok.client.client import Client
from hanok.client.daemon import open_client
from hanok.errors import HanokError, InvalidInput

if TYPE_CHECKING:
    from hanok.client.remotes import Remote

F = TypeVar("F", bound=Callable[..., Any])


_COMPLETION_LIMIT = 2.0


class Session:
    """One run of the command line: where its words go and how it reaches the daemon.

    ``remote_name`` is what --remote named; without it HANOK_REMOTE and "remote use" decide.
    """

    def __init__(self) -> None:
        self.out = Output()
        self.remote_name: str | None = None
        self._client: Client | None = None
        self._remote: tuple[Remote | None] | None = None

    @property
    def remote(self) -> Remote | None:
        """The remote host that this command is for, or None when it is for this one.

        Raises NotFound when there is no remote of the name that was chosen.
        """
        if self._remote is None:
            self._remote = (self._find_remote(),)
        return self._remote[0]

    def _find_remote(self) -> Remote | None:
        if chosen_name(os.environ, self.remote_name) == LOCAL:
            return None
        from hanok.client.remotes import chosen_remote

        return chosen_remote(os.environ, self.remote_name)

    @property
    def client(self) -> Client:
        """The daemon's API; here the daemon is started when the first request finds none."""
        if self._client is None:
            self._client = self._open(start=True)
        return self._client

    def passive_client(self, connect_limit: float | None = None) -> Client:
        """Return a client that starts no daemon."""
        return self._open(start=False, connect_limit=connect_limit)

    def _open(self, *, start: bool, connect_limit: float | None = None) -> Client:
        remote = self.remote
        if remote is None:
            return open_client(os.environ, start=start, on_start=self._tell_start)
        from hanok.client.remotes import open_remote

        return open_remote(remote, connect_limit=connect_limit)

    def require_local(self, what: str) -> None:
        """Refuse --remote for a command that is about this machine.

        HANOK_REMOTE and "remote use" mean the other commands. Raises InvalidInput.
        """
        if self.remote_name not in (None, LOCAL):
            raise InvalidInput(
                f"{what} is about this machine alone",
                field="--remote",
                hint="leave --remote out, or log in to that host and type it there",
            )

    @property
    def program(self) -> str:
        """How to call this program again for the same host."""
        named = "" if self.remote_name is None else f" --remote {self.remote_name}"
        return program_name() + named

    def _tell_start(self, log: Path) -> None:
        self.out.note(f"Starting the daemon (it logs to {log})")


pass_session = click.make_pass_decorator(Session)


def _take_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).out.as_json = True


def _take_no_color(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).out.no_color = True


def _take_remote(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).remote_name = value


def complete_remote(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of remotes, and ``local``, that begin with what was typed."""
    from hanok.client.remotes import open_book

    try:
        names = [LOCAL, *sorted(open_book(os.environ).load())]
    except HanokError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def common_options(function: F) -> F:
    """Add the options that every command takes: --json, --remote and --no-color."""
    for option in (
        click.option(
            "--no-color",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_take_no_color,
            hidden=True,
            help="No colours (the variable NO_COLOR does the same).",
        ),
        click.option(
            "--remote",
            metavar="NAME",
            expose_value=False,
            is_eager=True,
            callback=_take_remote,
            shell_complete=complete_remote,
            help="Do it on this remote host (or 'local'); else HANOK_REMOTE, 'remote use'.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_take_json,
            help="Print JSON for programs; sizes are bytes.",
        ),
    ):
        function = option(function)
    return function


class Example(click.Command):
    """A command whose help ends with examples, kept as they are written."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


class Remainder(Example):
    """A command that ends with a command for the guest: NAME [OPTIONS] [--] COMMAND...

    All that follows the name and its options belongs to the guest, dashes and all, with ``--``
    before it or without.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``--`` before the guest's command when it was left out."""
        return super().parse_args(ctx, self._with_separator(args))

    def _with_separator(self, args: list[str]) -> list[str]:
        with_value = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        names = 0
        skip = False
        for at, word in enumerate(args):
            if skip:
                skip = False
            elif word == "--":
                return args
            elif word.startswith("-") and len(word) > 1:
                skip = word in with_value
            elif names == 1:
                return [*args[:at], "--", *args[at:]]
            else:
                names = 1
        return args


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write ``examples`` below a title, a line each."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")


class Lazy(NamedTuple):
    """Where a command is: module of hanok.cli, name in it, and its line in the help."""

    module: str
    attribute: str
    help: str


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is named.

    ``sections`` maps a title to the commands below it; ``aliases`` are other names of some.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Mapping[str, Lazy]],
        aliases: Mapping[str, str] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self.aliases = aliases or {}
        self.examples = tuple(examples)
        self.known = {name: lazy for part in sections.values() for name, lazy in part.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(self.known)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command called ``cmd_name`` (or by an alias), importing its module."""
        lazy = self.known.get(self.aliases.get(cmd_name, cmd_name))
        if lazy is None:
            return None
        command = getattr(importlib.import_module(f"hanok.cli.{lazy.module}"), lazy.attribute)
        assert isinstance(command, click.Command)  # noqa: S101  a slip in the table of main.py
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` name. Raises UsageError with the nearest known one."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing and not name.startswith("-"):
            hint = nearest(name, [*self.known, *self.aliases])
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx=ctx)
        if command is None:
            return super().resolve_command(ctx, args)
        return self.aliases.get(name, name), command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their sections, without importing one."""
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, lazy.help) for name, lazy in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


def nearest(word: str, known: Sequence[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of ``known``, or nothing."""
    import difflib

    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def program_name() -> str:
    """Return how to call this program again: ``hanok``, or its path where PATH has none."""
    import shutil
    import sys

    called = Path(sys.argv[0])
    if called.name != "hanok" or shutil.which("hanok") is not None:
        return "hanok"
    path = called.absolute()
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        try:
            client = ctx.ensure_object(Session).passive_client(_COMPLETION_LIMIT)
            names = {
                "vm": lambda: [vm["name"] for vm in client.vms()],
                "network": lambda: [network["name"] for network in client.networks()],
                "image": lambda: sorted({image["ref"] for image in client.images()}),
                "template": lambda: [template["name"] for template in client.templates()],
                "operation": lambda: [one["id"] for one in client.operations()],
            }[kind]()
        except HanokError:
            return []  # no daemon, no names: completion must not say more
        return [name for name in names if name.startswith(incomplete)]

    return complete


complete_vm = _complete("vm")
complete_network = _complete("network")
complete_image = _complete("image")
complete_template = _complete("template")
complete_operation = _complete("operation")
