"""A daemon's side of a network, to be killed: ``python -m tests.network.daemon HOME SOCKET PORT``.

It brings the network up, attaches one VM, hands the tap over the inherited socket, as a daemon
hands it to a hypervisor, and waits for its end.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from hanok.network.keepers import KeeperNetworks
from hanok.proc import SystemRunner
from tests.network.conftest import RECORD, make_port


async def main(home: Path, descriptor: int, host_port: int) -> None:
    """Serve until killed."""
    networks = KeeperNetworks(home / "networks", home, SystemRunner())
    await networks.ensure(RECORD, [])
    tap = await networks.attach(RECORD.name, make_port(2, f"{host_port}:80"))
    await networks.settle(RECORD.name)
    with socket.socket(fileno=descriptor) as sock:
        socket.send_fds(sock, [b"tap"], [tap])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
