"""The command line and a real daemon at a TCP port, on the fake hypervisor: every command."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hanok.client.remotes import Remote, RemoteBook
from tests.cli.conftest import LIMIT, Hanok
from tests.cli.tls_stand_in import free_port
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.fake_image import fake_images

SHAPE = ("--memory", "128M", "--disk", "1G")
STACK = """\
name: shop
vms:
  db: {image: micro, memory: 128M, disk: 1G}
  web:
    image: micro
    memory: 128M
    disk: 1G
    depends_on: [db]
    publish:
      - 18190:80
      - 0.0.0.0:18191:8080
"""


@dataclass
class Far:
    """A daemon that listens, and the command line of someone who has no daemon of his own."""

    daemon: Daemon
    hanok: Hanok
    book: RemoteBook

    def add(self, name: str, role: str, expires_in: int | None = None) -> Remote:
        """Make a token and keep the remote."""
        told = self.daemon.client.host()
        asked = {"name": name, "role": role, "expires_in": expires_in}
        token = self.daemon.client.create_token(asked)["token"]
        assert told["listen"]
        assert told["fingerprint"]
        remote = Remote(name, f"https://{told['listen']}", told["fingerprint"], token)
        self.book.put(remote, replace=True)
        return remote

    def ok(self, *words: str, stdin: bytes | None = None) -> str:
        """Run a command that must succeed, and that starts no daemon here."""
        done = self.hanok(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr + done.stdout
        assert not (self.hanok.home / "hanokd.sock").exists()
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run a command with --json and return what it answers."""
        return json.loads(self.ok(*words, "--json"))

    def refused(self, *words: str) -> Any:
        """Run a command that must fail by exit status 1, and return its error."""
        done = self.hanok("--json", *words)
        assert done.returncode == 1, done.stdout
        return json.loads(done.stderr)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    # A port of its own, so that it is found again after a restart.
    listen = f"127.0.0.1:{free_port()}"
    with fake_images() as images, new_daemon("fake", images, HANOK_LISTEN=listen) as started:
        yield started


@pytest.fixture
def far(daemon: Daemon, hanok: Hanok) -> Iterator[Far]:
    """One who uses the remote ``lab`` as an administrator."""
    book = RemoteBook(hanok.home / "config")
    hanok.environ = {"HANOK_CONFIG": str(book.folder), "HANOK_REMOTE": "lab"}
    found = Far(daemon, hanok, book)
    found.add("lab", "administrator")
    yield found
    daemon.empty()
    for token in daemon.client.tokens():
        daemon.client.revoke_token(token["name"])


def test_the_life_of_a_vm(far: Far) -> None:
    made = far.json("run", "micro", "--name", "web", *SHAPE, "--publish", "18192:80")
    assert made["state"] == "ready"
    [listed] = far.json("list")
    assert listed == far.daemon.client.vms()[0]
    for words, state in (
        (("pause", "web"), "paused"),
        (("resume", "web"), "ready"),
        (("restart", "web"), "ready"),
        (("stop", "web", "--timeout", "5"), "stopped"),
        (("start", "web"), "ready"),
    ):
        [done] = far.json(*words)
        assert done["state"] == "done"
        assert far.json("show", "web")["state"] == state
    assert far.refused("delete", "web")["code"] == "conflict"
    far.ok("delete", "--force", "web")
    assert far.json("list") == []
    names = [json.loads(line)["name"] for line in far.ok("events", "--json").splitlines()]
    assert {"created", "ready", "paused", "stopped", "deleted"} <= set(names)


def test_progress_comes_as_it_is_made(far: Far) -> None:
    done = far.hanok("run", "micro", "--name", "web", *SHAPE)
    assert done.returncode == 0
    assert "run web: starting" in done.stderr
    assert "web is ready" in done.stdout


def test_guests(far: Far, tmp_path: Path) -> None:
    far.ok("run", "micro", "--name", "web", *SHAPE)
    assert far.ok("exec", "web", "--", "echo", "over there") == "over there\n"
    assert far.ok("exec", "web", "--", "cat", stdin=b"given\n") == "given\n"
    content = bytes(range(256)) * 10_000
    (tmp_path / "there").write_bytes(content)
    far.ok("cp", str(tmp_path / "there"), "web:/tmp/x")
    far.ok("cp", "web:/tmp/x", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content
    assert far.refused("cp", "web:/no/such", str(tmp_path / "none"))["code"] in (
        "guest",
        "not-found",
    )
    assert "fake hypervisor" in far.ok("logs", "web")
    assert far.ok("console", "--linger", "0.5", "web", stdin=b"\n")
    assert far.refused("console", "gone")["code"] == "not-found"
    proxy = far.hanok("proxy", "gone", "22")
    assert (proxy.returncode, proxy.stdout) == (1, "")
    assert "gone" in proxy.stderr
    no_ssh = far.hanok("ssh", "web")
    assert no_ssh.returncode == 2
    assert "hanok exec" in no_ssh.stderr


def test_templates_and_clones(far: Far) -> None:
    far.ok("run", "micro", "--name", "web", *SHAPE)
    far.ok("template", "create", "base", "--from", "web")
    assert far.json("clone", "base", "--count", "2", "--name", "w-{n}")["names"] == ["w-1", "w-2"]
    assert far.json("template", "show", "base")["clones"] == ["w-1", "w-2"]
    assert [one["name"] for one in far.json("template", "list")] == ["base"]
    assert far.json("fit", "--template", "base")["count"] > 0
    far.ok("delete", "--force", "w-1", "w-2", "web")
    far.ok("template", "delete", "base")


def test_host_images_networks_operations_and_tokens(far: Far) -> None:
    # What changes from one moment to the next is left out.
    moving = {"rooms", "used", "sold", "shared", "filesystems"}
    here = {key: value for key, value in far.daemon.client.host().items() if key not in moving}
    there = far.json("host", "show")
    assert {key: value for key, value in there.items() if key not in moving} == here
    assert far.json("fit", "--memory", "256M")["count"] > 0
    assert far.json("image", "list") == far.daemon.client.images()
    assert far.json("image", "inspect", "micro")["ref"] == "micro"
    far.ok("network", "create", "lan")
    assert "lan" in [one["name"] for one in far.json("network", "list")]
    assert far.json("network", "show", "lan")["name"] == "lan"
    far.ok("network", "delete", "lan")
    [operation, *_] = far.json("operations", "list")
    assert far.json("operations", "show", operation["id"]) == operation
    assert far.json("operations", "follow", operation["id"])["state"] == operation["state"]
    assert far.refused("operations", "cancel", operation["id"])["code"] == "conflict"
    assert far.json("version")["daemon"]["home"] == str(far.daemon.home)
    assert f"remote lab at https://{far.daemon.client.host()['listen']}" in far.ok("version")
    assert "lab" in [one["name"] for one in far.json("token", "list")]
    probed = far.hanok("host", "probe")
    assert (probed.returncode, probed.stdout) == (2, "")


def test_a_stack_says_where_its_ports_are(far: Far, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(STACK)
    up = far.ok("up", str(file))
    assert "shop is up: 2 VMs, 2 new" in up
    assert "Ports are published on lab, not here:" in up
    assert "18190:80, only on lab itself, at 127.0.0.1 there" in up
    assert "18191:8080, at 127.0.0.1:18191" in up  # where lab is, for this test
    assert "curl http://127.0.0.1:18191/" in up
    assert "curl http://127.0.0.1:18190/" not in up
    shown = far.ok("show", "web")
    assert re.search(r"^remote +lab \(https://127", shown, re.M)
    assert "18190:80, only on lab itself" in shown
    assert "nothing to change" in far.ok("up", str(file))
    file.write_text(STACK.replace("128M", "lots", 1))
    bad = far.hanok("up", str(file))
    assert bad.returncode == 2
    assert bad.stderr.startswith(f"error: {file}:3: 'lots' is not a size")
    far.ok("down", "--name", "shop")
    assert far.json("list") == []


def test_roles(far: Far) -> None:
    far.add("looker", "viewer")
    far.add("worker", "operator")
    assert far.json("--remote", "looker", "list") == []
    wanted = ("run", "micro", "--name", "web", *SHAPE)
    refused = far.refused("--remote", "looker", *wanted)
    assert refused["code"] == "forbidden"
    assert "looker" in refused["detail"]
    assert "operator" in refused["detail"]
    assert "hanok remote add looker https://" in refused["hint"]
    assert far.json("list") == []
    assert far.json("--remote", "worker", *wanted)["state"] == "ready"
    refused = far.refused("--remote", "worker", "token", "create", "more")
    assert (refused["code"], "administrator" in refused["detail"]) == ("forbidden", True)
    refused = far.refused("--remote", "looker", "cp", __file__, "web:/tmp/x")
    assert refused["code"] == "forbidden"
    refused = far.refused("--remote", "looker", "exec", "web", "--", "true")
    assert refused["code"] == "forbidden"
    # With --json a console is only looked up; without, it is opened.
    console = far.hanok("--remote", "looker", "console", "web")
    assert console.returncode == 1
    assert "operator" in console.stderr


def test_a_token_that_has_expired_or_was_revoked(far: Far) -> None:
    short = far.add("short", "viewer", expires_in=1)

    def expired() -> bool:
        return far.hanok("--remote", "short", "list").returncode == 1

    wait_until(expired, 20, "the token has expired")
    problem = far.refused("--remote", "short", "list")
    assert problem["code"] == "unauthorized"
    assert short.token not in json.dumps(problem)
    assert "expired by the clock there" in problem["detail"]
    far.add("gone", "viewer")
    assert far.json("--remote", "gone", "list") == []
    far.daemon.client.revoke_token("gone")
    assert far.refused("--remote", "gone", "list")["code"] == "unauthorized"
    assert far.json("list") == []  # others go on


def test_events_are_followed_until_the_token_ends(far: Far) -> None:
    far.add("looker", "viewer")
    process = far.hanok.popen("--remote", "looker", "events", "--follow", "--json")
    lines = Lines(process)
    far.ok("run", "micro", "--name", "web", *SHAPE)
    lines.wait_for("web", "ready")
    far.ok("delete", "--force", "web")
    lines.wait_for("web", "deleted")
    assert process.poll() is None
    far.daemon.client.revoke_token("looker")
    assert process.wait(LIMIT) == 1
    lines.close()


class Lines:
    """The events that a command prints, read as they come."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._seen: list[tuple[str, str]] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._more:
                self._seen.append((event["target"], event["name"]))
                self._more.notify_all()

    def wait_for(self, target: str, name: str) -> None:
        """Wait until an event was printed."""
        with self._more:
            assert self._more.wait_for(lambda: (target, name) in self._seen, LIMIT), self._seen

    def close(self) -> None:
        """End the command and its streams."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(LIMIT)
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


def test_a_daemon_that_dies_at_work_is_waited_for(far: Far) -> None:
    """The operation goes on in the next daemon, and the command that follows it as well."""
    far.daemon.stop()
    far.daemon.start(failpoint="start.attach")
    process = far.hanok.popen("run", "micro", "--name", "web", *SHAPE, "--json")
    far.daemon.wait_died()
    far.daemon.start()
    out, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert json.loads(out)["state"] == "ready"


def test_all_hosts(far: Far) -> None:
    far.add("again", "viewer")
    far.book.put(Remote("off", f"https://127.0.0.1:{free_port()}", "0" * 64, "hanok_" + "x" * 43))
    far.ok("run", "micro", "--name", "web", *SHAPE)
    far.daemon.client.revoke_token("again")
    found = far.json("list", "--all")
    names = {(one["remote"], one.get("name")) for one in found}
    # This machine has a data directory in this test, and no daemon.
    assert names == {("local", None), ("again", None), ("lab", "web"), ("off", None)}
    hosts = {one["remote"]: one for one in far.json("host", "show", "--all")}
    assert hosts["lab"]["vms"] == 1
    assert hosts["off"]["error"]["code"] == "daemon-unreachable"
    assert hosts["again"]["error"]["code"] == "unauthorized"
    table = far.ok("host", "show", "--all")
    assert re.search(r"^lab +\S+ +fake +none +1 +1 ", table, re.M)
    assert re.search(r"^off +- +no answer", table, re.M)
    assert re.search(r"^again +- +refused", table, re.M)


def test_what_a_server_tells_to_type_is_what_the_client_takes(far: Far, tmp_path: Path) -> None:
    """``token create`` there, ``remote add`` here, as people do it."""
    there = Hanok(far.daemon.home, {"HANOK_CONFIG": str(tmp_path / "none")})
    made = there("token", "create", "desk", "--role", "viewer")
    assert made.returncode == 0, made.stderr
    [command] = re.findall(r"hanok (remote add \S+ \S+ --fingerprint \S+)", made.stderr)
    words = command.split()
    added = far.hanok(*words, "--token-file", "-", stdin=made.stdout.encode())
    assert added.returncode == 0, added.stderr
    assert far.json("--remote", words[2], "list") == []
