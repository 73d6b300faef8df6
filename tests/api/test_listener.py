"""The TCP listener: silent towards strangers, bounded, renewed by SIGHUP, gone with the daemon."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from hanok.api.listener import HEAD_SIZE, STRANGERS
from hanok.config import load_settings
from hanok.credentials import make_certificate
from hanok.errors import InvalidInput
from tests.api.conftest import Host
from tests.api.wire import HANDSHAKE, Wire, bearer, head, parsed, read_to_end
from tests.daemon.harness import new_daemon, wait_until
from tests.machine import patient

HUGE = "Content-Length: 100000000000"


@pytest.mark.parametrize(
    "headers",
    [(HUGE,), (HUGE, "Expect: 100-continue"), ("Transfer-Encoding: chunked",)],
    ids=["length", "expect", "chunked"],
)
def test_the_body_is_not_waited_for(host: Host, headers: Sequence[str]) -> None:
    wire = host.wire
    for line, status in (("X: y", 401), (bearer(host.token("one", "viewer")), 403)):
        answer = wire.ask("POST", "/v1/vms", line, *headers)
        assert answer.status == status
        assert b"100 Continue" not in answer.raw


def test_whoever_may_is_told_to_go_on(host: Host) -> None:
    header = bearer(host.token("one"))
    with host.wire.open() as tls:
        tls.sendall(head("POST", "/v1/fit", header, "Expect: 100-continue", body=b"{}"))
        assert tls.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        tls.sendall(b"{}")
        assert parsed(read_to_end(tls)).status == 200


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
def test_large_headers_are_not_answered(host: Host, is_known: bool, end: bytes) -> None:
    token = host.token("one", "viewer") if is_known else "none"
    request = head("GET", "/v1/version", bearer(token)).removesuffix(b"\r\n\r\n")
    assert host.wire.send(request + b"\r\nX-Large: " + b"x" * HEAD_SIZE + end).raw == b""
    many = b"".join(b"\r\nX-%d: y" % number for number in range(HEAD_SIZE // 8))
    assert host.wire.send(request + many + end).raw == b""
    assert host.wire.send(b"GET /" + b"x" * HEAD_SIZE + request[4:] + end).raw == b""


@pytest.mark.parametrize("beside", [b"0\r\nX: ", b"5;x="])
def test_what_is_beside_a_body_has_an_end(host: Host, beside: bytes) -> None:
    """A trailer and the extension of a chunk, of a request that has its answer already."""
    header = bearer(host.token("one", "viewer"))
    chunked = head("GET", "/v1/version", header, "Transfer-Encoding: chunked")
    with host.wire.open() as tls:
        tls.sendall(chunked.replace(b"Connection: close\r\n", b"") + b"2\r\n{}\r\n" + beside)
        assert tls.recv(65536).startswith(b"HTTP/1.1 200")
        with pytest.raises((BrokenPipeError, ConnectionResetError, ssl.SSLError)):
            tls.sendall(b"x" * HEAD_SIZE * 1000)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n\r\nhello\r\n\r\n",
        b"GET /v1/version\r\n\r\n",
        b"GET /v1/version HTTP/9.9\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: hanok\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost\r\n\r\n",
        b"POST /v1/vms HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"CONNECT hanok:443 HTTP/1.1\r\nHost: hanok\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 64,
    ],
)
def test_what_is_no_request_gets_no_answer_that_says_more(host: Host, request_bytes: bytes) -> None:
    answer = host.wire.send(request_bytes)
    assert answer.status == 401 or answer.raw == b""


def test_a_bad_handshake_of_a_websocket_is_not_answered_as_such(host: Host) -> None:
    for left_out in HANDSHAKE[2:]:
        headers = [line for line in HANDSHAKE if line != left_out]
        assert host.wire.ask("GET", "/v1/vms/a/console", *headers).status == 401


def test_without_tls_there_is_no_answer(host: Host) -> None:
    header = bearer(host.token("one"))
    with host.wire.plain() as sock:
        sock.sendall(head("GET", "/v1/version", header))
        assert b"HTTP" not in read_to_end(sock)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused(host: Host) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
        with host.wire.plain() as sock:
            if works:
                context.wrap_socket(sock).close()
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(sock)


def test_who_says_nothing_is_not_waited_for(host: Host) -> None:
    wire = host.wire
    with wire.plain() as mute, wire.open() as silent, wire.open() as slow:
        slow.sendall(b"GET /v1/version HTTP/1.1\r\n")
        assert [read_to_end(sock) for sock in (mute, silent, slow)] == [b""] * 3


def test_strangers_do_not_keep_others_out(host: Host) -> None:
    wire, header = host.wire, bearer(host.token("one", "viewer"))
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(wire.plain()) for _ in range(STRANGERS + 40)]
        assert wire.ask("GET", "/v1/version", header).status == 200
        # Those that were there first gave way.
        assert [read_to_end(sock) for sock in crowd[:30]] == [b""] * 30


def test_no_connection_is_left_behind(host: Host) -> None:
    wire, before = host.wire, descriptors(host)
    for _ in range(20):
        wire.ask("GET", "/v1/version")
        wire.ask("GET", "/v1/vms/a/console", *HANDSHAKE)
        with wire.plain() as sock:
            sock.sendall(b"no TLS")
        with wire.plain(), wire.open():
            pass  # gone without a word
    wait_until(lambda: descriptors(host) <= before, 30, "all connections are closed")


def descriptors(host: Host) -> int:
    assert host.daemon.process is not None
    return len(list(Path(f"/proc/{host.daemon.process.pid}/fd").iterdir()))


def test_who_is_known_does_not_give_way(host: Host) -> None:
    wire, header = host.wire, bearer(host.token("one", "viewer"))
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(wire.open())
        known.sendall(head("GET", "/v1/events?follow=true", header))
        assert known.recv(65536).startswith(b"HTTP/1.1 200")
        crowd = [stack.enter_context(wire.plain()) for _ in range(STRANGERS + 40)]
        assert read_to_end(crowd[0]) == b""
        host.token("news")
        found = b""
        while b'"news"' not in found:
            data = known.recv(65536)
            assert data
            found += data


def test_wrong_tokens_do_not_keep_good_ones_out(host: Host) -> None:
    wire, header = host.wire, bearer(host.token("one", "viewer"))
    stop, refused = threading.Event(), []

    def guess() -> None:
        while not stop.is_set():
            refused.append(wire.ask("GET", "/v1/version", bearer("hanok_" + "B" * 43)).status)

    guessing = [threading.Thread(target=guess) for _ in range(4)]
    for thread in guessing:
        thread.start()
    try:
        wait_until(lambda: len(refused) > 20, 30, "wrong tokens come")
        answers = [wire.ask("GET", "/v1/version", header).status for _ in range(20)]
    finally:
        stop.set()
        for thread in guessing:
            thread.join()
    assert set(refused) == {401}
    assert answers == [200] * 20
    told = [line for line in host.daemon.log().splitlines() if "without a good token" in line]
    assert len(told) < 10, "the log is flooded"


def hang_up(host: Host) -> None:
    assert host.daemon.process is not None
    before = host.daemon.log().count("SIGHUP")
    host.daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: host.daemon.log().count("SIGHUP") > before, 30, "SIGHUP is heard")


def test_sighup_makes_a_new_certificate(new_host: Host) -> None:
    token = new_host.token("one", "viewer")
    old, keys = new_host.wire, new_host.daemon.home / "keys"
    with old.open() as tls:
        (keys / "tls.crt").unlink()
        (keys / "tls.key").unlink()
        hang_up(new_host)
        new = new_host.wire
        assert new.fingerprint != old.fingerprint
        assert new.ask("GET", "/v1/version", bearer(token)).status == 200
        tls.sendall(head("GET", "/v1/version", bearer(token)))  # an open connection stays
        assert parsed(read_to_end(tls)).status == 200


def test_sighup_takes_a_certificate_of_ones_own(new_host: Host) -> None:
    keys, old = new_host.daemon.home / "keys", new_host.wire
    (keys / "tls.crt").write_text("nothing of use")
    hang_up(new_host)
    assert "what cannot be read stays as it was" in new_host.daemon.log()
    assert new_host.wire == old
    with new_host.wire.open():
        pass
    key, certificate = make_certificate()
    (keys / "tls.key").write_bytes(key)
    hang_up(new_host)  # half of it is there: no pair
    assert new_host.wire == old
    (keys / "tls.crt").write_bytes(certificate)
    hang_up(new_host)
    assert new_host.wire.fingerprint != old.fingerprint
    with new_host.wire.open():
        pass


def test_sighup_forgets_tokens_that_are_no_longer_kept(new_host: Host) -> None:
    token = new_host.token("one", "viewer")
    other = new_host.token("other", "viewer")
    with new_host.wire.open() as tls:
        tls.sendall(head("GET", "/v1/events?follow=true", bearer(token)))
        assert tls.recv(65536).startswith(b"HTTP/1.1 200")
        with sqlite3.connect(new_host.daemon.home / "state.db") as database:
            database.execute("DELETE FROM tokens WHERE name = 'one'")
        hang_up(new_host)
        read_to_end(tls)
    assert new_host.wire.ask("GET", "/v1/version", bearer(token)).status == 401
    assert new_host.wire.ask("GET", "/v1/version", bearer(other)).status == 200


def test_a_daemon_in_a_terminal_ends_with_it(short_tmp: Path) -> None:
    ours, its = pty.openpty()
    # As users have it: what it could not write to its terminal is in a buffer at its end.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "hanok.app", "--foreground", "--listen", "127.0.0.1:0"],
        env={**environ, "HANOK_HOME": str(short_tmp), "HANOK_HYPERVISOR": "fake"},
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        os.close(its)
        wait_until((short_tmp / "hanokd.sock").exists, 40, "the daemon answers")
        process.send_signal(signal.SIGHUP)
        said = b""
        while b"SIGHUP: tokens are read again" not in said:
            said += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(patient(30)) == 0
        assert not (short_tmp / "hanokd.sock").exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_port_closes_with_the_daemon(new_host: Host, how: str) -> None:
    wire, header = new_host.wire, bearer(new_host.token("one", "viewer"))
    with wire.open() as tls, wire.plain():
        tls.sendall(head("GET", "/v1/events?follow=true", header))
        assert tls.recv(65536).startswith(b"HTTP/1.1 200")
        new_host.daemon.stop() if how == "stop" else new_host.daemon.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", wire.port), patient(10)).close()
        read_to_end(tls)
    new_host.daemon.environ["HANOK_LISTEN"] = f"127.0.0.1:{wire.port}"
    new_host.daemon.start()  # at once at the same port
    assert new_host.wire == wire
    assert wire.ask("GET", "/v1/version", header).status == 200


def test_it_listens_only_where_it_was_told_to(short_tmp: Path, host: Host) -> None:
    taken = f"127.0.0.1:{host.wire.port}"
    done = hanokd(short_tmp, "--listen", taken)
    assert done.returncode == 1
    assert f"the address {taken} cannot be listened at" in done.stderr
    done = hanokd(short_tmp, "--listen", "203.0.113.7:7443")
    assert done.returncode == 1
    done = hanokd(short_tmp, "--listen", "everywhere")
    assert done.returncode == 2
    assert "HANOK_LISTEN is 'everywhere'" in done.stderr


def hanokd(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "hanok.app", "--foreground", *arguments],
        env={**os.environ, "HANOK_HOME": str(home), "HANOK_HYPERVISOR": "fake"},
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


def test_without_an_address_it_does_not_listen(images: Path) -> None:
    with new_daemon("fake", images) as daemon:
        told = daemon.client.host()
        assert (told["listen"], told["fingerprint"]) == (None, None)
        assert not (daemon.home / "keys").exists()
        hang_up(Host(daemon))
        assert daemon.client.version()["pid"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.0.0.0:7443", "0.0.0.0:7443"),
        ("[::]:7443", "[::]:7443"),
        ("[0:0::1]:0", "[::1]:0"),
    ],
)
def test_addresses_to_listen_at(text: str, shown: str) -> None:
    settings = load_settings({"HANOK_HOME": "/tmp/x", "HANOK_LISTEN": text})
    assert str(settings.listen) == shown


@pytest.mark.parametrize(
    "text",
    [
        "7443",
        ":7443",
        "localhost:7443",
        "::1:7443",
        "[::1]",
        "[1.2.3.4]:1",
        "[::1:7443",
        "1.2.3.4:",
        "1.2.3.4:x",
        "1.2.3.4:65536",
        "1.2.3.4:-1",
        "1.2.3.4:7443 ",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        load_settings({"HANOK_HOME": "/tmp/x", "HANOK_LISTEN": text})
    assert error.value.field == "HANOK_LISTEN"


def test_ipv6(images: Path) -> None:
    with new_daemon("fake", images, HANOK_LISTEN="[::1]:0") as daemon:
        told = daemon.client.host()
        assert told["listen"] is not None
        assert told["listen"].startswith("[::1]:")
        port = int(told["listen"].rpartition(":")[2])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection(("::1", port), patient(10)) as sock,
            context.wrap_socket(sock) as tls,
        ):
            tls.sendall(head("GET", "/v1/version"))
            assert parsed(read_to_end(tls)).status == 401
        with pytest.raises(ConnectionRefusedError), Wire(port, "").plain():
            pass
