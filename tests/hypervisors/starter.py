"""A daemon of one machine, to be killed: starts what it is given and waits.

Reads a pickled (home, fake, xen, machine) from standard input and writes ``started``.
"""

from __future__ import annotations

import asyncio
import pickle
import sys

from tests.hypervisors.rigs import make_driver


async def main() -> None:
    """Start the machine and stay until killed."""
    home, fake, xen, machine = pickle.load(sys.stdin.buffer)
    driver = make_driver(home, fake=fake, xen=xen)
    await driver.start(machine)
    print("started", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
