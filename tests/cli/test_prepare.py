"""``hanok host prepare`` as typed; what it does to a server is in tests/lab/test_prepare.py."""

from __future__ import annotations

from tests.cli.conftest import Hanok


def test_a_size_that_is_none_is_refused(hanok: Hanok) -> None:
    done = hanok("host", "prepare", "--type", "1", "--dry-run", "--dom0-memory", "much")
    assert done.returncode == 2


def test_a_type_must_be_said(hanok: Hanok) -> None:
    assert hanok("host", "prepare").returncode == 2
    assert hanok("host", "prepare", "--type", "3").returncode == 2


def test_a_server_that_was_never_prepared_has_nothing_to_take_back(hanok: Hanok) -> None:
    done = hanok("host", "prepare", "--type", "2", "--dry-run")
    assert done.returncode == 0
    assert "not prepared" in done.stdout
