"""Into a new lab host: its daemon gets a certificate and a token of its own, pinned and kept here.

The key never leaves the host. Both come out through the guest agent, which is this machine's own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from typing import NamedTuple

from hanok.client.client import Client
from hanok.client.remotes import Remote, open_remote
from hanok.errors import CertificateChanged, DaemonUnreachable, HanokError, HostError, Unauthorized

_WELCOME = "/opt/hanok/bin/welcome"
_START_LIMIT = 300
_ENTER_LIMIT = 60
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END CERTIFICATE-----", re.A
)
_TOKEN = re.compile(r"^hanok_[A-Za-z0-9_-]{43}$", re.A | re.M)


class Credentials(NamedTuple):
    """The fingerprint (hexadecimal) of a host's certificate, and a token for it."""

    fingerprint: str
    token: str


def wait_for_daemon(client: Client, name: str) -> None:
    """Wait until the daemon in the lab host ``name`` answers. Raises HostError."""
    _welcome(client, name, "wait", _START_LIMIT)


def enter(client: Client, name: str) -> Credentials:
    """Have a new certificate and token made in the lab host ``name``: earlier ones are void.

    Raises HostError.
    """
    return read_credentials(name, _welcome(client, name, "enter", _ENTER_LIMIT))


def read_credentials(name: str, text: str) -> Credentials:
    """Return what a lab host printed. Raises HostError, which never holds the token."""
    certificate, token = _CERTIFICATE.search(text), _TOKEN.search(text)
    if certificate is None or token is None:
        raise HostError(f"the lab host {name} did not say its certificate and token")
    shown = hashlib.sha256(base64.b64decode(certificate[1])).hexdigest()
    return Credentials(shown, token[0])


def run_in(client: Client, name: str, command: list[str], limit: float) -> str:
    """Run a command in a lab host and return its output. Raises HostError with what it said."""
    done = client.execute(name, command, stdin=None, timeout=limit)
    if done["exit_status"] != 0:
        said = base64.b64decode(done["stderr"]).decode("utf-8", "replace").strip()
        raise HostError(
            f"the lab host {name} is not ready to be used: {said or 'no reason told'}",
            hint=f"hanok exec {name} -- journalctl -u hanokd",
        )
    return base64.b64decode(done["stdout"]).decode("utf-8", "replace")


def _welcome(client: Client, name: str, what: str, limit: int) -> str:
    return run_in(client, name, [_WELCOME, what, str(limit)], limit + 10)


def wait_for_answer(remote: Remote) -> None:
    """Wait until the host answers with its new certificate and takes its token.

    Raises the last error after a while.
    """
    client = open_remote(remote)
    deadline = time.monotonic() + _ENTER_LIMIT
    pause = 0.02
    while True:
        try:
            client.version()
            return
        except (CertificateChanged, DaemonUnreachable, Unauthorized) as error:
            if time.monotonic() > deadline:
                raise _explained(remote, error) from error
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _explained(remote: Remote, error: HanokError) -> HanokError:
    return HostError(
        f"the lab host {remote.name} does not answer at {remote.url}: {error.message}",
        hint=f"hanok exec {remote.name} -- journalctl -u hanokd",
    )
