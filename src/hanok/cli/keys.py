"""The SSH key of this user for guests on remote hosts.

A host's own key for its guests never leaves it. A guest on a remote gets to know this user's key
instead, through its agent, which only operators of that host may use.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hanok.client.client import Client
from hanok.client.remotes import Remote, RemoteBook
from hanok.errors import GuestError, HostError

if TYPE_CHECKING:
    from hanok.model.views import SshView

_LIMIT = 60.0
# It runs as the user whose key it is: as root it would follow where that user's links lead.
_AUTHORIZE = """\
set -eu
umask 077
mkdir -p ~/.ssh
touch ~/.ssh/authorized_keys
grep -qxF "$1" ~/.ssh/authorized_keys || printf '%s\\n' "$1" >> ~/.ssh/authorized_keys
"""
_AS_USER = """\
home=$(getent passwd "$1" | cut -d: -f6)
exec runuser -u "$1" -- env HOME="$home" sh -c "$2" sh "$3"
"""


class GuestKey:
    """A key in the configuration folder, and marks of the guests that know it."""

    def __init__(self, book: RemoteBook) -> None:
        self._folder = book.folder / "ssh"
        self._path = self._folder / "id_ed25519"

    def admit(self, client: Client, remote: Remote, vm: str, view: SshView) -> SshView:
        """Return ``view`` with this user's key, which the guest of ``vm`` then takes.

        Raises GuestError, AgentUnavailable, HostError when ssh-keygen is missing.
        """
        mark = self._mark(remote, view)
        if not (self._path.exists() and mark.exists()):
            self._make()
            self._authorize(client, vm, view["user"])
            mark.touch(mode=0o600)
        return {**view, "key": str(self._path)}

    def forget(self, remote: Remote, view: SshView) -> None:
        """Tell the guest anew next time: it may not have taken the key."""
        self._mark(remote, view).unlink(missing_ok=True)

    def _mark(self, remote: Remote, view: SshView) -> Path:
        """Return the file that says that a guest, known by its host keys, has the key."""
        guest = "\n".join((remote.fingerprint, view["user"], *view["host_keys"]))
        return self._folder / f"known-{hashlib.sha256(guest.encode()).hexdigest()[:32]}"

    def _authorize(self, client: Client, vm: str, user: str) -> None:
        public = _keygen("-y", "-f", str(self._path)).strip()
        command = ["/bin/sh", "-c", _AS_USER, "sh", user, _AUTHORIZE, public]
        done = client.execute(vm, command, stdin=None, timeout=_LIMIT)
        if done["exit_status"] != 0:
            said = base64.b64decode(done["stderr"]).decode("utf-8", "replace").strip()
            raise GuestError(
                f"the guest of {vm} does not take this user's SSH key: {said or 'no reason told'}",
                hint=f"'hanok exec {vm} -- sh' needs no key",
            )

    def _make(self) -> None:
        """Make the key pair if there is none; of two commands that do so at once one wins."""
        import tempfile

        if self._path.exists():
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            made = Path(name, "key")
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", "hanok", "-f", str(made))
            with contextlib.suppress(FileExistsError):
                os.link(made, self._path)  # whole, and never over one that is there


def _keygen(*arguments: str) -> str:
    """Run ssh-keygen and return what it printed. Raises HostError."""
    import shutil
    import subprocess

    program = shutil.which("ssh-keygen")
    if program is None:
        raise HostError(
            "the program ssh-keygen is not installed", hint="apt-get install openssh-client"
        )
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_LIMIT,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        raise HostError(f"ssh-keygen failed: {done.stderr.strip()}")
    return done.stdout
