"""What QEMU's table of user networking says, and the kinds of networks that a user can have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hanok.errors import InvalidInput
from hanok.hypervisors.qemu.usernet import states_of
from hanok.network import choice
from hanok.proc import SystemRunner

# Recorded: QEMU 7.2, one published port, one port for a moment and a connection through each.
TABLE = """Hub -1 (net0):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[SYN_SENT]      31       127.0.0.1 40123       10.87.0.2    81     0     0\r
  TCP[ESTABLISHED]   30       127.0.0.1 18191       10.87.0.2    80     0     0\r
  TCP[HOST_FORWARD]  29       127.0.0.1 40123       10.87.0.2    81     0     0\r
  TCP[HOST_FORWARD]  12       127.0.0.1 18191       10.87.0.2    80     0     0\r
  UDP[236 sec]       33       10.87.0.2 42133     10.87.3.254    53     0     0\r
"""


def test_a_connection_counts_once_the_guest_has_taken_it() -> None:
    assert states_of(TABLE, 18191) == {"ESTABLISHED", "HOST_FORWARD"}
    assert states_of(TABLE, 40123) == {"SYN_SENT", "HOST_FORWARD"}
    assert states_of(TABLE, 42133) == frozenset()
    assert states_of("", 18191) == frozenset()


async def test_what_was_chosen_stays_while_anything_runs(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = SystemRunner()
    assert await choice.choose_networks("user", short_tmp, runner) == (
        "user",
        "HANOK_NETWORK says so",
    )
    monkeypatch.setattr(choice, "find_owned", lambda _: iter((object(),)))
    kind, _ = await choice.choose_networks("namespace", short_tmp, runner)
    assert kind == "user"
    monkeypatch.setattr(choice, "find_owned", lambda _: iter(()))
    kind, _ = await choice.choose_networks("namespace", short_tmp, runner)
    assert kind == "namespace"


async def test_another_word_is_refused(short_tmp: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        await choice.choose_networks("bridge", short_tmp, SystemRunner())
    assert caught.value.field == "HANOK_NETWORK"


async def test_an_ordinary_user_is_told_what_is_closed(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.geteuid() != 0 or await choice.find_obstacle(SystemRunner()) is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = await choice.find_obstacle(SystemRunner(), tun=short_tmp / "tun")
    assert told is not None
    assert "cannot be opened (No such file or directory)" in told
