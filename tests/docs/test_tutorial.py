"""The tutorial is run, command by command, and prints what it says.

``HANOK_UPDATE_GOLDEN=1`` writes what was printed into the page; read the difference.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.model.image import Image
from tests.daemon.harness import Daemon, new_daemon
from tests.docs.console import Step, normal, replayed, steps
from tests.machine import patient

PAGE = Path(__file__).parents[2] / "docs/tutorial.md"
SESSION = """\
Some words.

<!-- file: a.txt -->
```yaml
name: a
```

```console
$ cat a.txt
name: a
$ true
$ echo 'ready after 2.1 s'; echo two
ready after 1.0 s
two
```

```sh
make setup
```
"""


@pytest.fixture
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon as a user's: it makes warm templates."""
    _, folder = micro_image
    with new_daemon("qemu", folder.parent, HANOK_WARM="4") as started:
        yield started


@pytest.fixture
def shell(daemon: Daemon, tmp_path: Path) -> Shell:
    """A user's shell, in an empty folder, with hanok on its PATH."""
    command = tmp_path / "bin/hanok"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m hanok.cli "$@"\n')
    command.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    return Shell(daemon, command.parent, work)


class Shell:
    """Runs the steps of a page, one shell each; the folder stays."""

    def __init__(self, daemon: Daemon, programs: Path, work: Path) -> None:
        self._work = work
        self._environ = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HANOK_HOME": str(daemon.home),
            "HANOK_CONFIG": str(work / ".hanok"),
            "HANOK_REMOTE": "local",
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }

    def __call__(self, step: Step) -> str:
        """Return what a person sees: no progress, and errors after what was printed."""
        if step.is_file:
            (self._work / step.command).write_text(step.output)
            return ""
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=self._work,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(300),
        )
        shown = done.stdout if done.returncode == 0 else done.stdout + done.stderr
        return shown if not shown or shown.endswith("\n") else shown + "\n"


def test_steps_are_found_where_they_stand() -> None:
    found = list(steps(SESSION))
    assert [(one.command, one.output) for one in found] == [
        ("a.txt", "name: a\n"),
        ("cat a.txt", "name: a\n"),
        ("true", ""),
        ("echo 'ready after 2.1 s'; echo two", "ready after 1.0 s\ntwo\n"),
    ]
    assert [SESSION[one.start : one.end] for one in found] == [one.output for one in found]


def test_what_is_volatile_is_no_difference_and_words_are() -> None:
    shown = "web    ready  micro  qemu/tcg  10.87.0.4  8123:80\nweb is ready after 0.4 s."
    later = "web  ready  micro  qemu/kvm  10.87.12.4   8123:80\nweb is ready after 12.9 s."
    assert normal(shown) == normal(later)
    assert normal(shown) != normal(shown.replace("ready  micro", "failed  micro"))
    assert normal(shown) != normal(shown.replace("8123:80", "8124:80"))


def test_replaying_puts_in_what_was_printed() -> None:
    now = replayed(SESSION, lambda step: "new\n" if step.command == "true" else step.output)
    assert now == SESSION.replace("$ true\n", "$ true\nnew\n")


@pytest.mark.vm
def test_the_tutorial_prints_what_it_says(shell: Shell) -> None:
    page = PAGE.read_text()
    now = replayed(page, shell)
    if os.environ.get("HANOK_UPDATE_GOLDEN"):
        PAGE.write_text(now)
    told = [(step.command, normal(step.output)) for step in steps(page) if not step.is_file]
    seen = [(step.command, normal(step.output)) for step in steps(now) if not step.is_file]
    assert seen == told
    assert len(told) > 15
