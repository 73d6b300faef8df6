"""Disks of strangers: what they name is never read, what they claim is bounded."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.errors import CommandFailed, Conflict, HanokError, InvalidInput, NotAdmitted
from hanok.images.foreign import convert as converting
from hanok.images.foreign.take import ForeignOrder
from hanok.images.jail import make_jail
from hanok.images.library import ImageLibrary
from hanok.model.image import DiskFormat, ForeignFormat, Image, ImportRequest
from hanok.model.vm import Firmware
from hanok.proc import Account, SystemRunner
from hanok.units import KIB, MIB, TIB
from tests.conftest import BUILD_UID

ACCOUNT = Account(BUILD_UID, BUILD_UID)
CANARY = b"canary: this file of the host is nobody's business. " * 100
SIZE = 8 * MIB


@pytest.fixture
def library(short_tmp: Path) -> ImageLibrary:
    """An empty library."""
    return ImageLibrary(short_tmp / "images", SystemRunner(), ACCOUNT)


@pytest.fixture
def canary(short_tmp: Path) -> Iterator[Path]:
    """A file that everyone may read, and that none of this may."""
    path = short_tmp / "canary"
    path.write_bytes(CANARY)
    path.chmod(0o644)
    yield path
    assert path.read_bytes() == CANARY


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A raw disk with a boot sector and something in it."""
    path = tmp_path / "plain.raw"
    boot = b"\xeb\xfe" + bytes(508) + b"\x55\xaa"
    path.write_bytes(boot + b"content of the disk" + bytes(SIZE - 531))
    return path


def img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def converted(plain: Path, kind: str, *options: str) -> Path:
    target = plain.with_suffix(f".{kind}")
    img("convert", "-q", "-f", "raw", "-O", kind, *options, plain, target)
    return target


def order(path: Path, folder: Path, **said: object) -> ForeignOrder:
    """Return what is asked for ``path``, of a copy: that one changes hands."""
    copy = folder / f"upload-{path.name}"
    shutil.copyfile(path, copy)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = ImportRequest.model_validate({"name": "old", "file": path.name, **said})
    return ForeignOrder(copy, digest, wanted)


async def take(library: ImageLibrary, path: Path, folder: Path, **said: object) -> Image:
    return await library.take(order(path, folder, **said), lambda message, fraction: None)


async def refused(library: ImageLibrary, path: Path, folder: Path, **said: object) -> HanokError:
    """Return the error, after a look that nothing was left."""
    with pytest.raises(HanokError) as caught:
        await take(library, path, folder, **said)
    left = folder / "images"
    assert [one.name for one in left.iterdir() if one.name != ".apt-cache"] == []
    return caught.value


def content(library: ImageLibrary, image: Image, size: int = SIZE) -> bytes:
    disk = library.path(image) / image.disk
    raw = disk.parent.parent / "content"
    img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
    data = raw.read_bytes()
    raw.unlink()
    assert len(data) == size
    return data


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("raw", ()),
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("qcow2", ("-o", "compat=0.10")),
        ("qcow2", ("-o", "compression_type=zstd", "-c")),
        ("qcow2", ("-o", "extended_l2=on")),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
async def test_each_format_becomes_a_disk_of_ours(
    library: ImageLibrary,
    short_tmp: Path,
    plain: Path,
    kind: str,
    options: tuple[str, ...],
) -> None:
    path = plain if kind == "raw" else converted(plain, kind, *options)
    image = await take(library, path, short_tmp, ssh_user="admin")
    assert content(library, image) == plain.read_bytes()
    assert image.ref == "own:old"
    assert image.disk_format is DiskFormat.QCOW2
    assert image.disk_size == SIZE
    assert image.firmware == (Firmware.BIOS,)
    assert image.imported is not None
    assert image.imported.format == kind
    assert image.imported.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (image.agent, image.cloud_init, image.ssh_user) == (False, True, "admin")
    await library.verify(image)
    assert library.find("own:old") == image
    assert list((short_tmp / "images").glob(".[!a]*")) == []


async def test_a_daemon_with_a_strict_umask_takes_disks_too(
    library: ImageLibrary, short_tmp: Path, plain: Path
) -> None:
    before = os.umask(0o077)
    try:
        image = await take(library, plain, short_tmp)
    finally:
        os.umask(before)
    assert content(library, image) == plain.read_bytes()


async def test_the_same_again_is_there_and_another_of_that_name_is_not(
    library: ImageLibrary, short_tmp: Path, plain: Path
) -> None:
    first = await take(library, plain, short_tmp)
    assert await take(library, plain, short_tmp) == first
    with pytest.raises(Conflict, match="own:old"):
        await take(library, plain, short_tmp, firmware="uefi")


async def test_what_a_guest_wrote_on_a_raw_disk_is_not_believed_when_raw_is_said(
    library: ImageLibrary, short_tmp: Path, plain: Path, canary: Path
) -> None:
    hostile = short_tmp / "disk.img"
    img("create", "-q", "-f", "qcow2", "-b", canary, "-F", "raw", hostile)
    image = await take(library, hostile, short_tmp, format="raw", firmware="bios")
    assert content(library, image, image.disk_size).startswith(b"QFI\xfb")


async def test_a_backing_file_is_refused(
    library: ImageLibrary, short_tmp: Path, canary: Path
) -> None:
    hostile = short_tmp / "disk.qcow2"
    for below in (
        str(canary),
        f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{canary}"}}}}',
    ):
        hostile.unlink(missing_ok=True)
        img("create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", hostile)
        error = await refused(library, hostile, short_tmp)
        assert isinstance(error, InvalidInput)
        assert "another file" in error.message


async def test_a_data_file_is_refused(library: ImageLibrary, short_tmp: Path, canary: Path) -> None:
    hostile, data = short_tmp / "disk.qcow2", short_tmp / "data"
    img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", hostile, "1M")
    assert "another file" in (await refused(library, hostile, short_tmp)).message
    # The same without the feature's bit: the name alone.
    head = bytearray(hostile.read_bytes())
    head[72:80] = bytes(8)
    hostile.write_bytes(head)
    assert "another file" in (await refused(library, hostile, short_tmp)).message


VMDK_TEXTS = {
    "another file": 'createType="monolithicFlat"\nRW 2048 FLAT "{canary}" 0\n',
    "several": 'createType="monolithicSparse"\nRW 9 SPARSE "a"\nRW 2048 FLAT "{canary}" 0\n',
    "a parent": 'createType="monolithicSparse"\nparentCID=12345678\nparentFileNameHint="{canary}"\n'
    'RW 9 SPARSE "a"\n',
    "nothing": "",
}


@pytest.mark.parametrize("text", VMDK_TEXTS.values(), ids=VMDK_TEXTS)
@pytest.mark.parametrize("capacity", [0, 2048])
async def test_a_vmdk_that_names_files_is_refused(
    library: ImageLibrary, short_tmp: Path, canary: Path, text: str, capacity: int
) -> None:
    hostile = short_tmp / "disk.vmdk"
    head = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 1, 3, capacity, 128, 1, 20, 512, 0, 21, 128, 0)
    told = ("# Disk DescriptorFile\nversion=1\nCID=1\n" + text.format(canary=canary)).encode()
    hostile.write_bytes(head.ljust(512, b"\0") + told.ljust(20 * 512, b"\0") + bytes(MIB))
    error = await refused(library, hostile, short_tmp)
    assert isinstance(error, InvalidInput)


async def test_a_vmdk_descriptor_alone_is_refused(
    library: ImageLibrary, short_tmp: Path, plain: Path
) -> None:
    path = converted(plain, "vmdk", "-o", "subformat=monolithicFlat")
    assert "other files" in (await refused(library, path, short_tmp)).message
    assert "VMDK" in (await refused(library, path, short_tmp, format="vmdk")).message


@pytest.mark.parametrize("size", [0, 17 * TIB, 2**63 - 512, 2**64 - 1])
async def test_a_virtual_size_is_bounded(
    library: ImageLibrary, short_tmp: Path, plain: Path, size: int
) -> None:
    hostile = converted(plain, "qcow2")
    head = bytearray(hostile.read_bytes())
    head[24:32] = size.to_bytes(8, "big")
    hostile.write_bytes(head)
    error = await refused(library, hostile, short_tmp)
    assert "16 TiB" in str(error.expected)


async def test_what_unpacks_to_more_than_there_is_room_for_ends(
    library: ImageLibrary, short_tmp: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.write_bytes(plain.read_bytes()[:512] + os.urandom(64 * KIB) * 1024)  # 64 MiB
    monkeypatch.setattr(converting, "_room", lambda folder: 20 * MIB)
    error = await refused(library, plain, short_tmp)
    assert isinstance(error, NotAdmitted)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b" + bytes(600), "gunzip"),
        (b"\xfd7zXZ\0" + bytes(600), "xz"),
        (b"conectix" + bytes(600), "VHD"),
        (b"hello", "--format raw"),
        (bytes(4096), "--format raw"),
    ],
)
async def test_other_files_are_refused_with_a_way_out(
    library: ImageLibrary, short_tmp: Path, tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    error = await refused(library, path, short_tmp)
    assert words in f"{error.message} {error.hint}"


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
async def test_cut_off_and_garbled_disks_are_refused(
    library: ImageLibrary, short_tmp: Path, plain: Path, kind: str
) -> None:
    whole = converted(plain, kind).read_bytes()
    path = short_tmp / "broken"
    for number, cut in enumerate((3, 60, 90, 400, 700, 4096)):
        path.write_bytes(whole[:cut])
        error = await refused(library, path, short_tmp, format=kind)
        assert isinstance(error, InvalidInput), (number, error)


async def test_a_disk_that_nothing_boots_needs_a_word(
    library: ImageLibrary, short_tmp: Path, plain: Path
) -> None:
    data = bytearray(plain.read_bytes())
    data[:440] = bytes(440)
    plain.write_bytes(data)
    error = await refused(library, plain, short_tmp)
    assert "--firmware" in str(error.hint)
    image = await take(library, plain, short_tmp, firmware="uefi")
    assert image.firmware == (Firmware.UEFI,)


@pytest.mark.skipif(os.geteuid() != 0, reason="the jail needs root")
async def test_in_the_jail_there_is_nothing_to_read(
    short_tmp: Path, plain: Path, canary: Path, runner: SystemRunner
) -> None:
    """What the checks should ever let through meets an empty house."""
    jail = make_jail(plain, short_tmp / "jail", ACCOUNT)
    given, made = jail.given(), jail.made("found")
    looks = f"cat {canary}; ls /tmp /root /proc/1 /in/..; id -u; echo x > {made}; wc -c < {given}"
    done = await runner.run(jail.argv(["sh", "-c", f"exec 2>&-; {looks}"]), cwd=Path("/"))
    lines = done.stdout.decode().split()
    assert lines[-2:] == [str(BUILD_UID), str(SIZE)]
    assert set(lines[:-2]) <= {
        "bin",
        "sbin",
        "lib",
        "lib32",
        "lib64",
        "usr",
        "etc",
        "in",
        "out",
        "/in/..:",
    }
    assert CANARY not in done.stdout
    assert (jail.out / "found").stat().st_uid == BUILD_UID
    with pytest.raises(CommandFailed):
        await runner.run(jail.argv(["sh", "-c", f"echo x > {given}"]), cwd=Path("/"))
    with pytest.raises(CommandFailed):
        await runner.run(
            jail.argv(["unshare", "--user", "--map-root-user", "mount", "-o", "remount,rw", "/"])
        )
    overlay = short_tmp / "overlay.qcow2"
    img("create", "-q", "-f", "qcow2", "-b", canary, "-F", "raw", overlay)
    hostile = make_jail(overlay, short_tmp / "jail2", ACCOUNT)
    command = [
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        hostile.given(),
        hostile.made("out.raw"),
    ]
    with pytest.raises(CommandFailed, match="No such file"):
        await runner.run(hostile.argv(command), cwd=Path("/"))


def test_formats_are_those_of_the_model() -> None:
    assert {"qcow2", "raw", "vmdk"} <= {str(one) for one in ForeignFormat}
