"""A guest of Xen by Hanok, asked for in its Dom0: the seconds from the request to its end.

``python by_hanok.py MODE SEED`` prints them and the guest's own, as JSON, and leaves a copy of the
guest's seed at SEED, so that the same guest can be started by hand. It runs there with the Python
that has Hanok.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from hanok.client.daemon import open_client

_HOME = Path("/var/lib/hanok")
NAME = "by-hanok"
_SHAPE: dict[str, object] = {
    "image": "micro",
    "memory": "128M",
    "disk": "512M",
    "networks": [],
    "cold": True,
    "ready": {"timeout": 600},
}


def main() -> None:
    """Start the guest once, delete it, print the seconds."""
    mode, seed = sys.argv[1:]
    client = open_client({**os.environ, "HANOK_HOME": str(_HOME)}, start=False)
    client.vms()  # the connection is there before the clock runs
    started = time.perf_counter()
    client.finish(client.run({**_SHAPE, "name": NAME, "mode": mode}))
    asked = time.perf_counter() - started
    vm = client.vm(NAME)
    shutil.copyfile(_HOME / "vms" / vm["uuid"] / "seed.iso", seed)
    client.finish(client.delete(NAME, force=True))
    print(json.dumps({"asked": asked, "ready": vm["ready_seconds"]}))


if __name__ == "__main__":
    main()
