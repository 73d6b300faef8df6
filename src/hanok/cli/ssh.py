"""``hanok ssh``, and how ssh and scp are told to reach a guest.

The system's own ssh does the work. It talks to the guest through ``hanok proxy``, so that no port
has to be published, and knows the guest's host keys from Hanok, so that it asks nothing.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.base import Remainder, Session, common_options, complete_vm, pass_session
from hanok.cli.keys import GuestKey
from hanok.client.chosen import LOCAL
from hanok.client.remotes import Remote, open_book
from hanok.errors import HostError

if TYPE_CHECKING:
    from hanok.model.views import SshView

_SSH_FAILED = 255


@click.command(
    "ssh", cls=Remainder, examples=("hanok ssh web", "hanok ssh web -- systemctl status nginx")
)
@click.argument("name", shell_complete=complete_vm)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--user", "-l", help="Log in as this user (default: the image's).")
@common_options
@pass_session
def ssh(session: Session, name: str, command: Sequence[str], user: str | None) -> int:
    """Log in to the guest of the VM NAME, or run COMMAND there by SSH."""
    view = session.client.ssh(name)
    if session.out.as_json:
        session.out.json(view)
        return 0
    return run_openssh(session, "ssh", name, view, [f"{user or view['user']}@{name}", *command])


def run_openssh(
    session: Session, program: str, name: str, view: SshView, arguments: Sequence[str]
) -> int:
    """Run ssh or scp for the guest of ``name`` and return its exit status.

    Raises HostError when the program is not installed; for a guest on a remote also GuestError,
    AgentUnavailable when it does not get to know this user's key.
    """
    import shutil
    import subprocess
    import tempfile

    path = shutil.which(program)
    if path is None:
        raise HostError(
            f"the program {program} is not installed", hint="apt-get install openssh-client"
        )
    remote, key = session.remote, None
    if remote is not None:
        key = GuestKey(open_book(os.environ))
        view = key.admit(session.client, remote, name, view)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hanok-"))
        known = Path(folder, "known_hosts")
        known.write_text("".join(f"{name} {key.strip()}\n" for key in view["host_keys"]))
        argv = [path, *ssh_options(name, view, known, remote), *arguments]
        # Ctrl-C belongs to ssh, which passes it on to the guest.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        stack.callback(signal.signal, signal.SIGINT, previous)
        process = subprocess.Popen(argv, preexec_fn=_default_interrupt)
        stack.callback(_end, process)
        status = process.wait()
    if remote is not None and key is not None and status == _SSH_FAILED:
        key.forget(remote, view)
    return status if status >= 0 else 128 - status


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: object) -> None:
    import subprocess

    if isinstance(process, subprocess.Popen) and process.poll() is None:
        process.terminate()
        process.wait()


def ssh_options(
    name: str, view: SshView, known_hosts: Path, remote: Remote | None = None
) -> list[str]:
    """Return the options by which ssh and scp reach the guest of ``name`` and nothing else.

    ``remote`` is the host that it is on, or None for this one.
    """
    options = {
        "ProxyCommand": _proxy_command(name, view["port"], remote),
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
        "UserKnownHostsFile": str(known_hosts),
        "GlobalKnownHostsFile": os.devnull,
        "HostKeyAlias": name,
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    found = ["-F", "none", "-i", view["key"]]
    for key, value in options.items():
        found += ["-o", f"{key}={value}"]
    return found


def _proxy_command(name: str, port: int, remote: Remote | None) -> str:
    # The host by its name only, since everyone can read a command line. Always said: what
    # HANOK_REMOTE or "remote use" say need not be what this command was told.
    where = LOCAL if remote is None else remote.name
    hanok = [sys.executable, "-P", "-m", "hanok.cli", "--remote", where]
    command = shlex.join([*hanok, "proxy", "--", name, str(port)])
    return command.replace("%", "%%")  # ssh replaces %h and the like
