"""What the keeper is told when it starts, and the ports that it is told later."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hanok.errors import InvalidInput

BRIDGE = "br0"
OUT = "out0"
# Every network has its own link layer, so all gateways may share one address; no VM's MAC
# begins like this.
GATEWAY_MAC = "02:68:61:6e:6f:6b"
# The leg that pasta makes; link-local, so that it never collides with a subnet.
OUT_ADDRESS = "169.254.77.2"
OUT_GATEWAY = "169.254.77.1"
OUT_PREFIX = 24
DNS_FORWARD = "169.254.77.53"
DOMAIN = "hanok"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Config:
    """How to start: ``socket`` and ``routes`` are inherited descriptors.

    ``uid`` is the unprivileged user to become, None when the daemon is not root. ``socket``
    listens for the daemon; ``routes`` is a netlink socket in the host's network namespace.
    ``dnsmasq`` is the program's path, and ``mark`` the name and the value of the variable in its
    environment that says whose it is.
    """

    name: str
    subnet: str
    dnsmasq: str
    mark: tuple[str, str]
    uid: int | None
    socket: int
    routes: int

    def dump(self) -> str:
        """Return the one argument of the keeper's command line."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Config:
        """Return the configuration that ``dump`` wrote."""
        body = json.loads(text)
        return cls(**{**body, "mark": tuple(body["mark"])})

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The subnet."""
        return ipaddress.IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        """The keeper's own address in the subnet: its first."""
        return str(self.network[1])


@dataclass(frozen=True)
class Port:
    """A VM's port: who may send with which addresses, under which name it is found."""

    vm: str
    host_name: str
    mac: str
    address: str

    @property
    def tap(self) -> str:
        """The name of its tap, 15 characters: the last 56 bits of the VM's uuid, all random."""
        return "t" + self.vm.replace("-", "")[-14:]

    def is_plugged_as(self, other: Port) -> bool:
        """Whether it is the same plug, whatever it is called."""
        return (self.vm, self.mac, self.address) == (other.vm, other.mac, other.address)


def parse_port(body: Mapping[str, Any], config: Config) -> Port:
    """Return the port in a message; raises InvalidInput when it may not become part of a rule."""
    port = Port(
        vm=str(body["vm"]),
        host_name=str(body["host_name"]),
        mac=str(body["mac"]).lower(),
        address=str(ipaddress.IPv4Address(str(body["address"]))),
    )
    if _UUID.fullmatch(port.vm) is None:
        raise InvalidInput(f"{port.vm!r} is not a uuid", field="vm")
    if _NAME.fullmatch(port.host_name) is None:
        raise InvalidInput(f"{port.host_name!r} is not a host name", field="host_name")
    if _MAC.fullmatch(port.mac) is None or int(port.mac[:2], 16) & 1 or port.mac == GATEWAY_MAC:
        raise InvalidInput(f"{port.mac!r} is not the MAC of a guest", field="mac")
    address = ipaddress.IPv4Address(port.address)
    reserved = (config.gateway, str(config.network[0]), str(config.network[-1]))
    if address not in config.network or port.address in reserved:
        raise InvalidInput(
            f"{port.address} is not the address of a guest",
            field="address",
            expected=f"an address of {config.subnet} other than {config.gateway}",
        )
    return port
