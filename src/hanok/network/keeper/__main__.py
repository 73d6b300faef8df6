"""``python -m hanok.network.keeper CONFIG``: hold one network until SIGTERM."""

from __future__ import annotations

import sys

# asyncio does without where Python was built without it. The keeper speaks no TLS, and OpenSSL
# is a tenth of its memory and of the time that it takes to start.
sys.modules["ssl"] = None  # type: ignore[assignment]

import asyncio  # noqa: E402

from hanok.network.keeper import namespace  # noqa: E402
from hanok.network.keeper.config import Config  # noqa: E402
from hanok.network.keeper.server import serve  # noqa: E402


def main() -> None:
    """Enter the namespaces, then serve."""
    config = Config.parse(sys.argv[1])
    namespace.enter(config.uid)
    if sys.version_info < (3, 12):  # later versions choose it by themselves
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    sys.exit(asyncio.run(serve(config)))


main()
