"""``hanok remote`` and --remote against what may answer at an address, and what may not."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hanok.client.remotes import Remote, RemoteBook
from hanok.client.tls import in_pairs
from tests.cli import recorded
from tests.cli.conftest import LIMIT, Hanok
from tests.cli.stand_in import StandIn
from tests.cli.test_imports import imported
from tests.cli.tls_stand_in import (
    TOKEN,
    Place,
    answer,
    free_port,
    plain_place,
    tls_place,
)
from tests.machine import patient


@pytest.fixture
def place() -> Iterator[Place]:
    with tls_place() as found:
        yield found


@pytest.fixture
def book(hanok: Hanok) -> RemoteBook:
    """The remotes of the command line, which has a configuration folder of its own."""
    folder = hanok.home / "config"
    hanok.environ["HANOK_CONFIG"] = str(folder)
    return RemoteBook(folder)


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return str(file)


def added(place: Place, name: str = "lab", **changes: str) -> Remote:
    fields = {"url": place.url, "fingerprint": place.fingerprint, "token": TOKEN, **changes}
    return Remote(name=name, **fields)


def problem(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the error that a command with --json ended with."""
    assert TOKEN not in done.stderr
    return json.loads(done.stderr)


def test_add_pins_the_certificate_and_keeps_the_token(
    hanok: Hanok, book: RemoteBook, place: Place, token_file: str
) -> None:
    pairs = in_pairs(place.fingerprint)
    words = ("lab", f"127.0.0.1:{place.port}", "--fingerprint", pairs.upper())
    done = hanok("remote", "add", *words, "--token-file", token_file)
    assert done.returncode == 0, done.stderr
    assert f"lab is added: hanok 9 at {place.url}" in done.stdout
    assert book.load() == {"lab": added(place)}
    assert json.loads(hanok("--remote", "lab", "list", "--json").stdout) == []
    again = hanok("remote", "add", *words, "--token-file", token_file, "--json")
    assert (again.returncode, problem(again)["code"]) == (1, "conflict")
    # Once more with --replace: what is pinned already needs no question.
    renewed = ("remote", "add", "lab", place.url, "--replace", "--token-file", "-", "--json")
    done = hanok(*renewed, stdin=TOKEN.encode())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["daemon"]["version"] == "9"
    assert TOKEN not in done.stdout + done.stderr


def test_add_asks_on_a_terminal_and_hides_the_token(
    hanok: Hanok, book: RemoteBook, place: Place
) -> None:
    with Typed(hanok, "remote", "add", "lab", place.url) as typed:
        typed.wait_for(in_pairs(place.fingerprint))
        typed.wait_for("Is it?")
        typed.type("y\n")
        typed.wait_for("Token (not shown)")
        typed.type(f"{TOKEN}\n")
        typed.wait_for("lab is added")
        assert typed.process.wait(LIMIT) == 0
        assert TOKEN not in typed.seen
    assert book.load() == {"lab": added(place)}


def test_add_takes_no_for_an_answer(hanok: Hanok, book: RemoteBook, place: Place) -> None:
    with Typed(hanok, "remote", "add", "lab", place.url) as typed:
        typed.wait_for("Is it?")
        typed.type("n\n")
        assert typed.process.wait(LIMIT) == 130
    assert book.load() == {}
    assert place.heard == []


def test_add_without_a_terminal_needs_a_fingerprint(
    hanok: Hanok, book: RemoteBook, place: Place, token_file: str
) -> None:
    done = hanok("remote", "add", "lab", place.url, "--token-file", token_file, "--json")
    assert (done.returncode, problem(done)["field"]) == (2, "--fingerprint")
    assert in_pairs(place.fingerprint) in problem(done)["hint"]
    tokenless = hanok("remote", "add", "lab", place.url, "--yes", "--json")
    assert (tokenless.returncode, problem(tokenless)["field"]) == (2, "--token-file")
    assert book.load() == {}
    assert all(TOKEN.encode() not in heard for heard in place.heard)
    trusting = hanok("remote", "add", "lab", place.url, "--yes", "--token-file", token_file)
    assert trusting.returncode == 0, trusting.stderr


def test_add_refuses_a_certificate_that_is_not_the_one_given(
    hanok: Hanok, book: RemoteBook, place: Place, token_file: str
) -> None:
    given = "ab" * 32
    done = hanok(
        "remote", "add", "lab", place.url, "--fingerprint", given, "--token-file", token_file
    )
    assert done.returncode == 1
    assert in_pairs(given) in done.stderr
    assert in_pairs(place.fingerprint) in done.stderr
    assert (book.load(), place.heard) == ({}, [])


def test_add_sends_the_token_to_nothing_that_is_no_hanok(
    hanok: Hanok, book: RemoteBook, token_file: str
) -> None:
    def web_server(place: Place, sock: socket.socket) -> None:
        while place.read_request(sock):
            sock.sendall(answer(404, b"<h1>Not found</h1>"))

    with tls_place(web_server) as place:
        words = ("remote", "add", "lab", place.url, "--yes", "--token-file", token_file, "--json")
        done = hanok(*words)
        assert (done.returncode, problem(done)["code"]) == (1, "daemon-unreachable")
        assert "is not a Hanok" in problem(done)["detail"]
        assert place.heard
        assert all(TOKEN.encode() not in heard for heard in place.heard)
    assert book.load() == {}


def test_add_keeps_nothing_with_a_token_that_is_not_good(
    hanok: Hanok, book: RemoteBook, place: Place
) -> None:
    words = ("remote", "add", "lab", place.url, "--yes", "--token-file", "-", "--json")
    wrong = hanok(*words, stdin=b"hanok_" + b"b" * 43)
    assert (wrong.returncode, problem(wrong)["code"]) == (1, "unauthorized")
    assert "nothing was kept" in problem(wrong)["detail"]
    bad = hanok(*words, stdin=b"secret-of-something-else")
    assert (bad.returncode, problem(bad)["field"]) == (2, "--token-file")
    assert "secret" not in bad.stderr
    missing = hanok("remote", "add", "lab", place.url, "--yes", "--token-file", "/gone", "--json")
    assert (missing.returncode, problem(missing)["field"]) == (2, "--token-file")
    assert book.load() == {}


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("Lab", "10.0.0.5"), "NAME"),
        (("local", "10.0.0.5"), "NAME"),
        (("lab", "http://10.0.0.5"), "URL"),
        (("lab", "https://10.0.0.5/v1"), "URL"),
        (("lab", "10.0.0.5", "--fingerprint", "ab:cd"), "--fingerprint"),
    ],
)
def test_add_says_what_is_wrong_before_it_connects(
    hanok: Hanok, book: RemoteBook, words: tuple[str, ...], field: str
) -> None:
    done = hanok("remote", "add", *words, "--json")
    assert (done.returncode, problem(done)["field"]) == (2, field)
    assert problem(done)["expected"]


def test_add_tells_plain_http_and_a_host_that_is_down(hanok: Hanok, book: RemoteBook) -> None:
    def http(_place: Place, sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with plain_place(http) as place:
        done = hanok("remote", "add", "lab", place.url, "--json")
    assert done.returncode == 1
    assert "does not speak TLS" in problem(done)["detail"]
    done = hanok("remote", "add", "lab", f"127.0.0.1:{free_port()}", "--json")
    assert done.returncode == 1
    assert "nothing listens" in problem(done)["detail"]


def test_list_show_use_and_remove(hanok: Hanok, book: RemoteBook, place: Place) -> None:
    book.put(added(place))
    book.put(Remote("off", f"https://127.0.0.1:{free_port()}", "0" * 64, TOKEN))
    shown = json.loads(hanok("remote", "show", "lab", "--json").stdout)
    assert shown == {
        "name": "lab",
        "url": place.url,
        "fingerprint": place.fingerprint,
        "current": False,
        "daemon": {"name": "hanok", "version": "9", "pid": 1, "home": "/x"},
        "error": None,
    }
    assert json.loads(hanok("remote", "show", "off", "--json").stdout)["error"]["code"] == (
        "daemon-unreachable"
    )
    assert hanok("remote", "use", "lab").returncode == 0
    listed = json.loads(hanok("remote", "list", "--json").stdout)
    assert [(one["name"], one["current"]) for one in listed] == [
        ("local", False),
        ("lab", True),
        ("off", False),
    ]
    assert all("token" not in one for one in listed)
    assert "* lab" in hanok("remote", "ls").stdout
    assert json.loads(hanok("list", "--json").stdout) == []
    assert hanok("remote", "use", "gone").returncode == 1
    removed = hanok("remote", "rm", "lab")
    assert "this machine's daemon again" in removed.stdout
    assert hanok("remote", "remove", "local").returncode == 2
    assert hanok("remote", "show", "lab").returncode == 1
    assert list(book.load()) == ["off"]


def test_what_is_said_wins_over_what_is_set(
    hanok: Hanok, book: RemoteBook, place: Place, api: StandIn
) -> None:
    api.on("GET", "vms", [recorded.vm_view("here")])
    book.put(added(place))

    def names(*words: str) -> list[str]:
        return [vm["name"] for vm in json.loads(hanok(*words, "--json").stdout)]

    assert names("list") == ["here"]
    assert names("list", "--remote", "lab") == []
    assert names("--remote", "lab", "list") == []
    hanok.environ["HANOK_REMOTE"] = "lab"
    assert names("list") == []
    assert names("list", "--remote", "local") == ["here"]
    told = hanok("remote", "use", "local")
    assert "HANOK_REMOTE is set" in told.stderr
    unknown = hanok("list", "--remote", "gone", "--json")
    assert (unknown.returncode, problem(unknown)["code"]) == (1, "not-found")
    assert "there are: lab" in problem(unknown)["detail"]


def test_a_remote_starts_no_daemon_here(hanok: Hanok, book: RemoteBook, place: Place) -> None:
    book.put(added(place))
    assert hanok("--remote", "lab", "list").returncode == 0
    book.put(added(place, "off", url=f"https://127.0.0.1:{free_port()}"))
    done = hanok("--remote", "off", "list")
    assert done.returncode == 1
    assert done.stderr.startswith("error: remote off (https://127.0.0.1:")
    assert hanok("--remote", "off", "version").returncode == 1
    assert [path.name for path in hanok.home.iterdir()] == ["config"]


def test_a_changed_certificate_is_an_alarm(hanok: Hanok, book: RemoteBook, place: Place) -> None:
    book.put(added(place, fingerprint="ab" * 32))
    done = hanok("--remote", "lab", "delete", "--force", "web", "--json")
    assert done.returncode == 1
    assert problem(done)["code"] == "certificate-changed"
    assert in_pairs("ab" * 32) in problem(done)["detail"]
    assert in_pairs(place.fingerprint) in problem(done)["detail"]
    assert "nothing was sent" in problem(done)["detail"]
    assert place.heard == []


@pytest.mark.parametrize("words", [("serve",), ("completion", "bash"), ("remote", "list")])
def test_commands_about_this_machine_refuse_a_remote(
    hanok: Hanok, book: RemoteBook, place: Place, words: tuple[str, ...]
) -> None:
    book.put(added(place))
    done = hanok("--remote", "lab", *words, "--json")
    assert (done.returncode, problem(done)["field"]) == (2, "--remote")
    assert place.connections == 0


def test_completion_of_remotes_and_of_names_on_one(hanok: Hanok, book: RemoteBook) -> None:
    def talk(place: Place, sock: socket.socket) -> None:
        while place.read_request(sock):
            sock.sendall(answer(200, json.dumps([recorded.vm_view("far")]).encode()))

    with tls_place(talk) as place:
        book.put(added(place))

        def complete(*words: str) -> str:
            hanok.environ.update(
                _HANOK_COMPLETE="bash_complete",
                COMP_WORDS=" ".join(("hanok", *words)),
                COMP_CWORD=str(len(words)),
            )
            return hanok().stdout

        assert complete("--remote", "") == "plain,local\nplain,lab\n"
        assert complete("list", "--remote", "la") == "plain,lab\n"
        assert complete("remote", "use", "l") == "plain,local\nplain,lab\n"
        assert complete("--remote", "lab", "show", "f") == "plain,far\n"
        assert complete("show", "f").strip() == ""


def test_all_hosts_in_one_table(hanok: Hanok, book: RemoteBook, place: Place, api: StandIn) -> None:
    api.on("GET", "vms", [recorded.vm_view("here")])
    ended = threading.Event()

    def wait(_place: Place, _sock: socket.socket) -> None:
        ended.wait(patient(60))

    with plain_place(wait) as silent:
        book.put(added(place))
        book.put(added(silent, "silent"))
        book.put(added(place, "other", fingerprint="ab" * 32))
        book.put(added(place, "refused", token="hanok_" + "b" * 43))
        book.put(added(place, "off", url=f"https://127.0.0.1:{free_port()}"))
        found = json.loads(hanok("list", "--all", "--json").stdout)
        table = hanok("list", "--all")
        ended.set()
    assert [(one["remote"], one.get("name")) for one in found] == [
        ("local", "here"),
        ("off", None),
        ("other", None),
        ("refused", None),
        ("silent", None),
    ]
    *codes, silence = [one["error"]["code"] for one in found[1:]]
    assert codes == ["daemon-unreachable", "certificate-changed", "unauthorized"]
    assert silence in ("daemon-unreachable", "timed-out")  # two limits that end together
    assert table.returncode == 0
    lines = table.stdout.splitlines()
    assert lines[0].split()[:3] == ["REMOTE", "NAME", "STATE"]
    assert {tuple(line.split()[:4]) for line in lines[2:7]} >= {
        ("lab", "-", "no", "VMs"),
        ("off", "-", "no", "answer"),
    }
    assert "nothing listens" in table.stdout
    both = hanok("list", "--all", "--remote", "lab")
    assert both.returncode == 2
    assert both.stdout == ""


def test_a_host_that_never_ran_a_daemon_is_not_asked(
    hanok: Hanok, book: RemoteBook, place: Place, tmp_path: Path
) -> None:
    book.put(added(place))
    hanok.environ["HANOK_HOME"] = "/tmp/hk-there-is-none"
    assert json.loads(hanok("list", "--all", "--json").stdout) == []
    assert "local" not in hanok("list", "--all").stdout


def test_a_silent_host_delays_the_others_by_its_limit_only(
    hanok: Hanok, book: RemoteBook, place: Place
) -> None:
    """Ten hosts that take connections and say nothing: one limit, not ten; the rest is there."""
    ended = threading.Event()

    def wait(_place: Place, _sock: socket.socket) -> None:
        ended.wait(patient(60))

    with plain_place(wait) as silent:
        book.put(added(place))
        for number in range(10):
            book.put(added(silent, f"silent{number}"))
        started = time.monotonic()
        found = json.loads(hanok("list", "--all", "--json").stdout)
        took = time.monotonic() - started
        ended.set()
    assert len([one for one in found if "error" in one]) == 11  # no daemon runs here either
    assert took < patient(10 * 3)  # in turns it would be 30 s and more


SCRIPT = """#!{python}
import json, os, sys
with open(os.environ["SAID"], "w") as file:
    json.dump(sys.argv[1:], file)
"""
VIEW = {"user": "debian", "port": 22, "key": "/there/id_ed25519", "host_keys": ["ssh-ed25519 AA"]}


@pytest.fixture
def said(hanok: Hanok, tmp_path: Path) -> Path:
    """Put a stand-in for ssh first on PATH; return where it notes how it was called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "ssh"
    program.write_text(SCRIPT.format(python=sys.executable))
    program.chmod(0o755)
    hanok.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    hanok.environ["SAID"] = str(tmp_path / "said")
    return tmp_path / "said"


def test_ssh_to_a_guest_of_a_remote(hanok: Hanok, book: RemoteBook, said: Path) -> None:
    """The proxy names the remote and never the token; the guest learns this user's own key once."""
    done = {"exit_status": 0, "stdout": "", "stderr": "", "truncated": False}

    def talk(place: Place, sock: socket.socket) -> None:
        while request := place.read_request(sock):
            told = VIEW if request.startswith(b"GET") else done
            sock.sendall(answer(200, json.dumps(told).encode()))

    with tls_place(talk) as place:
        book.put(added(place))
        for _ in range(2):
            assert hanok("--remote", "lab", "ssh", "web").returncode == 0
        heard = b"".join(place.heard)
    assert heard.count(b"POST /v1/vms/web/exec ") == 1
    argv = json.loads(said.read_text())
    own = book.folder / "ssh" / "id_ed25519"
    assert argv[argv.index("-i") + 1] == str(own)
    assert own.stat().st_mode & 0o777 == 0o600
    assert TOKEN not in said.read_text()
    [proxy] = [word.partition("=")[2] for word in argv if word.startswith("ProxyCommand=")]
    words = shlex.split(proxy)
    assert words[words.index("--remote") :] == ["--remote", "lab", "proxy", "--", "web", "22"]


@pytest.mark.parametrize("words", [("ssh", "web"), ("ssh", "web", "--", "ls")])
def test_a_remote_gives_ssh_no_options(
    hanok: Hanok, book: RemoteBook, said: Path, words: tuple[str, ...]
) -> None:
    """ssh would run a program here for some."""
    told = answer(200, json.dumps({**VIEW, "user": "-oKnownHostsCommand=/bin/sh -c id"}).encode())

    def talk(place: Place, sock: socket.socket) -> None:
        while place.read_request(sock):
            sock.sendall(told)

    with tls_place(talk) as place:
        book.put(added(place))
        done = hanok("--remote", "lab", *words)
        assert done.returncode == 1
        assert "a user for SSH that is none" in done.stderr
        assert b"/exec" not in b"".join(place.heard)
    assert not said.exists()


def test_a_guest_that_takes_no_key_is_told(hanok: Hanok, book: RemoteBook, said: Path) -> None:
    refused = {"exit_status": 1, "stdout": "", "stderr": "bm8gc3VjaCB1c2Vy", "truncated": False}

    def talk(place: Place, sock: socket.socket) -> None:
        while request := place.read_request(sock):
            told = VIEW if request.startswith(b"GET") else refused
            sock.sendall(answer(200, json.dumps(told).encode()))

    with tls_place(talk) as place:
        book.put(added(place))
        done = hanok("--remote", "lab", "ssh", "web")
    assert done.returncode == 1
    assert "no such user" in done.stderr
    assert not said.exists()


def test_ssh_here_stays_here_whatever_is_in_use(
    hanok: Hanok, book: RemoteBook, api: StandIn, said: Path, place: Place
) -> None:
    book.put(added(place))
    book.use("lab")
    api.on("GET", "vms/web/ssh", VIEW)
    assert hanok("--remote", "local", "ssh", "web").returncode == 0
    assert "--remote local proxy -- web 22" in said.read_text()


def test_a_remote_costs_no_heavy_modules_and_this_machine_not_even_ssl(
    hanok: Hanok, book: RemoteBook, api: StandIn, place: Place
) -> None:
    from tests.cli.test_imports import HEAVY

    api.on("GET", "vms", [])
    assert "ssl" not in imported(hanok, "list")
    book.put(added(place))
    found = imported(hanok, "--remote", "lab", "list")
    assert "ssl" in found
    assert found & HEAVY == set()


class Typed:
    """A command on a pseudo-terminal."""

    def __init__(self, hanok: Hanok, *words: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.process = subprocess.Popen(
            hanok.argv(*words),
            env=hanok.environment(),
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )
        self.seen = ""

    def _take_terminal(self) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self._theirs, termios.TIOCSCTTY, 0)  # getpass reads from /dev/tty

    def wait_for(self, text: str) -> None:
        """Read until ``text`` was shown."""
        while text not in self.seen:
            assert select.select([self._ours], [], [], LIMIT)[0], self.seen
            self.seen += os.read(self._ours, 65536).decode()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        os.close(self._ours)
        os.close(self._theirs)
