"""Carrying plans out: what fails is undone, and what is kept can be read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import CommandFailed, HostError
from hanok.preparation import apply
from hanok.preparation.apply import _carry_out, _refuse_guests, removable
from hanok.preparation.journal import Journal, load, save
from hanok.preparation.plan import Command, FileChange, Plan
from hanok.proc import Completed, SystemRunner
from tests.preparation.test_plan import PLAIN


class Recorder(SystemRunner):
    """Runs nothing; ``bad`` fails, ``answers`` are what programs print."""

    def __init__(self, bad: str = "", answers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.ran: list[str] = []
        self._bad = bad
        self._answers = answers or {}

    async def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Write down what would be run."""
        text = " ".join(argv)
        self.ran.append(text)
        if text == self._bad:
            raise CommandFailed(f"{text} ended with status 1")
        return Completed(tuple(argv), 0, self._answers.get(text, "").encode(), b"")


def nobody(text: str) -> None:
    """Say it to nobody."""


def steps_in(folder: Path) -> tuple[FileChange | Command, ...]:
    (folder / "changed").write_bytes(b"old")
    (folder / "gone").write_bytes(b"here")
    return (
        FileChange(f"{folder}/deep/new", None, b"new", 0o755),
        FileChange(f"{folder}/changed", b"old", b"other"),
        FileChange(f"{folder}/gone", b"here", None),
        Command(("one",), "first", undo=("not-one",)),
        Command(("two",), "second"),
    )


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


async def test_steps_are_done_in_their_order(tmp_path: Path) -> None:
    runner = Recorder()
    await _carry_out(Plan(steps_in(tmp_path), ()), runner, nobody)
    assert content(tmp_path) == {"deep/new": b"new", "changed": b"other"}
    assert (tmp_path / "deep/new").stat().st_mode & 0o777 == 0o755
    assert runner.ran == ["one", "two"]


async def test_repeating_them_changes_nothing_more(tmp_path: Path) -> None:
    plan = Plan(steps_in(tmp_path), ())
    for _ in range(2):
        await _carry_out(plan, Recorder(), nobody)
    assert content(tmp_path) == {"deep/new": b"new", "changed": b"other"}


async def test_a_step_that_fails_undoes_those_before_it(tmp_path: Path) -> None:
    steps = steps_in(tmp_path)
    before = content(tmp_path)
    runner = Recorder(bad="two")
    with pytest.raises(CommandFailed, match="two"):
        await _carry_out(Plan(steps, ()), runner, nobody)
    assert content(tmp_path) == before
    assert runner.ran == ["one", "two", "not-one"]


PATHS = st.text("abc/", min_size=1, max_size=8)


@given(
    st.lists(st.tuples(PATHS, st.none() | st.binary(max_size=64), st.integers(0, 0o7777))),
    st.lists(st.text("abc-", min_size=1)),
)
def test_a_journal_reads_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[str, bytes | None, int]],
    added: list[str],
) -> None:
    path = tmp_path_factory.mktemp("journal") / "prepared.json"
    journal = Journal(tuple(FileChange(p, old, None, mode) for p, old, mode in files), tuple(added))
    save(journal, path)
    assert load(path) == journal
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": [{}], "added": []}', "nonsense"])
def test_a_damaged_journal_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prepared.json"
    path.write_text(text)
    with pytest.raises(HostError, match="is damaged"):
        load(path)


def test_no_journal_means_not_prepared(tmp_path: Path) -> None:
    assert load(tmp_path / "none") is None


async def test_a_server_with_guests_is_left_alone() -> None:
    head = "Name  ID  Mem VCPUs State Time(s)\nDomain-0  0  1024  2  r-----  9.1\n"
    await _refuse_guests(Recorder(answers={"xl list": head}))
    guest = head + "web  3  512  1  -b----  1.0\n"
    with pytest.raises(HostError, match="guests run on Xen here: web"):
        await _refuse_guests(Recorder(answers={"xl list": guest}))


def test_only_new_packages_are_taken_away_again() -> None:
    said = (
        "Inst libc6 [2.36-1] (2.36-2 Debian:12)\nInst xen-utils-4.17 (4.17 Debian:12)\nConf x (1)\n"
    )
    assert apply._NEW.findall(said) == ["xen-utils-4.17"]


ADDED = ("libjpeg62-turbo", "xen-utils-4.17", "qemu-system-xen")
WITH_XEN = replace(PLAIN, packages=frozenset({*ADDED, "vim", "viewer"}))
ALL = "apt-get purge --simulate libjpeg62-turbo xen-utils-4.17 qemu-system-xen"
CORE = "apt-get purge --simulate xen-utils-4.17 qemu-system-xen"
ALONE = "Purg xen-utils-4.17 [4.17]\nPurg qemu-system-xen [7.2]\n"


async def test_what_came_with_xen_goes_with_it() -> None:
    runner = Recorder(answers={ALL: ALONE + "Purg libjpeg62-turbo [2.1]\n"})
    assert await removable(runner, WITH_XEN, (*ADDED, "gone-already")) == ADDED


async def test_what_others_need_since_stays() -> None:
    others = ALONE + "Purg libjpeg62-turbo [2.1]\nRemv viewer [1.0]\n"
    runner = Recorder(answers={ALL: others, CORE: ALONE})
    assert await removable(runner, WITH_XEN, ADDED) == ADDED[1:]


async def test_what_others_need_of_xen_itself_is_said() -> None:
    others = ALONE + "Remv viewer [1.0]\n"
    with pytest.raises(HostError, match="could not stay: viewer"):
        await removable(Recorder(answers={ALL: others, CORE: others}), WITH_XEN, ADDED)


async def test_nothing_is_removed_where_nothing_was_added() -> None:
    runner = Recorder()
    assert await removable(runner, WITH_XEN, ()) == ()
    assert runner.ran == []
