"""Real guests of another host: everything by its TCP port, with a token, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hanok.client.remotes import Remote, RemoteBook
from hanok.model.image import Image
from hanok.units import GIB
from tests.cli.test_apply import plan
from tests.daemon.harness import Daemon, new_daemon
from tests.e2e.conftest import Cli, leading, use_console
from tests.machine import patient
from tests.screens import WrongPasswordError, alike, lit_in, look, view

pytestmark = pytest.mark.vm

SHAPE = ("--memory", "128M", "--disk", "1G")


@dataclass
class Away(Cli):
    """The command of someone who has a token for the daemon, and no daemon of his own."""

    home: Path
    remote: str = "lab"

    def environ(self) -> dict[str, str]:
        """The environment of the command."""
        own = {"HANOK_HOME": str(self.home), "HANOK_CONFIG": str(self.home / "config")}
        return {**os.environ, **own, "HANOK_REMOTE": self.remote, "NO_COLOR": "1"}

    def __call__(
        self, *arguments: str, input: bytes | None = None, limit: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command and return what it gave."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "hanok.cli", *arguments],
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            env=self.environ(),
            timeout=patient(limit),
        )
        assert not (self.home / "hanokd.sock").exists()
        return done


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon on QEMU that listens at a port of this machine."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent, HANOK_LISTEN="127.0.0.1:0") as started:
        yield started


@pytest.fixture(scope="module")
def hanok(daemon: Daemon) -> Iterator[Away]:
    """The command, with the daemon as its remote ``lab``."""
    told = daemon.client.host()
    wanted = {"name": "away", "role": "operator", "expires_in": None}
    token = daemon.client.create_token(wanted)["token"]
    assert told["fingerprint"]
    with tempfile.TemporaryDirectory(prefix="hk-", dir="/tmp") as home:
        remote = Remote("lab", f"https://{told['listen']}", told["fingerprint"], token)
        RemoteBook(Path(home, "config")).put(remote)
        yield Away(daemon, Path(home))
    daemon.client.revoke_token("away")


def test_a_micro_guest_through_a_remote(hanok: Away, tmp_path: Path) -> None:
    """Run, exec, files both ways, console, logs, events, ports, clone, stop, delete."""
    made = hanok.json("run", "micro", "--name", "web", *SHAPE, "--publish", "18290:80")
    assert made["state"] == "ready"
    done = hanok("exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert hanok("exec", "web", "--", "cat", input=b"typed\n").stdout == b"typed\n"

    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(os.urandom(700_000))
    hanok.ok("cp", str(sent), "web:/root/file")
    hanok.ok("cp", "web:/root/file", str(back))
    assert back.read_bytes() == sent.read_bytes()

    serve = "mkdir -p /srv; hostname > /srv/index.html; httpd -p 80 -h /srv"
    hanok.ok("exec", "web", "--", "sh", "-c", serve)
    with urllib.request.urlopen("http://127.0.0.1:18290/", timeout=patient(20)) as answer:
        assert answer.read() == b"web\n"
    request = b"GET / HTTP/1.0\r\n\r\n"
    assert hanok("proxy", "web", "80", input=request).stdout.endswith(b"\r\n\r\nweb\n")
    assert "18290:80, only on lab itself" in hanok.ok("show", "web")

    use_console("web", hanok.environ())
    assert "42-answer" in hanok.ok("logs", "web")

    hanok.ok("template", "create", "base", "--from", "web")
    hanok.ok("clone", "base", "--name", "again")
    assert hanok.ok("exec", "again", "--", "hostname") == "again\n"
    hanok.ok("stop", "again")
    names = {line.split()[4] for line in hanok.ok("events").splitlines() if "vm web" in line}
    assert {"created", "ready"} <= names
    hanok.ok("delete", "--force", "web", "again")
    hanok.ok("template", "delete", "base")
    assert hanok.json("list") == []


def test_the_screen_of_a_guest_of_a_remote(hanok: Away, tmp_path: Path) -> None:
    """A picture, and a viewer: here it connects to this machine, and there to nothing."""
    hanok.ok("run", "micro", "--name", "pc", "--mode", "full", *SHAPE)
    file = tmp_path / "pc.png"
    told = hanok.json("screenshot", "pc", str(file))
    picture = look(file.read_bytes())
    assert (told["size"], picture.width, picture.height) == (file.stat().st_size, 720, 400)
    assert picture.lit > 1000, "the firmware has said who it is"
    with leading(hanok.environ(), "pc") as admitted:
        assert admitted["address"] == "127.0.0.1"
        port, password = admitted["port"], admitted["password"]
        with pytest.raises(WrongPasswordError):
            view("127.0.0.1", port, password.swapcase())
        seen = view("127.0.0.1", port, password)
        assert "pc" in seen.name
        assert (seen.width, seen.height) == (picture.width, picture.height)
        assert alike(lit_in(seen.pixels), picture.lit)
        again = view("127.0.0.1", port, password)
        assert alike(lit_in(again.pixels), picture.lit)
    hanok.ok("stop", "pc", "--force")
    done = hanok("screenshot", "pc", str(tmp_path / "stopped.png"))
    assert b"pc is stopped" in done.stderr
    hanok.ok("delete", "pc")
    assert not (hanok.home / "hanokd.sock").exists()


def test_whoever_may_only_look_on_sees_no_screen(hanok: Away, tmp_path: Path) -> None:
    """A picture may show what is secret: a viewer's token opens neither it nor the screen."""
    told = hanok.daemon.client.host()
    wanted = {"name": "looker", "role": "viewer", "expires_in": None}
    token = hanok.daemon.client.create_token(wanted)["token"]
    assert told["fingerprint"]
    book = RemoteBook(hanok.home / "config")
    book.put(Remote("looker", f"https://{told['listen']}", told["fingerprint"], token))
    for words in (("screenshot", "any", str(tmp_path / "any.png")), ("console", "any", "--vnc")):
        done = hanok(*words, "--remote", "looker")
        assert done.returncode == 1
        assert b"operator" in done.stderr
    assert list(tmp_path.iterdir()) == []
    hanok.daemon.client.revoke_token("looker")


def test_the_disk_of_a_guest_of_a_remote(hanok: Away, tmp_path: Path) -> None:
    hanok.ok("run", "micro", "--name", "data", *SHAPE)
    word = os.urandom(24).hex()
    hanok.ok("exec", "data", "--", "sh", "-c", f"echo {word} > /root/word; sync")
    hanok.ok("stop", "data")
    file = tmp_path / "data.raw"
    told = hanok.json("export", "data", str(file), "--format", "raw")
    assert told["size"] == file.stat().st_size == GIB
    assert word.encode() in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    assert list((hanok.daemon.home / "exports").iterdir()) == []
    hanok.ok("delete", "data")


def test_a_plan_is_applied_to_a_remote(hanok: Away, tmp_path: Path) -> None:
    """By TLS and a token: VMs of the plan's size, once; nothing for who has no good token."""
    size = {"vcpus": 1, "memory": 128 * 2**20, "disk": 1500 * 2**20}
    found = plan(("first", "h1"), ("second", "h1"))
    vms = tuple(vm.model_copy(update=size) for vm in found.vms)
    (tmp_path / "plan.json").write_text(found.model_copy(update={"vms": vms}).model_dump_json())
    here = replace(hanok, remote="local")
    apply = ("apply", str(tmp_path), "--image", "micro")

    book = RemoteBook(hanok.home / "config")
    lab = book.find("lab")
    book.put(replace(lab, name="closed", token="x" * len(lab.token)))
    book.put(replace(lab, name="other", fingerprint="0" * len(lab.fingerprint)))
    for remote in ("closed", "other", "unknown"):
        done = here(*apply, "--host", f"h1={remote}")
        assert done.returncode != 0
        assert b"nothing was made" in done.stderr, done.stderr
    assert hanok.json("list") == []

    to_lab = (*apply, "--host", "h1=lab")
    assert here.json(*to_lab)["made"] == ["first", "second"]
    assert here.json(*to_lab)["made"] == []
    made = hanok.json("list")
    assert {vm["name"]: (vm["cpus"], vm["memory"], vm["state"]) for vm in made} == {
        name: (1, size["memory"], "ready") for name in ("first", "second")
    }
    seen = hanok.ok("exec", "first", "--", "cat", "/sys/block/vda/size")
    assert int(seen) * 512 == size["disk"]
    measured = here.json("plan", "compare", str(tmp_path), "--for", "4s", "--every", "2s")
    assert {vm["name"] for vm in measured["vms"]} == {"first", "second"}
    hanok.ok("delete", "--force", "first", "second")


def test_ssh_and_scp_to_a_guest_of_a_remote(hanok: Away, tmp_path: Path) -> None:
    """The guest learns this user's key; the key of its host stays there."""
    hanok.ok("run", "debian:12", "--name", "deb", "--memory", "384M", limit=900)
    assert hanok.ok("ssh", "deb", "--", "id", "-un") == "debian\n"
    own = hanok.home / "config" / "ssh" / "id_ed25519"
    assert own.exists()
    theirs = (hanok.daemon.home / "ssh" / "id_ed25519").read_text()
    assert own.read_text() != theirs
    # Once more goes without asking the agent, and the key is there once.
    assert hanok.ok("ssh", "deb", "cat .ssh/authorized_keys").count("ssh-ed25519") == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(300_000))
    hanok.ok("cp", "-r", str(folder), "deb:/home/debian/")
    hanok.ok("cp", "deb:/home/debian/folder/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (folder / "file").read_bytes()
    # A guest that has forgotten the key gets it again at the second try.
    hanok.ok("exec", "deb", "--", "sh", "-c", "rm /home/debian/.ssh/authorized_keys")
    assert hanok("ssh", "deb", "true").returncode == 255
    assert hanok("ssh", "deb", "true").returncode == 0
    hanok.ok("delete", "--force", "deb")
