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
# What else runs or is off there before the reboot, and says what becomes of it.
_FIRST = {**_GUEST, "name": "first", "autostart": {"start": "yes", "order": 1}}
_NEVER = {**_GUEST, "name": "never", "autostart": {"start": "no"}}
_LIMIT = 600


def _boot_id(bench: Bench) -> str | None:
    """Return which start of the host this is; None while it does not answer."""
    try:
        return bench.daemon.sh("one", "cat /proc/sys/kernel/random/boot_id", 30)
    except (HanokError, AssertionError):
        return None


def _state(client: Client, name: str = "inner") -> str:
    try:
        return client.vm(name)["state"]
    except HanokError as error:
        return error.message


def _done(client: Client, operation: str) -> None:
    *_, last = client.follow(operation)
    assert last["state"] == "done", last


def test_a_reboot_is_gentle_and_brings_back_what_ran() -> None:
    with new_bench(lab_images()) as bench:
        (remote,) = bench.lab.up(Order(("one",), Shape("kvm"), cold=True))
        inside = open_remote(remote)
        for guest in (_FIRST, _NEVER, _GUEST):
            _done(inside, inside.run({**guest, "ready": {"timeout": _LIMIT}})["id"])
        _done(inside, inside.change("first", "stop", {})["id"])
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
        kept = inside.execute("inner", ["cat", "/etc/kept"], stdin=None, timeout=120)
        assert kept["exit_status"] == 0
        told = [
            (event["target"], event["name"])
            for event in inside.events(follow=False)
            if event["name"] in ("stopped", "failed", "ready")
        ]
        # In their order: what was off and starts with the host, then what ran.
        assert told[-2:] == [("first", "ready"), ("inner", "ready")]
        assert _of(told, "inner") == _of(told, "first") == ["ready", "stopped", "ready"]
        assert _of(told, "never") == ["ready", "stopped"]
        assert _state(inside, "never") == "stopped"


def _of(told: list[tuple[str, str]], name: str) -> list[str]:
    return [what for target, what in told if target == name]
