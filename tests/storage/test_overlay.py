"""Empty overlays are what qemu-img makes, and QEMU's own tools find nothing wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import InvalidInput
from hanok.model.image import DiskFormat
from hanok.proc import Account
from hanok.storage.overlay import overlay_parts, write_overlay
from hanok.storage.volumes import create_overlay
from hanok.units import GIB, KIB, MIB

TIB = 1024 * GIB
LARGEST = 2048 * TIB
WORDS = "what the base has"


@pytest.fixture(params=list(DiskFormat))
def base(request: pytest.FixtureRequest, short_tmp: Path) -> tuple[Path, DiskFormat]:
    """A base of 1 MiB that begins with WORDS."""
    raw = short_tmp / "base.raw"
    raw.write_bytes(WORDS.encode().ljust(MIB, b"\0"))
    path = short_tmp / f"base, \N{LATIN SMALL LETTER E WITH ACUTE}.{request.param}"
    run("convert", "-f", "raw", "-O", str(request.param), str(raw), str(path))
    return path, request.param


def run(*arguments: str) -> str:
    return subprocess.run(
        ["qemu-img", *arguments], check=True, capture_output=True, text=True
    ).stdout


def facts(path: Path) -> Any:
    found = json.loads(run("info", "-f", "qcow2", "--output", "json", str(path)))
    return {key: value for key, value in found.items() if key not in ("filename", "children")}


@pytest.mark.parametrize(
    "size",
    [
        *(512, MIB + 512, 512 * MIB, 512 * MIB + 512, 20 * GIB),
        *(4 * TIB, 4 * TIB + 512, 500 * TIB, LARGEST),
    ],
)
def test_it_is_what_qemu_img_makes(
    base: tuple[Path, DiskFormat], short_tmp: Path, size: int
) -> None:
    path, format = base
    ours, theirs = short_tmp / "ours", short_tmp / "theirs"
    write_overlay(ours, path, format, size, None)
    make = ["-q", "-f", "qcow2", "-F", str(format), "-b", str(path)]
    run("create", *make, str(theirs), str(size))
    # The rest of its last cluster has no bytes in the file of qemu-img.
    assert 0 <= ours.stat().st_size - theirs.stat().st_size < 64 * KIB
    found, wanted = facts(ours), facts(theirs)
    for told in (found, wanted):
        told.pop("actual-size")
    assert found == wanted
    checked = json.loads(run("check", "-f", "qcow2", "--output", "json", str(ours)))
    assert checked["check-errors"] == 0
    assert not {"leaks", "corruptions"} & checked.keys()


def test_a_guest_finds_the_base_and_writes_beside_it(
    base: tuple[Path, DiskFormat], short_tmp: Path
) -> None:
    path, format = base
    overlay, before = short_tmp / "overlay", path.read_bytes()
    write_overlay(overlay, path, format, 3 * GIB, None)
    spelled = f"-P {ord(WORDS[0])} 0 1"
    writing = ("write -P 7 2G 64k", "read -P 7 2G 64k", f"read {spelled}", "read -P 0 1M 1M")
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", *(word for one in writing for word in ("-c", one)), overlay],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Pattern verification failed" not in done.stdout
    assert path.read_bytes() == before
    run("check", "-f", "qcow2", str(overlay))


async def test_it_belongs_to_the_vms_user_alone_and_is_made_once(short_tmp: Path) -> None:
    path, account = short_tmp / "disk.qcow2", Account(61234, 61235)
    make = partial(
        create_overlay,
        path=path,
        base=short_tmp / "base",
        base_format=DiskFormat.RAW,
        account=account,
    )
    await make(size=GIB)
    found = path.stat()
    assert found.st_mode & 0o777 == 0o600
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid) == (61234, 61235)
    await make(size=2 * GIB)
    assert path.stat() == found
    assert list(short_tmp.iterdir()) == [path]


def test_what_lies_in_its_place_is_not_written_through(short_tmp: Path) -> None:
    other, path = short_tmp / "other", short_tmp / "disk.qcow2"
    other.write_text("precious")
    path.symlink_to(other)
    with pytest.raises(FileExistsError):
        write_overlay(path, short_tmp / "base", DiskFormat.RAW, GIB, None)
    assert other.read_text() == "precious"


@given(size=st.integers(1, LARGEST), name=st.text(max_size=255).filter(lambda n: "\0" not in n))
def test_every_size_and_name_fit(size: int, name: str) -> None:
    try:
        parts = overlay_parts(Path("/", name), DiskFormat.QCOW2, size)
    except UnicodeEncodeError:
        return  # no file can be called so
    head = parts[0]
    rounded = int.from_bytes(head[24:32], "big")
    assert size <= rounded < size + 512
    assert len(head) <= 64 * KIB


@pytest.mark.parametrize(
    ("name", "size", "field"),
    [("a" * 1023, GIB, "base"), ("a", 0, "disk"), ("a", -512, "disk"), ("a", LARGEST + 1, "disk")],
)
def test_what_no_file_can_be_is_refused(name: str, size: int, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        overlay_parts(Path("/", name), DiskFormat.RAW, size)
    assert caught.value.field == field
