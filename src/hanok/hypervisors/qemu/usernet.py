"""QEMU's own networking (slirp) for machines without a tap: its arguments, and ways in.

A guest is reached through a port of the loopback that is forwarded for the moment of connecting.
slirp takes a connection before it asks the guest, so that only its own table tells whether the
guest has taken it. Sources: qemu(1), ``-netdev user``; libslirp, ``slirp_connection_info``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable

from hanok.errors import GuestError, HypervisorError
from hanok.hypervisors.blockdev import options
from hanok.model.network import UserLink

_LOOPBACK = "127.0.0.1"
_DOMAIN = "hanok"
_LOOK = 0.02
_ROW = re.compile(r"TCP\[(?P<state>\w+)\]\s+\S+\s+\S+\s+(?P<source>\d+)\s+\S+\s+(?P<target>\d+)")
_TAKEN = frozenset({"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT_1", "FIN_WAIT_2", "CLOSING"})

Monitor = Callable[[str], Awaitable[str]]


def user_netdev(name: str, link: UserLink) -> str:
    """Return the value of ``-netdev`` that makes the network of ``link``. Pure."""
    network = ipaddress.IPv4Network(link.subnet)
    # slirp's resolver wants an address of its own: the last that is neither of the others.
    resolver = next(
        str(network[-number])
        for number in (2, 3, 4)
        if str(network[-number]) not in (link.gateway, link.address)
    )
    fields = {
        "id": name,
        "net": link.subnet,
        "host": link.gateway,
        "dhcpstart": link.address,
        "dns": resolver,
        "domainname": _DOMAIN,
        "ipv6": "off",
        "restrict": "off" if link.outward else "on",
    }
    forwards = "".join(
        f",hostfwd=tcp:{port.address}:{port.host_port}-{link.address}:{port.guest_port}"
        for port in link.publish
    )
    return options(fields, "user") + forwards


async def reach(
    monitor: Monitor, card: str, address: str, port: int, timeout: float
) -> socket.socket:
    """Return a non-blocking socket that is connected to ``port`` of the guest.

    ``monitor`` runs a command of QEMU's human monitor, ``card`` is the netdev. Raises GuestError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as held:
        held.bind((_LOOPBACK, 0))
        number = held.getsockname()[1]
    said = await monitor(f"hostfwd_add {card} tcp:{_LOOPBACK}:{number}-{address}:{port}")
    if said.strip():
        raise HypervisorError(f"QEMU cannot forward a port to the guest: {said.strip()}")
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(sock, (_LOOPBACK, number))
            await _wait_taken(monitor, sock, number, f"port {port} of {address}")
    except TimeoutError:
        sock.close()
        raise GuestError(f"{address} did not answer on port {port} within {timeout:g} s") from None
    except BaseException:
        sock.close()
        raise
    finally:
        with contextlib.suppress(HypervisorError):
            await monitor(f"hostfwd_remove {card} tcp:{_LOOPBACK}:{number}")
    return sock


async def _wait_taken(monitor: Monitor, sock: socket.socket, number: int, where: str) -> None:
    """Return once the guest has taken the connection. Raises GuestError when it refuses."""
    while True:
        if states_of(await monitor("info usernet"), number) & _TAKEN or _is_spoken(sock, where):
            return
        await asyncio.sleep(_LOOK)


def _is_spoken(sock: socket.socket, where: str) -> bool:
    """Whether the guest has sent anything. Raises GuestError when the connection has ended."""
    try:
        if sock.recv(1, socket.MSG_PEEK):
            return True
    except BlockingIOError:
        return False
    except OSError as error:
        raise GuestError(f"{where} refused the connection: {error.strerror}") from error
    raise GuestError(f"{where} refused the connection")


def states_of(table: str, number: int) -> frozenset[str]:
    """Return the states of the connections through port ``number`` in ``info usernet``. Pure."""
    return frozenset(
        row["state"]
        for row in _ROW.finditer(table)
        if number in (int(row["source"]), int(row["target"]))
    )
