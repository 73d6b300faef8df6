"""Run tests in a nested KVM host: ``python -m tests.nested [--hold] [pytest's arguments]``.

Without arguments: all tests of templates and clones. As root.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from hanok.images.library import ImageLibrary
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES
from tests.nested.host import Failed, NestedHost, nested_host, say
from tests.nested.payload import make_payload

_PYTEST = ("-v", "-ra", "--durations=0", "-p", "no:cacheprovider", "--timeout=3600")
# One after another: what failed is shown at the end of each.
_RUNS = (
    ("tests/daemon/test_clones.py",),
    ("tests/hypervisors/test_clones.py",),
    ("tests/hypervisors/test_freeze.py", "-m", "vm"),
)
_LIMIT = 3 * 3600.0


def main() -> int:
    """Run the tests; return pytest's status."""
    parser = argparse.ArgumentParser("python -m tests.nested", description=__doc__)
    parser.add_argument("--hold", action="store_true", help="keep the host until interrupted")
    options, arguments = parser.parse_known_args()
    images = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    work = Path(tempfile.mkdtemp(prefix="hk-nested-", dir="/var/tmp"))
    try:
        say("packing this checkout, its packages and the micro image")
        payload = make_payload(work, _micro(images))
        with nested_host(images, payload) as host:
            try:
                _check_kvm(host)
                runs = [tuple(arguments)] if arguments else _RUNS
                return max(host.pytest((*_PYTEST, *run), _LIMIT) for run in runs)
            finally:
                if options.hold:
                    _hold(host)
    except Failed as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        shutil.rmtree(work)


def _micro(images: Path) -> Path:
    images.mkdir(parents=True, exist_ok=True)
    library = ImageLibrary(images, SystemRunner(), Account(BUILD_UID, BUILD_UID))
    image = asyncio.run(library.ensure("micro", (), lambda message, fraction: None))
    return library.path(image)


def _check_kvm(host: NestedHost) -> None:
    """See that Hanok itself finds KVM usable there, by booting its trial guest."""
    host.hanok("host", "probe")
    for facts in host.hanok("host", "show")["hypervisors"]:
        say(f"hanok host probe: {facts['accelerator']}, {facts['reason']}")
        if facts["accelerator"] == "kvm":
            return
    raise Failed("Hanok did not find KVM usable in the nested host")


def _hold(host: NestedHost) -> None:
    home = host.daemon.home
    say(f"held until interrupted; reach it by: HANOK_HOME={home} hanok exec kvm -- COMMAND")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    sys.exit(main())
