"""The reference is made from the program; here is what making it cannot see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from scripts.docs import api, cli
from scripts.docs.settings import INTERNAL, SETTINGS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs/reference/cli.md").read_text()


def test_every_setting_that_the_code_reads_is_in_the_reference() -> None:
    read = set()
    for path in (ROOT / "src/hanok").rglob("*.py"):
        read |= set(re.findall(r'"(HANOK_[A-Z_]+)"', path.read_text()))
    told = {one.name for one in SETTINGS}
    assert read - told - INTERNAL == set(), "add it to scripts/docs/settings.py, then 'make docs'"
    assert told - read == {"NO_COLOR"}


def test_every_command_is_in_the_reference() -> None:
    found = [command.path for command in cli.commands()]
    assert {"hanok run", "hanok image pull", "hanok host prepare"} <= set(found)
    titles = set(re.findall(r"^#+ (hanok .*)$", PAGES, re.M))
    assert titles == set(found) - {"hanok"}


def test_the_reference_has_each_option_of_a_command_and_its_examples() -> None:
    (run,) = [command for command in cli.commands() if command.path == "hanok run"]
    text = PAGES.split("\n## hanok run\n")[1].split("\n## ")[0]
    assert len(run.options) > 15
    written = text.replace("\\|", "|")
    assert [name for name, _ in run.options if f"`{name}`" not in written] == []
    assert [line for line in run.examples if line not in text] == []


def test_references_in_the_openapi_document_lead_somewhere() -> None:
    told = api.document()
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(told)))
    assert "Publish" in named
    assert named - set(told["components"]["schemas"]) == set()


def test_the_openapi_document_tells_of_hanoks_own_errors() -> None:
    told = api.document()
    kinds = {
        kind
        for entries in told["paths"].values()
        for entry in entries.values()
        for kind in entry["responses"]["default"]["content"]
    }
    assert kinds == {"application/problem+json"}
    assert "HTTPValidationError" not in json.dumps(told)


def test_groff_has_no_complaint_about_the_manual_page() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = ROOT / "docs/man/hanok.1"
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", str(page)], capture_output=True, check=True, text=True
    )
    assert done.stderr == ""
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    assert "hanok run [OPTIONS] IMAGE" in shown
    assert "HANOK_MEMORY_POLICY" in shown
