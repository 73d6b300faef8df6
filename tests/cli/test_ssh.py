"""``ssh`` and ``cp`` by scp: what the system's ssh is told. A script stands in for it here."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from hanok.cli.copy import guest_path
from tests.cli import recorded
from tests.cli.conftest import Hanok
from tests.cli.stand_in import StandIn

VIEW = {
    "user": "debian",
    "port": 22,
    "key": "/data/ssh/id_ed25519",
    "host_keys": ["ssh-ed25519 AA"],
}
SCRIPT = """#!{python}
import json, os, sys
options = dict(word.split("=", 1) for word in sys.argv if "=" in word and word[0].isupper())
known = options["UserKnownHostsFile"]
with open(os.environ["SAID"], "w") as file:
    json.dump({{"argv": sys.argv[1:], "options": options, "known": open(known).read()}}, file)
sys.exit(7)
"""


@pytest.fixture
def said(hanok: Hanok, api: StandIn, tmp_path: Path) -> Path:
    """Put stand-ins for ssh and scp first on PATH; return where they note how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ssh", "scp"):
        program = programs / name
        program.write_text(SCRIPT.format(python=sys.executable))
        program.chmod(0o755)
    note = tmp_path / "said"
    hanok.environ = {"PATH": f"{programs}:{os.environ['PATH']}", "SAID": str(note)}
    api.on("GET", "vms/web/ssh", VIEW)
    return note


def noted(note: Path) -> Any:
    return json.loads(note.read_text())


def test_ssh_knows_the_host_keys_and_goes_through_the_proxy(hanok: Hanok, said: Path) -> None:
    assert hanok("ssh", "web").returncode == 7
    found = noted(said)
    assert found["argv"][-1] == "debian@web"
    assert found["argv"][:4] == ["-F", "none", "-i", VIEW["key"]]
    assert found["known"] == "web ssh-ed25519 AA\n"
    options = found["options"]
    assert options["StrictHostKeyChecking"] == "yes"
    assert options["HostKeyAlias"] == "web"
    assert options["IdentitiesOnly"] == "yes"
    proxy = shlex.split(options["ProxyCommand"])
    assert proxy[-4:] == ["proxy", "--", "web", "22"]
    assert not Path(options["UserKnownHostsFile"]).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("ssh", "web", "--", "ls", "-l", "/"),
        ("ssh", "web", "ls", "-l", "/"),
        ("ssh", "-l", "root", "web", "ls", "-l", "/"),
    ],
)
def test_ssh_passes_the_command_on(hanok: Hanok, said: Path, words: tuple[str, ...]) -> None:
    hanok(*words)
    user = "root" if "-l" in words[:2] else "debian"
    assert noted(said)["argv"][-4:] == [f"{user}@web", "ls", "-l", "/"]


def test_ssh_for_programs(hanok: Hanok, said: Path) -> None:
    assert json.loads(hanok("ssh", "web", "--json").stdout) == VIEW
    assert not said.exists()


def test_copy_by_scp(hanok: Hanok, said: Path) -> None:
    assert hanok("cp", "-r", "site:old", "web:/srv/a b").returncode == 2
    assert hanok("cp", "-r", "./site:old", "web:/srv/a b").returncode == 7
    assert noted(said)["argv"][-5:] == ["-q", "-r", "--", "././site:old", "debian@web:/srv/a b"]
    assert hanok("cp", "web:motd", "/tmp/motd").returncode == 7
    assert noted(said)["argv"][-3:] == ["--", "debian@web:motd", "/tmp/motd"]


def test_without_ssh_a_folder_is_refused(api: StandIn, hanok: Hanok, tmp_path: Path) -> None:
    refused = recorded.problem("unsupported", 422, "web has no SSH server")
    api.on("GET", "vms/web/ssh", refused, status=422)
    done = hanok("cp", "-r", str(tmp_path), "web:/srv")
    assert done.returncode == 2
    assert "tar" in done.stderr


def test_a_host_without_ssh_is_told_what_to_install(api: StandIn, hanok: Hanok) -> None:
    api.on("GET", "vms/web/ssh", VIEW)
    hanok.environ = {"PATH": "/nonexistent"}
    done = hanok("ssh", "web")
    assert done.returncode == 1
    assert "openssh-client" in done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("web:/etc/motd", ("web", "/etc/motd")),
        ("web:", ("web", "")),
        ("web:a:b", ("web", "a:b")),
        ("./web:x", None),
        ("/tmp/a:b", None),
        ("plain", None),
        (":x", None),
        ("-x:y", None),
    ],
)
def test_guest_paths(text: str, found: tuple[str, str] | None) -> None:
    assert guest_path(text) == found
