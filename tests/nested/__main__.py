"""Run tests in a nested host: ``python -m tests.nested [--on kvm|xen] [--hold] [for pytest...]``.

Without arguments for pytest: on KVM all tests of QEMU, templates and clones; in a Dom0 of Xen the
conformance suite and a guest's whole life, in each mode. As root.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hanok.images.library import ImageLibrary
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES
from tests.e2e.test_many_clones import PACKAGES
from tests.nested.host import KINDS, Failed, NestedHost, nested_host, say
from tests.nested.payload import make_payload

_PYTEST = (
    *("-v", "-ra", "--durations=0", "-p", "no:cacheprovider", "-p", "tests.nested.at_once"),
    "--timeout=3600",
)
# One after another: what failed is shown at the end of each too.
_RUNS = {
    "kvm": (
        ("tests/hypervisors", "-m", "vm"),
        ("tests/daemon/test_clones.py",),
        ("tests/daemon/test_warm.py",),
        ("tests/e2e/test_many_clones.py",),
    ),
    "xen": (
        ("tests/hypervisors/test_conformance.py", "-m", "vm", "-k", "xen"),
        (
            "tests/e2e/test_xen.py",
            "tests/e2e/test_xen_faults.py",
            "tests/e2e/test_xen_change.py",
        ),
    ),
}
_LIMIT = 3 * 3600.0


def main() -> int:
    """Run the tests; return pytest's status."""
    parser = argparse.ArgumentParser("python -m tests.nested", description=__doc__)
    parser.add_argument("--on", choices=sorted(KINDS), default="kvm", help="its hypervisor")
    parser.add_argument("--hold", action="store_true", help="keep the host until interrupted")
    options, arguments = parser.parse_known_args()
    # As it is by default: a shell's background jobs ignore it. And SIGTERM too leaves nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    images = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    work = Path(tempfile.mkdtemp(prefix="hk-nested-", dir="/var/tmp"))
    try:
        say("packing this checkout, its packages and images")
        payload = make_payload(work, asyncio.run(_images(images, options.on, arguments)))
        with nested_host(KINDS[options.on], images, payload) as host:
            try:
                _check_accelerator(host, options.on)
                runs = [tuple(arguments)] if arguments else _RUNS[options.on]
                return max(host.pytest((*_PYTEST, *run), _LIMIT) for run in runs)
            finally:
                if options.hold:
                    _hold(host)
    except Failed as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        shutil.rmtree(work)


async def _images(folder: Path, on: str, arguments: Sequence[str]) -> list[Path]:
    """Return the folders of the images that the tests need, built when they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    library = ImageLibrary(folder, SystemRunner(), Account(BUILD_UID, BUILD_UID))
    wanted: list[tuple[str, tuple[str, ...]]] = [("micro", ())]
    # It takes minutes to copy: only for the tests that boot it.
    runs = [tuple(arguments)] if arguments else _RUNS[on]
    if any("test_many_clones" in argument for run in runs for argument in run):
        wanted.append(("debian:12", tuple(PACKAGES)))
    return [
        library.path(await library.ensure(*image, lambda message, fraction: None))
        for image in wanted
    ]


def _check_accelerator(host: NestedHost, expected: str) -> None:
    """See that Hanok itself finds the hypervisor usable there; KVM by booting its trial guest."""
    if expected == "kvm":
        host.hanok("host", "probe")
    for facts in host.hanok("host", "show")["hypervisors"]:
        say(f"hanok host show: {facts['accelerator']}, {facts['reason']}")
        if facts["accelerator"] == expected:
            return
    raise Failed(f"Hanok did not find {expected} usable in the nested host")


def _hold(host: NestedHost) -> None:
    home = host.daemon.home
    say(f"held until interrupted; reach it by: HANOK_HOME={home} hanok exec nested -- COMMAND")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
