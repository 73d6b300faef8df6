"""``python -m hanok.network.keeper CONFIG``: hold one network until SIGTERM."""

from __future__ import annotations

import asyncio
import sys

from hanok.network.keeper import namespace
from hanok.network.keeper.config import Config
from hanok.network.keeper.server import serve


def main() -> None:
    """Enter the namespaces, then serve."""
    config = Config.parse(sys.argv[1])
    namespace.enter(config.uid)
    if sys.version_info < (3, 12):  # later versions choose it by themselves
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    sys.exit(asyncio.run(serve(config)))


main()
