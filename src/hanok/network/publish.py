"""Listening sockets of published ports, made in the host's network namespace."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from hanok.errors import Conflict, HostError, InvalidInput
from hanok.model.vm import Publish

Key = tuple[str, int]  # address and port on the host
_BACKLOG = 128


def open_listeners(wanted: Iterable[Publish]) -> dict[Key, socket.socket]:
    """Return a listening socket for each of ``wanted``, or none at all.

    Raises Conflict when a port is taken, InvalidInput when the host has no such address,
    HostError when it may not be opened; field ``publish``.
    """
    with ExitStack() as undo:
        opened = {}
        for publish in wanted:
            sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            _listen(sock, publish)
            opened[publish.address, publish.host_port] = sock
        undo.pop_all()
        return opened


def _listen(sock: socket.socket, publish: Publish) -> None:
    # Connections of an earlier listener that are in TIME_WAIT must not keep the port.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((publish.address, publish.host_port))
        sock.listen(_BACKLOG)
    except OSError as error:
        raise _explain(error, publish) from error


def _explain(error: OSError, publish: Publish) -> Exception:
    where = f"{publish.address}:{publish.host_port}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {publish.host_port} of the host is taken ({where})",
            field="publish",
            expected="a port of the host that nothing listens on",
            hint=f"choose another, or find who has it: ss -ltnp 'sport = {publish.host_port}'",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidInput(
            f"this host has no address {publish.address}",
            field="publish",
            expected="127.0.0.1, 0.0.0.0 or an address of this host",
        )
    return HostError(
        f"port {where} cannot be opened: {error.strerror}",
        field="publish",
        hint="ports below 1024 need root",
    )


def as_mapping(wanted: Iterable[Publish]) -> dict[Key, int]:
    """Return guest ports by address and port on the host.

    Raises InvalidInput when the same port of the host is named twice.
    """
    found: dict[Key, int] = {}
    for publish in wanted:
        key = (publish.address, publish.host_port)
        if key in found:
            raise InvalidInput(
                f"{publish.address}:{publish.host_port} is published twice", field="publish"
            )
        found[key] = publish.guest_port
    return found


def as_publishes(ports: Mapping[Key, int]) -> tuple[Publish, ...]:
    """Return what ``as_mapping`` was made of."""
    return tuple(
        Publish(address=address, host_port=port, guest_port=guest)
        for (address, port), guest in ports.items()
    )
