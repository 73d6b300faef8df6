"""Tokens: kept as digests, good until they expire or are revoked, told to nobody."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from hanok.credentials import make_certificate
from hanok.errors import Conflict, InvalidInput, NotFound
from hanok.model.token import TokenRequest
from hanok.services.entrance import Entrance
from hanok.services.events import EventLog
from hanok.services.tokens import TokenService
from hanok.store.sqlite import SqliteStore
from tests.api.conftest import Host
from tests.api.wire import HANDSHAKE, bearer, head, read_to_end
from tests.daemon.harness import wait_until
from tests.machine import patient


def is_good(host: Host, token: str) -> bool:
    return host.wire.ask("GET", "/v1/version", bearer(token)).status == 200


def until(sock: ssl.SSLSocket, what: bytes) -> bytes:
    """Return what comes, to the first ``what``."""
    found = b""
    while what not in found:
        data = sock.recv(65536)
        assert data, found
        found += data
    return found


def test_the_record_has_no_secret(host: Host) -> None:
    token = host.token("plain", "viewer", expires_in=600)
    assert token.startswith("hanok_")
    assert len(token) == 6 + 43
    (record,) = [one for one in host.daemon.client.tokens() if one["name"] == "plain"]
    assert set(record) == {"id", "name", "role", "created", "expires", "used"}
    assert record["role"] == "viewer"
    assert record["expires"] == pytest.approx(record["created"] + 600)
    assert record["used"] is None
    assert is_good(host, token)
    (record,) = [one for one in host.daemon.client.tokens() if one["name"] == "plain"]
    assert record["used"] is not None


def test_bad_requests(host: Host) -> None:
    client = host.daemon.client
    host.token("taken")
    with pytest.raises(Conflict, match="taken exists already"):
        client.create_token({"name": "taken", "role": "viewer"})
    with pytest.raises(InvalidInput) as error:
        client.create_token({"name": "a", "role": "king"})
    assert error.value.field == "role"
    for wrong in (0, -5, 10**12):
        with pytest.raises(InvalidInput):
            client.create_token({"name": "a", "expires_in": wrong})
    with pytest.raises(InvalidInput):
        client.create_token({"name": "No Name"})
    with pytest.raises(NotFound, match="there is no token named nobody"):
        client.revoke_token("nobody")


def test_an_administrator_makes_tokens_from_afar(host: Host) -> None:
    header = bearer(host.token("chief", "administrator"))
    body = json.dumps({"name": "from-afar", "role": "viewer"}).encode()
    answer = host.wire.ask("POST", "/v1/tokens", header, body=body)
    assert answer.status == 201
    assert answer.headers["cache-control"] == "no-store"
    made = json.loads(answer.body)
    host.made.append(made["token"])
    assert made["fingerprint"] == host.wire.fingerprint
    assert is_good(host, made["token"])
    assert host.wire.ask("DELETE", "/v1/tokens/from-afar", header).status == 204
    assert not is_good(host, made["token"])


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_streams_end_with_their_token(host: Host, how: str) -> None:
    token = host.token("stream", "viewer", expires_in=3 if how == "expired" else None)
    with host.wire.open() as tls:
        tls.sendall(head("GET", "/v1/events?follow=true", bearer(token)))
        until(tls, b'"created"')
        if how == "revoked":
            host.daemon.client.revoke_token("stream")
        # The last piece of a whole answer would be an empty one; here the connection ends.
        assert not read_to_end(tls).endswith(b"\r\n0\r\n\r\n")
    assert not is_good(host, token)


def test_consoles_end_with_their_token(host: Host) -> None:
    host.daemon.run("seen")
    token = host.token("console")
    with host.wire.open() as tls:
        tls.sendall(head("GET", "/v1/vms/seen/console", bearer(token), *HANDSHAKE))
        until(tls, b"101 Switching Protocols")
        host.daemon.client.revoke_token("console")
        until(tls, b"the token is no longer good")
    host.daemon.done(host.daemon.client.delete("seen", force=True))


def test_a_token_outlives_the_daemon(new_host: Host) -> None:
    token = new_host.token("kept")
    fingerprint = new_host.wire.fingerprint
    assert is_good(new_host, token)
    used = new_host.daemon.client.tokens()[0]["used"]
    wait_until(lambda: kept_use(new_host) == used, 10, "the use of the token is on disk")
    new_host.daemon.kill()
    new_host.daemon.start()
    assert is_good(new_host, token)
    assert new_host.wire.fingerprint == fingerprint
    assert new_host.daemon.client.tokens()[0]["used"] == pytest.approx(used, abs=60)


async def test_its_use_is_noted_once_a_minute(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    service = TokenService(store, EventLog(store))
    token, _ = await service.create(TokenRequest(name="one"))
    record = service.find(token)
    assert record is not None
    service.touch(record)
    await service.close()
    (kept,) = await store.tokens()
    assert kept.used is not None
    service.touch(record)
    await service.close()
    assert await store.tokens() == [kept]
    await service.load()
    assert await service.list() == [{**record.model_dump(exclude={"digest"}), "used": kept.used}]
    await store.close()


async def test_a_use_that_cannot_be_noted_keeps_nobody_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    service = TokenService(store, EventLog(store))
    token, _ = await service.create(TokenRequest(name="one"))
    record = service.find(token)
    assert record is not None
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("DROP TABLE tokens")
    service.touch(record)
    await service.close()
    assert "is not noted" in caplog.text
    assert token not in caplog.text
    assert service.find(token) == record
    await store.close()


def test_a_certificate_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    Entrance(keys).context()
    old = (keys / "tls.key").read_bytes()
    (keys / "tls.crt").unlink()
    (keys / "tls.new").write_text("cut off")
    entrance = Entrance(keys)
    entrance.context()
    assert entrance.fingerprint is not None
    assert (keys / "tls.key").read_bytes() != old
    assert {path.name for path in keys.iterdir()} == {"tls.key", "tls.crt"}
    again = Entrance(keys)
    again.context()
    assert again.fingerprint == entrance.fingerprint


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    """In a terminal of its own, where OpenSSL would ask and wait."""
    key, certificate = make_certificate()
    (tmp_path / "tls.crt").write_bytes(certificate)
    locked = load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (tmp_path / "tls.key").write_bytes(locked)
    code = f"from hanok.services.entrance import *; Entrance(Path({str(tmp_path)!r})).context()"
    ours, its = pty.openpty()
    try:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", sys.executable, "-P", "-c", code],
            stdin=its, capture_output=True, text=True, timeout=patient(30), check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(its)
    assert "HostError: the certificate" in done.stderr
    assert (tmp_path / "tls.key").read_bytes() == locked


def kept_use(host: Host) -> float | None:
    with sqlite3.connect(host.daemon.home / "state.db") as database:
        ((used,),) = database.execute("SELECT used FROM tokens").fetchall()
    assert used is None or isinstance(used, float)
    return used


def test_a_token_is_written_nowhere(host: Host) -> None:
    """After all of the above: neither good tokens nor wrong ones, in no file of the daemon."""
    wrong = "hanok_" + "W" * 43
    host.wire.ask("GET", f"/v1/version?token={wrong}", bearer(wrong))
    host.wire.ask("POST", "/v1/tokens", bearer(wrong), body=wrong.encode())
    good = host.token("last", "administrator")
    host.wire.ask("POST", "/v1/tokens", bearer(good), body=good.encode())
    host.wire.ask("GET", "/v1/vms/none/console", bearer(good), *HANDSHAKE)
    assert is_good(host, good)
    tokens = [token.removeprefix("hanok_").encode() for token in [*host.made, wrong]]
    files = [path for path in host.daemon.home.rglob("*") if path.is_file()]
    assert {"state.db", "test.log"} <= {path.name for path in files}
    assert [path for path in files if any(token in path.read_bytes() for token in tokens)] == []
    assert secret_files_are_closed(host.daemon.home)


def secret_files_are_closed(home: Path) -> bool:
    key, folder = home / "keys" / "tls.key", home / "keys"
    return key.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
