"""A daemon that is killed while it freezes a machine.

Reads a pickled (home, source, loader) from standard input, adopts the source, freezes it, and
writes ``held`` once the source is paused.
"""

from __future__ import annotations

import asyncio
import pickle
import sys

from tests.hypervisors.frozen import room_for
from tests.hypervisors.rigs import make_driver


async def main() -> None:
    """Freeze until killed."""
    home, source, loader = pickle.load(sys.stdin.buffer)
    driver = make_driver(home, fake=False)
    await driver.adopt(source)

    async def hang() -> None:
        print("held", flush=True)
        await asyncio.Event().wait()

    with room_for(source, home) as (memory, state):
        await driver.freeze(source.uuid, loader, (), memory, state, hang)


if __name__ == "__main__":
    asyncio.run(main())
