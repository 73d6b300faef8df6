"""Networks and the ports of VMs on them."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator

from hanok.model.base import Frozen, Name
from hanok.model.vm import Publish


class NetworkSpec(Frozen):
    """A network as a user defines it; it lives in a network namespace of its own."""

    name: Name
    subnet: str | None = Field(default=None, description="IPv4 with prefix; none: the next free")
    outward: bool = True

    @field_validator("subnet")
    @classmethod
    def _is_private(cls, value: str | None) -> str | None:
        if value is None:
            return None
        subnet = ipaddress.IPv4Network(value)
        if not subnet.is_private or not 16 <= subnet.prefixlen <= 28:
            raise ValueError("expected a private IPv4 network from /16 to /28")
        return str(subnet)


class NetworkRecord(Frozen):
    """What the store keeps of a network."""

    name: Name
    subnet: str
    outward: bool = True
    uid: int = Field(description="the uid that owns its namespaces when the daemon is root")
    created: float = 0
    stack: str | None = Field(default=None, description="the stack that made it")

    @property
    def gateway(self) -> str:
        """The first address of the subnet: DNS, DHCP and the way out."""
        return str(next(ipaddress.IPv4Network(self.subnet).hosts()))


class NetworkPort(Frozen):
    """A VM's port: what the network needs to know to serve, pin and name it."""

    vm: str = Field(description="uuid")
    host_name: Name
    mac: str
    address: str
    publish: tuple[Publish, ...] = ()


class UserLink(Frozen):
    """A VM's network that its hypervisor makes itself, in ordinary sockets (QEMU's user netdev)."""

    subnet: str
    gateway: str
    address: str
    outward: bool = True
    publish: tuple[Publish, ...] = ()


# What a network card is plugged into: the open descriptor of a tap, or nothing of the host's.
Plug = int | UserLink


class NetworkingFacts(Frozen):
    """What networks are on this host; ``limits`` are what they lack, for people."""

    kind: str = Field(description="namespace, user or none")
    reason: str = Field(default="", description="why no better one")
    limits: tuple[str, ...] = ()


class NetworkStatus(Frozen):
    """How a network is seen to be."""

    running: bool
    outward: bool = False
    reason: str | None = Field(default=None, description="why it is not running or leads nowhere")
