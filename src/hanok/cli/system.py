"""``hanok serve``, ``hanok version`` and ``hanok completion``."""

from __future__ import annotations

import os
import sys

import click

from hanok import __version__
from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.client.daemon import daemon_argv
from hanok.errors import DaemonUnreachable, HanokError, HostError

_WHERE = {
    "bash": 'eval "$(hanok completion bash)"        # in ~/.bashrc',
    "zsh": 'eval "$(hanok completion zsh)"         # in ~/.zshrc',
    "fish": "hanok completion fish | source        # in ~/.config/fish/config.fish",
}


@click.command(
    "serve",
    cls=Example,
    examples=(
        "hanok serve",
        "HANOK_HOME=/srv/hanok hanok serve",
        "hanok serve --listen 0.0.0.0:7443      # and 'hanok token create' says who may come",
    ),
)
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help="Answer over the network as well, by TLS and to tokens only (also: HANOK_LISTEN).",
)
@common_options
@pass_session
def serve(session: Session, listen: str | None) -> None:
    """Run the daemon in the foreground, until Ctrl-C. VMs go on when it ends."""
    session.require_local("hanok serve")
    argv = daemon_argv("--foreground")
    if listen is not None:
        argv.append(f"--listen={listen}")
    sys.stdout.flush()
    try:
        os.execv(argv[0], argv)  # noqa: S606  the daemon takes this process's place
    except OSError as error:
        raise HostError(f"the daemon cannot be started: {error.strerror}") from error


@click.command("version", cls=Example, examples=("hanok version --json",))
@common_options
@pass_session
def version(session: Session) -> None:
    """Print the versions of this command and of the daemon, if one runs."""
    daemon, remote = None, session.remote
    try:
        daemon = session.passive_client().version()
    except DaemonUnreachable:  # here none runs, and this is no reason to start one
        if remote is not None:
            raise
    if session.out.as_json:
        where = {} if remote is None else {"remote": remote.name}
        session.out.json({"name": "hanok", "version": __version__, "daemon": daemon, **where})
        return
    session.out.line(f"hanok {__version__}")
    if remote is not None:
        session.out.line(f"remote {remote.name} at {remote.url}")
    if daemon is None:
        session.out.line("no daemon runs")
        return
    session.out.line(f"daemon {daemon['version']}, pid {daemon['pid']}, data in {daemon['home']}")
    if daemon["version"] != __version__ and remote is None:
        session.out.note(
            "The daemon is of another version: stop it, and the next command starts it."
        )


@click.command(
    "completion", cls=Example, examples=tuple(_WHERE.values()), short_help="Complete commands."
)
@click.argument("shell", type=click.Choice(sorted(_WHERE)))
@common_options
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print what makes SHELL complete commands, options and names."""
    session.require_local("hanok completion")
    from click.shell_completion import get_completion_class

    from hanok.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise HanokError(f"this version of click cannot complete for {shell}")
    script = kind(cli, {}, "hanok", "_HANOK_COMPLETE").source()
    if session.out.as_json:
        session.out.json({"shell": shell, "script": script})
    else:
        print(script)
