"""What a remote host may answer that is nothing a Hanok would: it is told, and costs little."""

from __future__ import annotations

import json
import socket

import pytest

from hanok.client.remotes import Remote, open_remote
from hanok.errors import DaemonUnreachable, HanokError
from tests.cli.tls_stand_in import TOKEN, Place, answer, tls_place

DEEP = b"[" * 100_000


def asked(*pieces: bytes) -> HanokError:
    """Return the error with which a question to a host that answers ``pieces`` ends."""

    def talk(place: Place, sock: socket.socket) -> None:
        place.read_request(sock)
        for piece in pieces:
            sock.sendall(piece)

    with tls_place(talk) as place, pytest.raises(HanokError) as caught:
        open_remote(Remote("lab", place.url, place.fingerprint, TOKEN)).vms()
    return caught.value


def test_nested_without_end() -> None:
    assert "not JSON" in asked(answer(200, DEEP)).message
    assert "status 500" in asked(answer(500, DEEP)).message


def test_errors_whose_parts_are_no_text() -> None:
    parts = {"code": ["x"], "detail": 5, "field": [1], "expected": {}, "hint": ["\x1b[2J"]}
    error = asked(answer(409, json.dumps(parts).encode()))
    assert "status 409" in error.message
    assert (error.field, error.expected, error.hint) == (None, None, None)


@pytest.mark.parametrize("piece", [b"X: " + b"y" * 8192 + b"\r\n", b"y" * 8192])
def test_a_head_without_end(piece: bytes) -> None:
    error = asked(b"HTTP/1.1 200 OK\r\nX: ", *[piece] * 100)
    assert isinstance(error, DaemonUnreachable)
    assert "does not come to an end" in error.message
