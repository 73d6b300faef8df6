"""What Xen needs of networks: the driver says it, app.py puts the networks' own way behind it."""

from __future__ import annotations

from typing import Protocol


class Wiring(Protocol):
    """Plugs what Dom0 makes into networks. Every method may raise HostError."""

    async def plug_link(self, network: str, vm: str, link: str) -> None:
        """Put interface ``link`` of this host in place of the tap of VM ``vm``.

        The VM is attached to the network; the same filters hold for its new interface.
        """
        ...

    async def renew_tap(self, network: str, vm: str) -> int:
        """Return an open descriptor of a new tap of VM ``vm``, in place of the one it had.

        The caller closes it.
        """
        ...
