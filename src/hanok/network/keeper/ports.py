"""The ports of a network, found by VM, MAC, address and name in the same time however many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hanok.errors import Conflict
from hanok.network.keeper.config import Port

MOST_PORTS = 1023  # of a Linux bridge: BR_MAX_PORTS in br_private.h
_DISTINCT = ("mac", "address", "host_name", "tap")


class Ports:
    """Ports of which no two share a MAC, an address, a host name or the name of a tap."""

    def __init__(self, ports: Iterable[Port] = ()) -> None:
        """Raises Conflict when two of ``ports`` share something."""
        self._ports: dict[str, Port] = {}
        self._owners: dict[tuple[str, str], Port] = {}
        for port in ports:
            self.put(port)

    def __iter__(self) -> Iterator[Port]:
        return iter(self._ports.values())

    def get(self, vm: str) -> Port | None:
        """Return the port of ``vm``."""
        return self._ports.get(vm)

    def find(self, address: str) -> Port | None:
        """Return the port whose address this is."""
        return self._owners.get(("address", address))

    def check(self, port: Port) -> None:
        """Raise Conflict when another VM has something of ``port``, or the network is full."""
        if port.vm not in self._ports and len(self._ports) >= MOST_PORTS:
            raise Conflict(
                f"the network is full: it takes {MOST_PORTS} VMs",
                field="networks",
                hint="create another network",
            )
        for key in _keys(port):
            other = self._owners.get(key)
            if other is not None and other.vm != port.vm:
                field, value = key
                raise Conflict(
                    f"{field} {value} is taken by VM {other.vm} of the same network", field=field
                )

    def put(self, port: Port) -> None:
        """Add ``port``, in place of what its VM had. Raises Conflict as ``check``."""
        self.check(port)
        self.remove(port.vm)
        self._ports[port.vm] = port
        for key in _keys(port):
            self._owners[key] = port

    def remove(self, vm: str) -> None:
        """Forget the port of ``vm`` if there is one."""
        port = self._ports.pop(vm, None)
        if port is not None:
            for key in _keys(port):
                del self._owners[key]


def _keys(port: Port) -> Iterator[tuple[str, str]]:
    return ((field, getattr(port, field)) for field in _DISTINCT)
