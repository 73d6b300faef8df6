"""Commands that change several VMs at once: start, stop, restart, pause, resume, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from hanok.cli.base import Example, Session, common_options, complete_vm, pass_session
from hanok.cli.progress import follow_all
from hanok.client.client import Client, failure
from hanok.client.wire import OperationWire
from hanok.errors import HanokError

_Begin = Callable[[Client, str], OperationWire]
_names = click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_vm
)


def _change_all(session: Session, names: Sequence[str], begin: _Begin, done: str) -> int:
    """Begin something on each VM, follow all, tell what became of each; return an exit status.

    One that fails does not keep the others from going on; the status is that of the worst.
    """
    status = 0
    begun = []
    for name in dict.fromkeys(names):
        try:
            begun.append(begin(session.client, name))
        except HanokError as error:
            session.out.error(error)
            status = max(status, error.exit_status)
    finished = follow_all(session, begun)
    for operation in finished:
        failed = failure(operation)
        if failed is None:
            session.out.line(f"{operation['target']} {done}")
        else:
            session.out.error(failed)
            status = max(status, failed.exit_status)
    if session.out.as_json:
        session.out.json(finished)
    return status


@click.command("start", cls=Example, examples=("hanok start web db",))
@_names
@common_options
@pass_session
def start(session: Session, names: Sequence[str]) -> int:
    """Start stopped VMs and wait until each is ready."""
    return _change_all(session, names, lambda api, name: api.change(name, "start"), "is started")


@click.command("stop", cls=Example, examples=("hanok stop web", "hanok stop --timeout 5 web db"))
@_names
@click.option("-f", "--force", is_flag=True, help="Cut the power at once.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long the guest has to power off before it is forced.",
)
@common_options
@pass_session
def stop(session: Session, names: Sequence[str], force: bool, timeout: float | None) -> int:
    """Ask guests to power off, and force those that do not within a time."""
    body = {"force": force, "timeout": timeout}
    return _change_all(
        session, names, lambda api, name: api.change(name, "stop", body), "is stopped"
    )


@click.command("restart", cls=Example, examples=("hanok restart web",))
@_names
@common_options
@pass_session
def restart(session: Session, names: Sequence[str]) -> int:
    """Stop VMs and start them again."""
    return _change_all(
        session, names, lambda api, name: api.change(name, "restart"), "is restarted"
    )


@click.command("pause", cls=Example, examples=("hanok pause web",))
@_names
@common_options
@pass_session
def pause(session: Session, names: Sequence[str]) -> int:
    """Freeze VMs in memory: they keep their memory and take no CPU."""
    return _change_all(session, names, lambda api, name: api.change(name, "pause"), "is paused")


@click.command("resume", cls=Example, examples=("hanok resume web",))
@_names
@common_options
@pass_session
def resume(session: Session, names: Sequence[str]) -> int:
    """Let paused VMs go on where they were."""
    return _change_all(session, names, lambda api, name: api.change(name, "resume"), "goes on")


@click.command("delete", cls=Example, examples=("hanok delete old", "hanok delete --force web db"))
@_names
@click.option("-f", "--force", is_flag=True, help="Delete running VMs too.")
@common_options
@pass_session
def delete(session: Session, names: Sequence[str], force: bool) -> int:
    """Delete VMs with their disks. A running one is deleted only with --force."""
    return _change_all(
        session, names, lambda api, name: api.delete(name, force=force), "is deleted"
    )
