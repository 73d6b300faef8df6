"""Screens of VMs: pictures of them, viewers who are let in, and everyone else who is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.proc import find_owned
from tests.daemon.harness import Daemon, wait_until
from tests.e2e.conftest import Cli, leading
from tests.screens import WrongPasswordError, alike, lit_in, look, view

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def pc(hanok: Cli) -> Iterator[str]:
    """A VM in mode full, which has a screen by itself."""
    hanok.ok("run", "micro", "--name", "pc", "--mode", "full", "--memory", "128M")
    yield "pc"
    hanok.ok("delete", "pc", "--force")


def sockets(daemon: Daemon) -> set[str]:
    return {path.name for path in daemon.home.glob("vms/*/m/*.sock")}


def test_a_picture_shows_the_screen_and_leaves_nothing(
    hanok: Cli, daemon: Daemon, pc: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.png"
    files = {path.name for path in daemon.home.glob("vms/*/m/*")}
    told = hanok.json("screenshot", pc, str(file))
    assert (told["file"], told["size"]) == (str(file), file.stat().st_size)
    picture = look(file.read_bytes())
    assert (picture.width, picture.height) == (720, 400)
    assert picture.colours >= 2
    assert picture.lit > 1000, "the firmware has said who it is"
    assert list(tmp_path.iterdir()) == [file]
    assert {path.name for path in daemon.home.glob("vms/*/m/*")} == files
    assert alike(look(hanok("screenshot", pc, "-").stdout).lit, picture.lit)
    assert hanok.json("show", pc)["display"] == "vga"


def test_a_viewer_gets_in_with_the_password_alone(hanok: Cli, daemon: Daemon, pc: str) -> None:
    picture = look(hanok("screenshot", pc, "-").stdout)
    with leading(hanok.environ(), pc) as told:
        assert told["address"] == "127.0.0.1"
        port, password = told["port"], told["password"]
        assert len(password) == 8
        for wrong in ("", "a", password[:7], password.swapcase()):
            with pytest.raises(WrongPasswordError):
                view("127.0.0.1", port, wrong)
        seen = view("127.0.0.1", port, password)
        assert pc in seen.name
        assert (seen.width, seen.height) == (picture.width, picture.height)
        assert alike(lit_in(seen.pixels), picture.lit)
        assert "vnc.sock" not in sockets(daemon), "nothing listens once a viewer is in"
        # The next who asks gets another, and this one counts no more.
        with leading(hanok.environ(), pc) as next_time:
            assert next_time["password"] != password
            with pytest.raises(WrongPasswordError):
                view("127.0.0.1", port, password)
            again = view("127.0.0.1", port, next_time["password"])
            assert alike(lit_in(again.pixels), picture.lit)


def test_the_password_is_on_no_command_line_and_in_no_log(
    hanok: Cli, daemon: Daemon, pc: str
) -> None:
    with leading(hanok.environ(), pc) as told:
        view("127.0.0.1", told["port"], told["password"])
        secret = told["password"].encode()
        (qemu,) = find_owned(daemon.home, "vm")
        arguments = Path(f"/proc/{qemu.pid}/cmdline").read_bytes()
        assert secret not in arguments
        assert b"none,password=on" in arguments
        status = Path(f"/proc/{qemu.pid}/status").read_text()
        assert "Seccomp:\t2" in status
        assert "CapEff:\t0000000000000000" in status
        for path in (daemon.home / "test.log", *daemon.home.glob("vms/*/m/qemu.log")):
            assert secret not in path.read_bytes()


def test_the_next_daemon_shows_it_too(hanok: Cli, daemon: Daemon, pc: str) -> None:
    before = look(hanok("screenshot", pc, "-").stdout)
    daemon.kill()
    daemon.start()
    wait_until(lambda: hanok.json("show", pc)["state"] == "ready", 30, "it is taken over")
    assert alike(look(hanok("screenshot", pc, "-").stdout).lit, before.lit)
    with leading(hanok.environ(), pc) as told:
        assert view("127.0.0.1", told["port"], told["password"]).width == before.width


def test_without_a_screen_the_error_says_what_to_do(hanok: Cli, pc: str, tmp_path: Path) -> None:
    hanok.ok("run", "micro", "--name", "blind", "--memory", "128M")
    assert hanok.json("show", "blind")["display"] == "none"
    file = tmp_path / "none.png"
    for command in (("screenshot", "blind", str(file)), ("console", "blind", "--vnc")):
        done = hanok(*command)
        assert done.returncode == 1
        assert b"blind has no screen" in done.stderr
        assert b"--display vga" in done.stderr
    assert not file.exists()
    hanok.ok("stop", "blind", "--force")
    hanok.ok("delete", "blind", "--force")
    done = hanok("screenshot", pc, str(tmp_path / "no" / "such" / "folder.png"))
    assert done.returncode == 2
    assert b"cannot be written" in done.stderr


def test_para_has_a_screen_where_it_is_asked_for(hanok: Cli, tmp_path: Path) -> None:
    hanok.ok("run", "micro", "--name", "seen", "--memory", "128M", "--display", "vga")
    assert look(hanok("screenshot", "seen", "-").stdout).lit > 1000
    done = hanok("template", "create", "frozen", "--from", "seen")
    assert b"display none" in done.stderr
    hanok.ok("stop", "seen", "--force")
    done = hanok("screenshot", "seen", str(tmp_path / "stopped.png"))
    assert b"seen is stopped" in done.stderr
    hanok.ok("delete", "seen", "--force")
