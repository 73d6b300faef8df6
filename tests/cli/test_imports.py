"""What ``hanok list`` must not import: 0.15 s is all it has. A check of sets, not of time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli import recorded
from tests.cli.conftest import Hanok
from tests.cli.stand_in import StandIn

HEAVY = {
    "pydantic",
    "fastapi",
    "uvicorn",
    "yaml",
    "websockets",
    "asyncio",
    "rich",
    "http.client",
    "email",
    "subprocess",
    "difflib",
    "shutil",
    "tempfile",
    "logging",
    "psutil",
    "tenacity",
    "typing_extensions",
    "hanok.model.views",
}


SHOW = """
import sys
from hanok.cli.main import main
status = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(status)
"""


def imported(hanok: Hanok, *words: str) -> set[str]:
    """Return the modules that a command imported."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SHOW, *words],
        env=hanok.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "words", [("list",), ("list", "--wide"), ("list", "--json"), ("show", "web"), ("version",)]
)
def test_quick_commands_import_little(api: StandIn, hanok: Hanok, words: tuple[str, ...]) -> None:
    api.on("GET", "vms", [recorded.vm_view()])
    api.on("GET", "vms/web", recorded.vm_detail())
    api.on("GET", "version", {"name": "hanok", "version": "0.1.0", "pid": 1, "home": "/x"})
    found = imported(hanok, *words)
    assert found & HEAVY == set()
    ours = {name for name in found if name.startswith("hanok.cli.")}
    listing = {"hanok.cli.listing", "hanok.cli.keeping"}
    modules = {"hanok.cli.system"} if words == ("version",) else listing
    common = {"hanok.cli.main", "hanok.cli.base", "hanok.cli.output"}
    assert ours == common | modules


def test_help_imports_no_command(hanok: Hanok) -> None:
    found = imported(hanok, "--help")
    assert {name for name in found if name.startswith("hanok.cli.")} == {
        "hanok.cli.main",
        "hanok.cli.base",
        "hanok.cli.output",
    }
