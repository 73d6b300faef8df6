"""Appliances of strangers: what their descriptors ask for, and archives that want to leave."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.errors import InvalidInput
from hanok.images.foreign.ova import read_ova
from hanok.images.foreign.ovf import ApplianceDisk, read_ovf
from hanok.images.library import ImageLibrary
from hanok.model.image import ForeignFormat, Image
from hanok.model.vm import Firmware, Mode, VmSpec
from hanok.proc import SystemRunner
from hanok.services.suiting import suited
from hanok.units import GIB, MIB
from tests.images.appliances import VIRTUALBOX, VMWARE, manifest, pack
from tests.images.test_foreign import ACCOUNT, SIZE, content, converted, refused, take

STREAM = ("-o", "subformat=streamOptimized")


@pytest.fixture
def library(short_tmp: Path) -> ImageLibrary:
    """An empty library."""
    return ImageLibrary(short_tmp / "images", SystemRunner(), ACCOUNT)


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    """A VMDK as appliances have it, of a disk with a boot sector."""
    plain = tmp_path / "plain.raw"
    plain.write_bytes(b"\xeb\xfe" + bytes(508) + b"\x55\xaa" + b"first" + bytes(SIZE - 517))
    return converted(plain, "vmdk", *STREAM).read_bytes()


@pytest.fixture
def second(tmp_path: Path) -> bytes:
    """Another one, that boots nothing."""
    plain = tmp_path / "second.raw"
    plain.write_bytes(b"second" + bytes(SIZE - 6))
    return converted(plain, "vmdk", *STREAM).read_bytes()


def test_what_a_descriptor_of_vmware_says() -> None:
    found = read_ovf(VMWARE.encode())
    assert (found.name, found.os) == ("An Appliance", "Debian GNU/Linux 12")
    assert (found.cpus, found.memory) == (2, 192 * MIB)
    assert found.nics == ("front", "back")
    assert found.firmware is Firmware.BIOS
    assert found.disks == (
        ApplianceDisk("app-disk2.vmdk", 8 * MIB),
        ApplianceDisk("app-disk1.vmdk", 8 * MIB),
        ApplianceDisk(None, GIB),
    )


def test_what_a_descriptor_of_virtualbox_says() -> None:
    found = read_ovf(VIRTUALBOX.encode())
    assert (found.cpus, found.memory, found.nics) == (1, 128 * MIB, ("NAT",))
    assert found.disks == (ApplianceDisk("box.vmdk", 8 * MIB),)
    assert found.firmware is Firmware.UEFI


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<References>", "<References"),
        ('capacity="8388608"', 'capacity="-1"'),
        ('capacity="8388608"', 'capacity="99999999999999999999"'),
        ('capacity="8388608"', 'capacity="9223372036854775807"'),
        ('capacity="8388608"', 'capacity="1" ovf:capacityAllocationUnits="byte * 2^99"'),
        (">MegaBytes<", ">parsecs<"),
        (">128<", ">999999999999<"),
        (">128<", "><script/>0<"),
        ("/disk/vmdisk1", "/disk/vmdisk7"),
        ('fileRef="file1"', 'fileRef="file9"'),
        ('fileRef="file1"', 'fileRef="file1" ovf:parentRef="other"'),
        ('ovf:href="box.vmdk"', 'ovf:href="box.vmdk" ovf:compression="gzip"'),
        ('ovf:href="box.vmdk"', 'ovf:href="../box.vmdk"'),
        ('ovf:href="box.vmdk"', 'ovf:href="/etc/passwd"'),
        ('ovf:href="box.vmdk"', 'ovf:href="file:///etc/passwd"'),
        ('ovf:href="box.vmdk"', 'ovf:href=""'),
        ("<VirtualSystem", "<VirtualSystem/><VirtualSystem"),
        ("Envelope", "Letter"),
    ],
)
def test_what_makes_no_sense_is_refused(old: str, new: str) -> None:
    assert old in VIRTUALBOX
    text = VIRTUALBOX.replace(old, new)
    if "script" in new:  # text beside an element is only text
        assert read_ovf(text.encode()).memory is None
        return
    with pytest.raises(InvalidInput):
        read_ovf(text.encode())


@pytest.mark.parametrize(
    "entity",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">',
    ],
)
def test_entities_are_not_expanded(entity: str) -> None:
    text = VIRTUALBOX.replace("<Envelope", f"{entity}<Envelope", 1)
    with pytest.raises(InvalidInput, match="XML"):
        read_ovf(text.encode())


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(VIRTUALBOX)))
def test_garbled_descriptors_are_bad_input(junk: bytes, place: int) -> None:
    whole = VIRTUALBOX.encode()
    for text in (junk, whole[:place] + junk + whole[place:], whole[:place]):
        try:
            read_ovf(text)
        except InvalidInput:
            continue


async def test_an_appliance_becomes_an_image_that_asks_for_what_it_needs(
    library: ImageLibrary, short_tmp: Path, tmp_path: Path, disk: bytes, second: bytes
) -> None:
    files = {"app.ovf": VMWARE.encode(), "app-disk1.vmdk": second, "app-disk2.vmdk": disk}
    whole = {"app.ovf": files["app.ovf"], "app.mf": manifest(files), **files}
    image = await take(library, pack(tmp_path / "app.ova", whole), short_tmp)
    assert image.imported is not None
    assert image.imported.format is ForeignFormat.OVA
    assert image.os == "Debian GNU/Linux 12"
    assert image.firmware == (Firmware.BIOS,)
    assert content(library, image)[512:517] == b"first"
    assert [(one.file, one.size) for one in image.data_disks] == [
        ("disk-2.qcow2", SIZE),
        ("disk-3.qcow2", GIB),
    ]
    more = image.model_copy(update={"disk": "disk-2.qcow2"})
    assert content(library, more)[:6] == b"second"
    await library.verify(image)
    spec = VmSpec.model_validate({"name": "vm", "image": "own:old", "networks": ["a", "b"]})
    made = suited(spec, image)
    assert (made.cpus, made.memory, made.mode) == (2, 192 * MIB, Mode.FULL)
    assert made.data_disks == GIB + SIZE
    own = VmSpec.model_validate({**spec.model_dump(exclude_unset=True), "cpus": 4, "mode": "para"})
    assert (suited(own, image).cpus, suited(own, image).mode) == (4, Mode.PARA)
    with pytest.raises(InvalidInput, match="2 network cards"):
        suited(VmSpec(name="vm", image="own:old"), image)


async def broken(library: ImageLibrary, folder: Path, path: Path) -> str:
    error = await refused(library, path, folder)
    assert isinstance(error, InvalidInput)
    return error.message


@pytest.mark.parametrize("kind", ["SHA1", "SHA256", "SHA512"])
async def test_a_manifest_is_believed_rather_than_the_archive(
    library: ImageLibrary, short_tmp: Path, tmp_path: Path, disk: bytes, kind: str
) -> None:
    files = {"box.ovf": VIRTUALBOX.encode(), "box.vmdk": disk}
    path = tmp_path / "box.ova"
    pack(path, {**files, "box.mf": manifest({**files, "box.vmdk": disk[:-1] + b"x"}, kind)})
    assert kind in await broken(library, short_tmp, path)
    pack(path, {**files, "box.mf": manifest({"box.ovf": files["box.ovf"]}, kind)})
    assert "does not list box.vmdk" in await broken(library, short_tmp, path)
    pack(path, {**files, "box.mf": manifest(files, kind)})
    assert isinstance(await take(library, path, short_tmp), Image)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


def add_many(tar: tarfile.TarFile) -> None:
    for number in range(99):
        tar.addfile(member(f"file-{number}"))


HOSTILE: dict[str, Callable[[tarfile.TarFile], None]] = {
    "a symbolic link": lambda tar: tar.addfile(member("box.vmdk", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": lambda tar: tar.addfile(member("box.vmdk", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": lambda tar: tar.addfile(member("box.vmdk", tarfile.BLKTYPE)),
    "a pipe": lambda tar: tar.addfile(member("box.vmdk", tarfile.FIFOTYPE)),
    "a folder": lambda tar: tar.addfile(member("box.vmdk", tarfile.DIRTYPE)),
    "a path upwards": lambda tar: tar.addfile(member("../box.vmdk")),
    "an absolute path": lambda tar: tar.addfile(member("/etc/cron.d/box")),
    "the same twice": lambda tar: tar.addfile(member("box.ovf")),
    "too many": lambda tar: add_many(tar),
    "no disk": lambda tar: tar.addfile(member("other.vmdk")),
    "two descriptors": lambda tar: tar.addfile(member("other.ovf")),
}


@pytest.mark.parametrize("add", HOSTILE.values(), ids=HOSTILE)
async def test_archives_that_want_to_leave_are_refused(
    library: ImageLibrary, short_tmp: Path, tmp_path: Path, add: Callable[[tarfile.TarFile], None]
) -> None:
    path = pack(tmp_path / "box.ova", {"box.ovf": VIRTUALBOX.encode()})
    with tarfile.open(path, "a") as archive:
        add(archive)
    await broken(library, short_tmp, path)


async def test_a_size_that_is_not_there_is_refused(
    library: ImageLibrary, short_tmp: Path, tmp_path: Path, disk: bytes
) -> None:
    path = pack(tmp_path / "box.ova", {"box.ovf": VIRTUALBOX.encode(), "box.vmdk": disk})
    whole = path.read_bytes()
    place = whole.index(b"box.vmdk" + bytes(9))
    head = tarfile.TarInfo("box.vmdk")
    head.size = 2**40
    path.write_bytes(whole[:place] + head.tobuf(tarfile.GNU_FORMAT) + whole[place + 512 :])
    assert "cut off" in await broken(library, short_tmp, path)
    path.write_bytes(whole[: place + 4096])
    await broken(library, short_tmp, path)


def test_a_header_that_is_absurdly_large_is_not_read() -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 2**33
    data = head.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    with pytest.raises(InvalidInput, match="absurdly large"):
        read_ova(io.BytesIO(data), 2**34)


@settings(deadline=None)
@given(st.binary(max_size=2048))
def test_garbled_archives_are_bad_input(junk: bytes) -> None:
    head = tarfile.TarInfo("box.ovf")
    head.size = len(VIRTUALBOX)
    start = head.tobuf() + VIRTUALBOX.encode()
    for data in (junk, start + junk):
        with pytest.raises(InvalidInput):
            read_ova(io.BytesIO(data), len(data))
