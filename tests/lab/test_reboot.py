"""A host that is rebooted shuts its guests down first, and runs them again afterwards."""

from __future__ import annotations

import os

import pytest

from hanok.client.client import Client
from hanok.client.remotes import open_remote
from hanok.errors import HanokError
from hanok.lab.hosts import Order
from hanok.lab.plan import Shape
from tests.daemon.harness import wait_until
from tests.lab.harness import Bench, lab_images, new_bench
from tests.lab.server.machine import REBOOT_SOON
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(3600)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]

_GUEST = {"name": "inner", "image": "micro", "memory": "96M", "disk": "256M", "cold": True}
_LIMIT = 600


def _boot_id(bench: Bench) -> str | None:
    """Return which start of the host this is; None while it does not answer."""
    try:
        return bench.daemon.sh("one", "cat /proc/sys/kernel/random/boot_id", 30)
    except (HanokError, AssertionError):
        return None


def _state(client: Client) -> str:
    try:
        return client.vm("inner")["state"]
    except HanokError as error:
        return error.message


def test_a_reboot_is_gentle_and_brings_back_what_ran() -> None:
    with new_bench(lab_images()) as bench:
        (remote,) = bench.lab.up(Order(("one",), Shape("kvm"), cold=True))
        inside = open_remote(remote)
        wanted = {**_GUEST, "ready": {"timeout": _LIMIT}}
        *_, last = inside.follow(inside.run(wanted)["id"])
        assert last["state"] == "done", last
        # Not written to the disk yet: only a guest that shuts down itself keeps it.
        keep = ["sh", "-c", "echo kept >/etc/kept"]
        assert inside.execute("inner", keep, stdin=None, timeout=120)["exit_status"] == 0
        before = _boot_id(bench)
        assert before is not None
        bench.daemon.sh("one", REBOOT_SOON)
        wait_until(
            lambda: _boot_id(bench) not in (None, before), _LIMIT, "the host has started anew"
        )
        wait_until(lambda: _state(inside) == "ready", _LIMIT, "the guest is back")
        told = inside.execute("inner", ["cat", "/etc/kept"], stdin=None, timeout=120)
        assert told["exit_status"] == 0
        stopped = [
            event["name"]
            for event in inside.events(follow=False)
            if event["target"] == "inner" and event["name"] in ("stopped", "failed", "ready")
        ]
        assert stopped == ["ready", "stopped", "ready"]
