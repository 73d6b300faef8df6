"""Into a new lab host: it gets a certificate and a token of its own, made and kept here.

Both go in through the guest agent, which is this machine's own, before anyone is told of the host.
That costs an emulated CPU a tenth of what making them there would.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field

from hanok.client.client import Client
from hanok.client.remotes import Remote, open_remote
from hanok.credentials import digest_of, fingerprint_of, make_certificate, make_token
from hanok.errors import CertificateChanged, DaemonUnreachable, HanokError, HostError, Unauthorized

# It is there while the daemon answers over the network (see hanok.api.welcome).
_PIPE = "/run/hanok/welcome"
_START_LIMIT = 300
_WAIT = f"""
tries=0
until [ -p {_PIPE} ]; do
  tries=$((tries + 1))
  if [ $tries -gt {_START_LIMIT * 5} ]; then echo 'its daemon does not answer' >&2; exit 1; fi
  sleep 0.2
done
"""
_ENTER_LIMIT = 60
TOKEN_NAME = "lab"  # noqa: S105 - what the token is called


@dataclass(frozen=True)
class Credentials:
    """What a lab host is told: a certificate and its key (PEM), and the token that it will take."""

    certificate: str
    key: str = field(repr=False)
    token: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """The hexadecimal SHA-256 of the certificate."""
        return fingerprint_of(self.certificate)

    @property
    def message(self) -> bytes:
        """The line that the host is told; it never has the token itself."""
        wanted = {
            "name": TOKEN_NAME,
            "digest": digest_of(self.token),
            "certificate": self.certificate,
            "key": self.key,
        }
        return json.dumps(wanted).encode() + b"\n"


def make_credentials() -> Credentials:
    """Return new ones."""
    key, certificate = make_certificate()
    return Credentials(certificate.decode(), key.decode(), make_token())


def wait_for_daemon(client: Client, name: str) -> None:
    """Wait until the daemon in the lab host ``name`` answers. Raises HostError."""
    run_in(client, name, ["sh", "-c", _WAIT], _START_LIMIT + 60)


def enter(client: Client, name: str, credentials: Credentials) -> None:
    """Tell the daemon in the lab host ``name`` who it is: an earlier certificate is forgotten.

    Raises GuestError.
    """
    client.write_into(name, _PIPE, credentials.message)


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


def wait_for_answer(remote: Remote) -> None:
    """Wait until the host answers with its new certificate and takes its token.

    Raises the last error after a while.
    """
    client = open_remote(remote)
    deadline = time.monotonic() + _ENTER_LIMIT
    pause = 0.1  # what it has to do takes it that long, and each try takes it away
    while True:
        try:
            client.version()
            return
        except (CertificateChanged, DaemonUnreachable, Unauthorized) as error:
            if time.monotonic() > deadline:
                raise _explained(remote, error) from error
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


def _explained(remote: Remote, error: HanokError) -> HanokError:
    return HostError(
        f"the lab host {remote.name} does not answer at {remote.url}: {error.message}",
        hint=f"hanok exec {remote.name} -- journalctl -u hanokd",
    )
