"""Copies of disks keep their holes, and are whole or not there."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hanok.errors import HostError
from hanok.storage.sparse import copy_sparse, data_extents, telling, written_whole
from hanok.units import KIB, MIB

SIZE = 4 * MIB


@pytest.fixture
def other_file_system() -> Iterator[Path]:
    """A folder on a file system that the kernel does not copy from to the one of short_tmp."""
    with tempfile.TemporaryDirectory(prefix="hk-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def large(short_tmp: Path) -> Path:
    """A file larger than the limit of small_files_only, made before that holds."""
    (short_tmp / "large").write_bytes(b"x" * 2 * MIB)
    return short_tmp / "large"


def make_sparse(path: Path, parts: dict[int, bytes], size: int = SIZE) -> None:
    with path.open("wb") as file:
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(
    st.dictionaries(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=100 * KIB), max_size=5)
)
def test_a_copy_is_equal_and_no_larger(
    short_tmp: Path, other_file_system: Path, parts: dict[int, bytes]
) -> None:
    for source in (short_tmp / "old", other_file_system / "old"):
        make_sparse(source, parts)
        copy_sparse(source, short_tmp / "new", 0o600)
        new = short_tmp / "new"
        assert new.read_bytes() == source.read_bytes()
        assert new.stat().st_blocks <= source.stat().st_blocks + 2 * 8 * len(parts)


def test_the_mode_is_what_was_asked_whatever_the_umask(short_tmp: Path) -> None:
    make_sparse(short_tmp / "old", {0: b"x"})
    before = os.umask(0o077)
    try:
        copy_sparse(short_tmp / "old", short_tmp / "new", 0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((short_tmp / "new").stat().st_mode) == 0o644


def test_extents_cover_all_data(short_tmp: Path) -> None:
    make_sparse(short_tmp / "old", {MIB: b"x", 3 * MIB: b"y"})
    with (short_tmp / "old").open("rb") as file:
        extents = list(data_extents(file.fileno(), SIZE))
        assert list(data_extents(file.fileno(), 0)) == []
        assert list(data_extents(file.fileno(), MIB // 2)) in ([], [(0, MIB // 2)])
    assert any(start <= MIB < end for start, end in extents)
    assert any(start <= 3 * MIB < end for start, end in extents)
    assert all(0 <= start < end <= SIZE for start, end in extents)


def test_a_link_is_not_followed(short_tmp: Path) -> None:
    secret = short_tmp / "secret"
    secret.write_text("canary")
    (short_tmp / "disk").symlink_to(secret)
    with pytest.raises(HostError, match="is a symbolic link"):
        copy_sparse(short_tmp / "disk", short_tmp / "new", 0o644)
    (short_tmp / "disk").unlink()
    (short_tmp / "disk").hardlink_to(secret)
    with pytest.raises(HostError, match="has a second name"):
        copy_sparse(short_tmp / "disk", short_tmp / "new", 0o644)
    assert not (short_tmp / "new").exists()


def test_a_copy_that_fails_leaves_nothing(
    short_tmp: Path, large: Path, small_files_only: None
) -> None:
    make_sparse(short_tmp / "old", {0: b"x" * 64 * KIB}, 64 * KIB)
    copy_sparse(short_tmp / "old", short_tmp / "new", 0o600)
    with pytest.raises(HostError, match="could not be copied"):
        copy_sparse(large, short_tmp / "new", 0o600)
    assert sorted(path.name for path in short_tmp.iterdir()) == ["large", "new", "old"]
    assert (short_tmp / "new").stat().st_size == 64 * KIB


def test_a_full_disk_is_said_with_what_helps(short_tmp: Path) -> None:
    with (
        pytest.raises(HostError, match="No space left") as caught,
        telling("it failed"),
        written_whole(short_tmp / "new", 0o600),
    ):
        Path("/dev/full").write_bytes(b"x")
    assert caught.value.hint == "free some of the disk; nothing was left behind"
    assert list(short_tmp.iterdir()) == []


def test_a_copy_into_a_folder_that_is_gone(short_tmp: Path) -> None:
    make_sparse(short_tmp / "old", {0: b"x"})
    with pytest.raises(HostError, match="could not be copied"):
        copy_sparse(short_tmp / "old", short_tmp / "gone" / "new", 0o644)
