"""Screens and panics as the daemon knows them, on the fake hypervisor."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hanok.client.tunnel import open_console, open_screen
from hanok.errors import Conflict, HypervisorError, InvalidInput, NotFound
from hanok.guest.panic import SILENCE
from tests.daemon.harness import Daemon, wait_until
from tests.daemon.test_faults import break_it
from tests.screens import look

PANIC = b"\r\nworking\npanic ../kern/a.c:1: f: nothing to run"


@pytest.fixture
def daemon(fake_daemon: Daemon) -> Iterator[Daemon]:
    yield fake_daemon
    break_it(fake_daemon)
    fake_daemon.empty()


def say(daemon: Daemon, name: str, text: bytes) -> None:
    """Have the console of a guest say ``text``."""
    with open_console(daemon.client, name) as tunnel:
        tunnel.send(text)
        heard = b""
        while text[-10:] not in heard:
            heard += tunnel.receive(20) or b""


def test_a_picture_and_a_viewer(daemon: Daemon) -> None:
    daemon.run("a", mode="full")
    assert daemon.client.vm("a").get("display") == "vga"
    assert look(daemon.client.screenshot("a")).lit == 0
    admitted = [daemon.client.admit_viewers("a") for _ in range(2)]
    assert admitted[0]["password"] != admitted[1]["password"]
    assert {len(one["password"]) for one in admitted} == {8}
    assert admitted[0]["seconds"] == 300
    with open_screen(daemon.client, "a") as tunnel:
        assert tunnel.receive(20) == b"RFB 003.008\n"
        tunnel.send(b"hello")
        assert tunnel.receive(20) == b"hello"
    assert admitted[0]["password"] not in daemon.log()


def test_what_has_no_screen_says_so(daemon: Daemon) -> None:
    daemon.run("a", mode="full", display="none")
    daemon.run("b")
    for name in ("a", "b"):
        for ask in (daemon.client.screenshot, daemon.client.admit_viewers):
            with pytest.raises(Conflict, match="has no screen"):
                ask(name)
        with pytest.raises(Conflict, match="has no screen"), open_screen(daemon.client, name):
            pass
    with pytest.raises(NotFound):
        daemon.client.screenshot("none")
    with pytest.raises(InvalidInput) as caught:
        daemon.client.run({"name": "c", "image": "micro", "display": "vnc"})
    assert caught.value.field == "display"
    daemon.run("d", display="vga")
    assert daemon.client.screenshot("d")
    daemon.done(daemon.client.change("d", "stop", {"force": True}))
    with pytest.raises(Conflict, match="d is stopped"):
        daemon.client.screenshot("d")


def test_a_picture_that_cannot_be_made_is_an_error(daemon: Daemon) -> None:
    daemon.run("a", mode="full")
    break_it(daemon, methods={"screenshot": {"error": "the card is on fire"}})
    with pytest.raises(HypervisorError, match="the card is on fire"):
        daemon.client.screenshot("a")


def test_a_screen_counts_as_overhead(daemon: Daemon) -> None:
    daemon.run("with", mode="full")
    daemon.run("without", mode="full", display="none")
    taken = [daemon.client.vm(name)["overhead"] for name in ("with", "without")]
    assert taken[0] - taken[1] == 32 * 1024 * 1024


def test_a_panic_on_the_console_makes_it_failed_until_it_starts_again(daemon: Daemon) -> None:
    daemon.run("a")
    daemon.kill()
    break_it(daemon, silent_agent=True)
    daemon.start()
    say(daemon, "a", PANIC)
    wait_until(lambda: daemon.client.vm("a")["state"] == "failed", 30, "the panic is seen")
    reason = daemon.client.vm("a")["reason"] or ""
    assert reason.startswith("the guest's kernel panicked: panic ../kern/a.c:1: f: nothing to run")
    assert "working" in reason
    # It is there still, also for the next daemon, and a start begins anew.
    daemon.kill()
    break_it(daemon)
    daemon.start()
    assert daemon.client.vm("a")["state"] == "failed"
    daemon.done(daemon.client.change("a", "start"))
    vm = daemon.client.vm("a")
    assert (vm["state"], vm["reason"]) == ("ready", None)


def test_a_guest_whose_agent_answers_has_not_panicked(daemon: Daemon) -> None:
    daemon.run("a")
    say(daemon, "a", PANIC)
    # Twice what is waited for a panic to stay the last word.
    time.sleep(2 * SILENCE)
    assert daemon.client.vm("a")["state"] == "ready"
