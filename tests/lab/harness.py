"""Lab hosts for tests: a local daemon, remotes of its own, and the lab of both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hanok.client.remotes import RemoteBook
from hanok.client.wire import OperationWire
from hanok.images.library import ImageLibrary
from hanok.lab import plan
from hanok.lab.hosts import Lab
from hanok.proc import Account, SystemRunner
from tests.conftest import BUILD_UID, IMAGES
from tests.daemon.harness import Daemon, new_daemon


class Bench:
    """A local daemon, remotes of its own, and the lab of both."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.book = RemoteBook(folder)
        self.lab = Lab(daemon.client, self.book, self._follow, print)

    def _follow(self, operations: Sequence[OperationWire]) -> list[OperationWire]:
        return [list(self.daemon.client.follow(one["id"]))[-1] for one in operations]

    def boots(self) -> dict[str, str | None]:
        """Return how each lab host came up."""
        client = self.daemon.client
        return {vm["name"]: client.vm(vm["name"])["boot"] for vm in client.vms()}


def lab_images(*refs: str) -> Path:
    """Return the folder of images, with those of lab hosts in it: ``refs``, or the usual one."""
    folder = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    library = ImageLibrary(folder, SystemRunner(), Account(BUILD_UID, BUILD_UID))
    for ref in refs or (plan.IMAGES["kvm"],):
        asyncio.run(library.ensure(ref, (), lambda message, fraction: None))
    return folder


@contextlib.contextmanager
def new_bench(images: Path) -> Iterator[Bench]:
    """Give a lab without hosts; at the end no host, template, process or file is left."""
    with (
        tempfile.TemporaryDirectory(prefix="hk-config-", dir="/tmp") as folder,
        new_daemon("qemu", images) as daemon,
    ):
        bench = Bench(daemon, Path(folder))
        yield bench
        bench.lab.down(bench.lab.all_names())
        bench.lab.clean()
        assert daemon.client.templates() == []
        assert bench.book.load() == {}
