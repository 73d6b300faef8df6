"""The pinned connection and what is kept of it, against real TLS on a port of this machine."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from hanok.client import tls
from hanok.client.http import Transport
from hanok.client.remotes import Remote, open_remote
from hanok.errors import (
    CertificateChanged,
    DaemonUnreachable,
    Forbidden,
    GuestError,
    TimedOut,
    Unauthorized,
)
from tests.cli.tls_stand_in import (
    TOKEN,
    UNAUTHORIZED,
    Place,
    answer,
    free_port,
    plain_place,
    problem,
    tls_place,
)
from tests.machine import patient


def remote_of(place: Place, **changes: str) -> Remote:
    fields = {
        "name": "lab",
        "url": place.url,
        "fingerprint": place.fingerprint,
        "token": TOKEN,
        **changes,
    }
    return Remote(**fields)


@pytest.fixture
def place() -> Iterator[Place]:
    with tls_place() as found:
        yield found


def test_another_certificate_ends_it_before_anything_is_sent(place: Place) -> None:
    pinned = "ab" * 32
    with pytest.raises(CertificateChanged) as caught:
        open_remote(remote_of(place, fingerprint=pinned)).vms()
    assert tls.in_pairs(pinned) in caught.value.message
    assert tls.in_pairs(place.fingerprint) in caught.value.message
    assert place.connections == 1
    assert place.heard == []


def test_a_tunnel_too_sends_nothing_to_another_certificate(place: Place) -> None:
    from hanok.client.tunnel import open_console

    client = open_remote(remote_of(place, fingerprint="ab" * 32))
    with pytest.raises(CertificateChanged), open_console(client, "web"):
        pass
    assert place.heard == []


def test_the_requests_of_a_command_share_a_connection(place: Place) -> None:
    client = open_remote(remote_of(place))
    for _ in range(3):
        assert client.vms() == []
    assert client.version()["version"] == "9"
    assert place.connections == 1


def test_several_threads_share_no_connection_at_once(place: Place) -> None:
    client = open_remote(remote_of(place))
    barrier = threading.Barrier(4)
    found: list[object] = []

    def ask() -> None:
        barrier.wait(patient(10))
        for _ in range(20):
            found.append(client.vms())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[]] * 80
    assert place.connections <= 4


def test_a_connection_that_was_ended_meanwhile_is_made_anew() -> None:
    ended = threading.Event()

    def once(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        sock.sendall(answer(200, b"[]"))
        if place.connections == 1:
            sock.shutdown(socket.SHUT_RDWR)
            ended.set()
        else:
            place.read_request(sock)

    with tls_place(once) as place:
        client = open_remote(remote_of(place))
        assert client.vms() == []
        assert ended.wait(patient(10))
        client.change("web", "start")  # it would not be asked twice
        assert place.connections == 2


def test_a_question_that_got_no_answer_is_asked_again_and_a_change_is_not() -> None:
    def silent_once(place: Place, sock: socket.socket) -> None:
        request = place.read_request(sock)
        if place.connections > 1 or request.startswith(b"POST"):
            sock.sendall(answer(200, b"[]") if request.startswith(b"GET") else b"")

    with tls_place(silent_once) as place:
        assert open_remote(remote_of(place)).vms() == []
        assert place.connections == 2
        with pytest.raises(DaemonUnreachable, match=r"remote lab .* closed the connection"):
            open_remote(remote_of(place)).change("web", "start")
        assert place.connections == 3


def test_a_clock_that_is_wrong_keeps_nobody_out() -> None:
    with tls_place(valid=timedelta(hours=1)) as place:  # it ended long ago by this clock
        assert open_remote(remote_of(place)).vms() == []


@pytest.mark.parametrize("token", ["", "hanok_" + "b" * 43])
def test_a_token_that_is_not_good_says_how_to_get_another(place: Place, token: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        open_remote(remote_of(place, token=token)).vms()
    assert "lab" in caught.value.message
    assert "by the clock there" in caught.value.message
    assert f"hanok remote add lab {place.url} --replace" in str(caught.value.hint)


def test_a_role_that_is_too_small_is_told() -> None:
    def refuse(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        sock.sendall(problem(403, "forbidden", "this needs the role operator"))

    with (
        tls_place(refuse) as place,
        pytest.raises(Forbidden, match="remote lab: this needs the role operator"),
    ):
        open_remote(remote_of(place)).change("web", "start")


@pytest.mark.parametrize(
    ("first", "kind", "detail"),
    [
        (UNAUTHORIZED, Unauthorized, "does not take the token"),
        (problem(403, "forbidden", "too small"), Forbidden, "too small"),
        # An error that comes together with the call to go on
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" + problem(502, "guest", "the agent is gone"),
            GuestError,
            "the agent is gone",
        ),
    ],
)
def test_a_file_is_not_sent_to_who_refuses_it(
    first: bytes, kind: type[Exception], detail: str
) -> None:
    def refuse(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        sock.sendall(first)
        place.read_request(sock)  # what comes is counted

    content = io.BytesIO(bytes(50_000_000))
    with tls_place(refuse) as place:
        with pytest.raises(kind, match=detail):
            open_remote(remote_of(place)).write_file("web", "/x", content, 50_000_000)
        assert sum(map(len, place.heard)) < 1000
        assert content.tell() == 0


def test_a_file_is_sent_once_it_is_wanted() -> None:
    got = threading.Event()

    def take(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = 0
        while size < 3_000_000:
            size += len(sock.recv(65536))
        got.set()
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with tls_place(take) as place:
        source = io.BytesIO(bytes(3_000_000))
        open_remote(remote_of(place)).write_file("web", "/x", source, 3_000_000)
        assert got.is_set()


def test_plain_http_and_other_protocols_are_told_apart_from_hanok() -> None:
    def http(place: Place, sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with (
        plain_place(http) as place,
        pytest.raises(DaemonUnreachable, match="does not speak TLS") as caught,
    ):
        open_remote(remote_of(place)).vms()
    assert "plain HTTP" in str(caught.value.hint)

    def hang_up(place: Place, sock: socket.socket) -> None:
        sock.recv(65536)

    with (
        plain_place(hang_up) as place,
        pytest.raises(DaemonUnreachable, match=r"remote lab .* (ended|TLS)"),
    ):
        open_remote(remote_of(place)).vms()


def test_a_host_that_is_down_or_silent_or_unknown() -> None:
    port = free_port()
    down = Remote("lab", f"https://127.0.0.1:{port}", "0" * 64, TOKEN)
    with pytest.raises(DaemonUnreachable, match=f"nothing listens at port {port}"):
        open_remote(down).vms()
    unknown = Remote("lab", "https://no-such-host.invalid:1", "0" * 64, TOKEN)
    with pytest.raises(DaemonUnreachable, match="no address is known"):
        open_remote(unknown).vms()
    ended = threading.Event()

    def wait(_place: Place, _sock: socket.socket) -> None:
        ended.wait(patient(60))

    with plain_place(wait) as place:
        with pytest.raises(DaemonUnreachable, match="does not answer within"):
            open_remote(remote_of(place), connect_limit=0.3).vms()
        ended.set()


def test_one_that_answers_no_http_is_told() -> None:
    def chatter(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        sock.sendall(b"250 what do you want?\r\n")

    with tls_place(chatter) as place, pytest.raises(DaemonUnreachable, match="speak HTTP"):
        open_remote(remote_of(place)).vms()


def test_a_wait_for_an_answer_has_its_limit() -> None:
    ended = threading.Event()

    def think(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        ended.wait(patient(60))

    with tls_place(think) as place:
        transport: Transport = open_remote(remote_of(place)).transport
        with (
            pytest.raises(TimedOut, match=r"remote lab .* within 0\.2 s"),
            transport.request("GET", "/v1/vms", timeout=0.2),
        ):
            pass
        ended.set()


def test_one_thread_reads_while_another_writes() -> None:
    """Both ways at once, more than all buffers hold: who waits here would wait for ever."""
    size = 8_000_000

    def echo(_place: Place, sock: socket.socket) -> None:
        while piece := sock.recv(65536):
            sock.sendall(piece)

    with tls_place(echo) as place:
        connection = tls.connect(remote_of(place).address, place.fingerprint)
        connection.settimeout(patient(60))
        sent = bytes(range(256)) * (size // 256)
        writer = threading.Thread(target=connection.sendall, args=(sent,))
        writer.start()
        got = bytearray()
        while len(got) < size:
            got += connection.recv(65536)
        writer.join()
        assert bytes(got) == sent
        ends: list[bytes] = []
        reader = threading.Thread(target=lambda: ends.append(connection.recv(1)))
        connection.settimeout(None)
        reader.start()
        connection.shutdown(socket.SHUT_RDWR)  # wakes who waits for data
        reader.join(patient(10))
        assert ends == [b""]
        connection.close()
        connection.close()


def test_the_token_is_in_no_text_of_a_remote(place: Place) -> None:
    remote = remote_of(place)
    assert TOKEN not in repr(remote)
    assert TOKEN not in str(remote.address)


def test_requests_show_the_token_and_nothing_else_of_this_machine(place: Place) -> None:
    open_remote(remote_of(place)).vms()
    [request] = place.heard
    assert request.split(b"\r\n") == [
        b"GET /v1/vms HTTP/1.1",
        b"Host: hanok",
        f"Authorization: Bearer {TOKEN}".encode(),
        b"",
        b"",
    ]
