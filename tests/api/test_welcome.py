"""The pipe at which a lab host is told its certificate and a token."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hanok.client.remotes import Remote, open_remote
from hanok.errors import CertificateChanged, Unauthorized
from hanok.lab.entry import Credentials, make_credentials, wait_for_answer
from tests.daemon.harness import Daemon, new_daemon, wait_until

_NO_CERTIFICATE = b'{"name": "lab", "digest": "%s", "certificate": "x", "key": "y"}\n' % (b"0" * 64)


@dataclass(frozen=True)
class Door:
    """A daemon with such a pipe."""

    daemon: Daemon
    pipe: Path

    def tell(self, message: bytes) -> None:
        """Write to the pipe, as the guest agent does."""
        with open(self.pipe, "wb") as pipe:
            pipe.write(message)

    def remote(self, told: Credentials) -> Remote:
        """Return the daemon as the remote that it is by these credentials."""
        address = self.daemon.client.host()["listen"]
        assert address is not None
        return Remote("lab", f"https://{address}", told.fingerprint, told.token)


@pytest.fixture
def door(images: Path) -> Iterator[Door]:
    with tempfile.TemporaryDirectory(prefix="hk-welcome-", dir="/tmp") as folder:
        pipe = Path(folder) / "run" / "welcome"
        settings = {"HANOK_LISTEN": "127.0.0.1:0", "HANOK_WELCOME": str(pipe)}
        with new_daemon("fake", images, **settings) as daemon:
            yield Door(daemon, pipe)
        assert not pipe.exists()


def test_what_is_told_counts_and_what_was_told_before_does_not(door: Door) -> None:
    facts = door.pipe.stat()
    assert stat.S_ISFIFO(facts.st_mode)
    assert stat.S_IMODE(facts.st_mode) == 0o600
    first, second = make_credentials(), make_credentials()
    door.tell(first.message)
    wait_for_answer(door.remote(first))
    door.tell(second.message)
    wait_for_answer(door.remote(second))
    with pytest.raises(CertificateChanged):
        open_remote(door.remote(first)).version()
    mixed = Credentials(second.certificate, second.key, first.token)
    with pytest.raises(Unauthorized):
        open_remote(door.remote(mixed)).version()
    assert [token["name"] for token in door.daemon.client.tokens()] == ["lab"]
    text = door.daemon.log() + (door.daemon.home / "state.db").read_bytes().decode("latin-1")
    assert all(one.token not in text for one in (first, second))


@pytest.mark.parametrize(
    "message",
    [
        b"\n",
        b"{}\n",
        b"\xff\xfe\n",
        b'{"name": "lab", "digest": "00", "certificate": "", "key": "KEY-OF-MINE"}\n',
        _NO_CERTIFICATE,
        b"x" * 100_000 + b"\n",
    ],
    ids=["nothing", "empty", "no text", "no digest", "no certificate", "too long"],
)
def test_what_is_no_welcome_changes_nothing(door: Door, message: bytes) -> None:
    right = make_credentials()
    door.tell(right.message)
    wait_for_answer(door.remote(right))
    door.tell(message)
    wait_until(lambda: "welcome" in door.daemon.log(), 20, "the refusal is in the log")
    assert open_remote(door.remote(right)).version()["name"] == "hanok"
    assert "KEY-OF-MINE" not in door.daemon.log()


def test_a_daemon_that_starts_again_goes_on_with_what_it_was_told(door: Door) -> None:
    right = make_credentials()
    door.tell(right.message)
    wait_for_answer(door.remote(right))
    door.tell(_NO_CERTIFICATE)
    wait_until(lambda: "could not be followed" in door.daemon.log(), 20, "it is refused")
    door.daemon.kill()
    door.daemon.start()
    assert open_remote(door.remote(right)).version()["name"] == "hanok"
