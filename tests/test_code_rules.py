"""The rules of the code base, checked like everything else: the same commands as make check."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hanok.images import builder

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LONGEST_FILE = 600
HYPERVISOR_CONTRACT = 200

# Written in pieces, so that this file does not name what it looks for.
INDEX_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("files", "pythonhosted", "org"),
        ("pypi", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("ftp", "debian", "org"),
        ("archive", "debian", "org"),
        ("registry", "npmjs", "org"),
    )
)
TEXT_SUFFIXES = frozenset(
    {".py", ".toml", ".md", ".yaml", ".yml", ".sh", ".lock", ".txt", ".cfg", ".service", ".svg", ""}
)


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, or git does not trust its owner")
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=lambda command: " ".join(command),
)
def test_linters(command: list[str]) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_files_stay_small() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for path in _tracked()
        if path.suffix == ".py"
    }
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}
    contract = Path("src/hanok/hypervisors/base.py")
    assert lengths.get(contract, 0) < HYPERVISOR_CONTRACT


def test_no_file_names_a_package_index() -> None:
    found = [
        f"{path.relative_to(ROOT)} names {host}"
        for path in _tracked()
        if path.suffix in TEXT_SUFFIXES
        for host in INDEX_HOSTS
        if host in path.read_text(errors="replace")
    ]
    assert found == []


def test_the_reference_and_the_manual_page_are_not_stale() -> None:
    from scripts.docs.pages import pages

    stale = [name for name, text in pages().items() if (ROOT / name).read_text() != text]
    assert stale == [], "run 'make docs' and commit what it writes"


def test_the_korean_readme_says_the_same() -> None:
    told = (ROOT / "README.md").read_text(), (ROOT / "README.ko.md").read_text()
    for what in (r"^```.*?^```$", r"\]\(([^)]+)\)", r"^#+ "):
        english, korean = (re.findall(what, text, re.M | re.S) for text in told)
        assert [one for one in korean if one != "README.md"] == [
            one for one in english if one != "README.ko.md"
        ], "change README.ko.md as README.md: the same commands, links and headings"


def test_the_lock_names_no_index_and_pins_with_hashes() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [
        line for line in lines if line.lstrip().startswith("--") and "--hash=" not in line
    ] == []
    pins = [line for line in lines if line and line[0].isalnum()]
    assert pins
    assert [line for line in pins if "==" not in line or not line.rstrip().endswith("\\")] == []


def test_the_lock_pins_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    names = {_normal_name(line) for line in wanted}
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {_normal_name(line) for line in lock if line and line[0].isalnum()}
    assert names - pinned == set(), "run 'make lock'"


def _normal_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def test_setup_installs_what_errors_tell_to_install() -> None:
    setup = (ROOT / "scripts/setup.sh").read_text()
    listed = set(re.search(r"^packages=\((.*?)^\)", setup, re.M | re.S)[1].split())  # type: ignore[index]
    for more in re.findall(r"packages\+=\((.*?)\)", setup):
        listed |= set(more.split())
    told = {"qemu-system-x86", *builder._PROGRAMS.values()} - {"util-linux"}
    for path in (ROOT / "src").rglob("*.py"):
        for line in re.findall(r"apt-get install ([a-z0-9 -]+)", path.read_text()):
            told |= set(line.split())
    assert told - listed - {"qemu-guest-agent"} == set()


def test_shell_scripts_stop_at_the_first_failure() -> None:
    scripts = [
        path for path in _tracked() if path.suffix == ".sh" and path.parent.name == "scripts"
    ]
    lax = [path.name for path in scripts if "set -e" not in path.read_text()]
    assert lax == []
