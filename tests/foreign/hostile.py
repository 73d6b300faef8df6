"""Files of disks and appliances that were made to hurt: each does one thing that none may do.

``CASES`` names them all. Where a file needs something to steal, that is the canary: a file of the
host whose content must turn up nowhere. What is ``taken`` is harmless once it is rewritten.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from hanok.units import KIB, MIB, TIB
from tests.images.appliances import VIRTUALBOX, manifest

SIZE = 8 * MIB
BOOT = b"\xeb\xfe" + bytes(508) + b"\x55\xaa"
_SECTOR = 512


@dataclass(frozen=True)
class Place:
    """Where a case may make its file: a folder of its own; the canary lies outside it."""

    folder: Path
    canary: Path

    def write(self, name: str, data: bytes) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_bytes(data)
        return path


Make = Callable[[Place], Path]


@dataclass(frozen=True)
class Case:
    """How a file is made, what is said of it, and whether it becomes an image all the same.

    ``status``: that of the command, if it does not.
    """

    make: Make
    options: tuple[str, ...] = ()
    taken: bool = False
    status: int = 2


def _img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _raw(place: Place) -> Path:
    return place.write("plain.raw", BOOT + b"content" + bytes(SIZE - 519))


def whole(place: Place, kind: str, *options: str) -> bytes:
    """Return a good disk of that format."""
    plain, made = _raw(place), place.folder / "made"
    _img("convert", "-q", "-f", "raw", "-O", kind, *options, plain, made)
    data = made.read_bytes()
    plain.unlink()
    made.unlink()
    return data


# --- qcow2: docs/interop/qcow2.txt of QEMU ------------------------------------------------


def patched(*patches: tuple[int, bytes], options: tuple[str, ...] = ()) -> Make:
    """Return what makes a good qcow2 with some bytes replaced, by their place in the file."""

    def make(place: Place) -> Path:
        data = bytearray(whole(place, "qcow2", *options))
        for at, new in patches:
            data[at : at + len(new)] = new
        return place.write("disk.qcow2", bytes(data))

    return make


def backed(name: str, kind: str = "raw") -> Make:
    """Return what makes a qcow2 that stands on ``name``; {canary} and {folder} are filled in."""

    def make(place: Place) -> Path:
        text = name.replace("{canary}", str(place.canary)).encode()
        data = bytearray(whole(place, "qcow2"))
        data[8:20] = struct.pack(">QI", 0x400, len(text))
        data[0x400 : 0x400 + len(text)] = text
        extension = struct.pack(">II", 0xE2792ACA, len(kind)) + kind.encode().ljust(8, b"\0")
        length = struct.unpack_from(">I", data, 100)[0]
        data[length : length + len(extension)] = extension
        data[length + len(extension) : length + len(extension) + 8] = bytes(8)
        return place.write("disk.qcow2", bytes(data))

    return make


def with_data_file(place: Place) -> Path:
    """The clusters are in another file: the canary."""
    path, data = place.folder / "disk.qcow2", place.folder / "data"
    _img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", path, SIZE)
    text, canary = path.read_bytes(), str(place.canary).encode()
    at = text.index(str(data).encode())
    length = struct.pack(">I", len(canary))
    path.write_bytes(text[: at - 4] + length + canary.ljust(256, b"\0") + text[at + 256 :])
    data.unlink()
    return path


def with_extension(kind: int, length: int, *, count: int = 1) -> Make:
    """Return what makes a qcow2 with extensions of its header."""

    def make(place: Place) -> Path:
        data = bytearray(whole(place, "qcow2"))
        (start,) = struct.unpack_from(">I", data, 100)
        extensions = struct.pack(">II", kind, length) * count
        data[start : start + len(extensions)] = extensions
        return place.write("disk.qcow2", bytes(data))

    return make


def with_snapshot(place: Place) -> Path:
    """A snapshot inside: nobody asks for it, and it is not in what is kept."""
    path = place.write("disk.qcow2", whole(place, "qcow2"))
    _img("snapshot", "-c", "inside", path)
    return path


def repeating(size: int) -> Make:
    """Return what makes a small qcow2 that unpacks to ``size`` bytes: one cluster, all over."""

    def make(place: Place) -> Path:
        bits = 16
        cluster = 1 << bits
        tables = -(-size // (cluster * (cluster // 8)))
        l1 = 3 * cluster
        l2 = l1 + -(-8 * tables // cluster) * cluster
        data = l2 + cluster
        head = struct.pack(
            ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, bits, size, 0, tables, l1, cluster, 1, 0, 0
        )
        path = place.write("bomb.qcow2", head)
        with path.open("r+b") as file:
            file.seek(cluster)
            file.write(struct.pack(">Q", 2 * cluster))
            file.seek(2 * cluster)
            file.write(b"\0\1" * 16)
            file.seek(l1)
            file.write(struct.pack(">Q", l2) * tables)
            file.seek(l2)
            file.write(struct.pack(">Q", data) * (cluster // 8))
            file.seek(data)
            file.write(BOOT + os.urandom(cluster - len(BOOT)))
        return path

    return make


def looping(entry: int) -> Make:
    """Return what makes a qcow2 whose table of tables points into itself."""

    def make(place: Place) -> Path:
        data = bytearray(whole(place, "qcow2"))
        (l1,) = struct.unpack_from(">Q", data, 40)
        target = l1 if entry else 0
        data[l1 : l1 + 8] = struct.pack(">Q", 1 << 63 | target)
        return place.write("disk.qcow2", bytes(data))

    return make


# --- VMDK: VMware, Virtual Disk Format 5.0 ------------------------------------------------


def vmdk_text(text: str, name: str = "disk.vmdk") -> Make:
    """Return what makes a descriptor alone, in a file of its own."""

    def make(place: Place) -> Path:
        told = text.replace("{canary}", str(place.canary))
        return place.write(name, f"# Disk DescriptorFile\nversion=1\nCID=1\n{told}".encode())

    return make


def vmdk(
    text: str, *, capacity: int = 2048, grain: int = 128, entries: int = 512, at: int = 1
) -> Make:
    """Return what makes a sparse extent with the descriptor ``text`` in it."""

    def make(place: Place) -> Path:
        told = f"# Disk DescriptorFile\nversion=1\nCID=1\n{text}"
        told = told.replace("{canary}", str(place.canary))
        head = struct.pack(
            "<4sIIQQQQIQQQB", b"KDMV", 1, 3, capacity, grain, at, 20, entries, 0, 21, 128, 0
        )
        body = told.encode().ljust(20 * _SECTOR, b"\0")
        return place.write("disk.vmdk", head.ljust(_SECTOR, b"\0") + body + bytes(MIB))

    return make


SPARSE = 'createType="monolithicSparse"\nRW 2048 SPARSE "disk.vmdk"\n'


def vmdk_grain_bomb(place: Place) -> Path:
    """A stream-optimized disk whose grain says that it is 4 GiB long, and unpacks to 64 MiB."""
    data = bytearray(whole(place, "vmdk", "-o", "subformat=streamOptimized"))
    at = data.index(b"\x78", 128 * _SECTOR - 20)
    packed = zlib.compress(bytes(64 * MIB))
    data[at - 4 : at + len(packed)] = struct.pack("<I", 0xFFFFFFFF) + packed
    return place.write("disk.vmdk", bytes(data))


# --- archives -----------------------------------------------------------------------------


def _member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    padding = bytes(-len(data) % _SECTOR)
    return member.tobuf(tarfile.GNU_FORMAT) + data + padding


def _archive(*members: bytes) -> bytes:
    return b"".join(members) + bytes(2 * _SECTOR)


def ova(
    *more: tuple[str, bytes, bytes, str],
    ovf: str = VIRTUALBOX,
    disk: bytes | None = None,
    named: str = "box.vmdk",
) -> Make:
    """Return what makes an archive of a descriptor, a disk and ``more`` members."""

    def make(place: Place) -> Path:
        text = ovf.replace("{canary}", str(place.canary)).encode()
        inside = whole(place, "vmdk", "-o", "subformat=streamOptimized") if disk is None else disk
        extra = [
            _member(name, data, kind, link.replace("{canary}", str(place.canary)))
            for name, data, kind, link in more
        ]
        first = [] if named == "" else [_member(named, inside)]
        return place.write("box.ova", _archive(_member("box.ovf", text), *extra, *first))

    return make


def link(name: str, kind: bytes, target: str = "{canary}") -> Make:
    """Return what makes an archive with something in it that is no file."""
    return ova((name, b"", kind, target), named="")


def ova_with(disk: Make) -> Make:
    """Return what makes an archive whose disk is a file made by ``disk``."""

    def make(place: Place) -> Path:
        data = disk(place).read_bytes()
        return ova(disk=data)(place)

    return make


def ova_giant(place: Place) -> Path:
    """A member says that it has 8 EiB, in the binary way."""
    head = bytearray(_member("box.vmdk")[:_SECTOR])
    head[124:136] = b"\x80" + (2**63 - 1).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return place.write("box.ova", _archive(_member("box.ovf", VIRTUALBOX.encode()), bytes(head)))


def ova_pax(**fields: str) -> Make:
    """Return what makes an archive whose extended header says something else of its disk."""

    def make(place: Place) -> Path:
        told = {key: value.replace("{canary}", str(place.canary)) for key, value in fields.items()}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, data in (("box.ovf", VIRTUALBOX.encode()), ("box.vmdk", bytes(SIZE))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if name == "box.vmdk":
                    member.pax_headers = told
                archive.addfile(member, io.BytesIO(data))
        return place.write("box.ova", buffer.getvalue())

    return make


def ova_sparse(place: Place) -> Path:
    """A sparse member of 1 TiB, by GNU tar."""
    name = place.folder / "box.vmdk"
    with name.open("wb") as file:
        file.write(BOOT)
        file.truncate(TIB)
    path = place.write("box.ova", b"")
    (place.folder / "box.ovf").write_text(VIRTUALBOX)
    subprocess.run(
        ["tar", "-C", place.folder, "--sparse", "-cf", path, "box.ovf", "box.vmdk"], check=True
    )
    name.unlink()
    return path


def ova_manifest(place: Place) -> Path:
    """A manifest that lists the canary."""
    files = {"box.ovf": VIRTUALBOX.encode(), "box.vmdk": bytes(SIZE)}
    told = manifest(files) + f"SHA256({place.canary})= {'0' * 64}\n".encode()
    members = [_member(name, data) for name, data in {**files, "box.mf": told}.items()]
    return place.write("box.ova", _archive(*members))


_ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
LAUGHS = VIRTUALBOX.replace(
    "<Envelope", f'<!DOCTYPE x [<!ENTITY e0 "ha">{_ENTITIES}]><Envelope', 1
).replace('ovf:id="box"', 'ovf:id="&e11;"')
EXTERNAL = VIRTUALBOX.replace(
    "<Envelope", '<!DOCTYPE x [<!ENTITY a SYSTEM "file://{canary}">]><Envelope', 1
).replace("</VirtualSystem>", "<Name>&a;</Name></VirtualSystem>")
REMOTE = VIRTUALBOX.replace(
    "<Envelope", '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><Envelope', 1
)
INCLUDED = VIRTUALBOX.replace(
    "<VirtualSystem ",
    '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file://{canary}"/>'
    "<VirtualSystem ",
)
DEEP = VIRTUALBOX.replace("<VirtualSystem ", "<a>" * 100_000 + "</a>" * 100_000 + "<VirtualSystem ")


def named(href: str) -> str:
    """Return a descriptor whose disk is in the file ``href``."""
    return VIRTUALBOX.replace('href="box.vmdk"', f'href="{href}"')


def ovf_beside(href: str, *, symlink: bool = False) -> Make:
    """Return what makes a descriptor in a file of its own, which names ``href`` beside it."""

    def make(place: Place) -> Path:
        if symlink:
            (place.folder / href).symlink_to(place.canary)
        text = named(href).replace("{canary}", str(place.canary))
        return place.write("box.ovf", text.encode())

    return make


# --- what is compressed, special, or not what it seems ------------------------------------


def bomb(name: str, pack: Callable[[bytes], bytes]) -> Make:
    """Return what makes a file of 64 MiB of zeros, packed."""
    return lambda place: place.write(name, pack(bytes(64 * MIB)))


def special(make_node: Callable[[Path], None], name: str) -> Make:
    """Return what makes a file that is none."""

    def make(place: Place) -> Path:
        path = place.folder / name
        make_node(path)
        return path

    return make


def polyglot(*starts: bytes) -> Make:
    """Return what makes a disk with a boot sector that begins like something else."""

    def make(place: Place) -> Path:
        data = bytearray(BOOT + bytes(SIZE - _SECTOR))
        for start in starts:
            data[: len(start)] = start
        return place.write("disk.img", bytes(data))

    return make


def raw_with_header(place: Place) -> Path:
    """A raw disk on which its guest has written a qcow2 header with a backing file."""
    qcow2 = backed("{canary}")(place).read_bytes()[: 64 * KIB]
    data = bytearray(qcow2.ljust(SIZE, b"\0"))
    data[510:512] = b"\x55\xaa"
    return place.write("disk.img", bytes(data))


def cut(kind: str, size: int) -> Make:
    """Return what makes the beginning of a good disk."""
    return lambda place: place.write(f"disk.{kind}", whole(place, kind)[:size])


def huge_hole(place: Place) -> Path:
    """15 TiB of nothing, and a boot sector: no host of ours has room for it."""
    path = place.write("disk.img", BOOT)
    os.truncate(path, 15 * TIB)
    return path


def _json(canary: str) -> str:
    return "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": canary}})


def _u(size: int, value: int) -> bytes:
    return value.to_bytes(size, "big")


CASES: dict[str, Case] = {
    # qcow2 that names other files
    "backing file": Case(backed("{canary}")),
    "backing file upwards": Case(backed("../canary")),
    "backing file by json": Case(backed(_json("{canary}"))),
    "backing file by scheme": Case(backed("file:{canary}")),
    "backing file in the network": Case(backed("nbd://127.0.0.1:9/export")),
    "backing file by fat": Case(backed("fat:rw:/etc")),
    "backing name without an end": Case(patched((8, _u(8, 0x400) + _u(4, 0xFFFFFFFF)))),
    "backing name nowhere": Case(patched((8, _u(8, 2**62) + _u(4, 64)))),
    "format of a backing file alone": Case(with_extension(0xE2792ACA, 8)),
    "data file": Case(with_data_file),
    "data file without its feature": Case(with_extension(0x44415441, 8)),
    # qcow2 that does not add up
    "virtual size of 8 EiB": Case(patched((24, _u(8, 2**63 - 512)))),
    "virtual size of nothing": Case(patched((24, _u(8, 0)))),
    "virtual size below zero": Case(patched((24, _u(8, 2**64 - 1)))),
    "huge L1 table": Case(patched((36, _u(4, 0x7FFFFFFF)))),
    "L1 table nowhere": Case(patched((40, _u(8, 2**62)))),
    "L1 table over the header": Case(patched((40, _u(8, 0)))),
    "L2 table in the L1 table": Case(looping(1)),
    "L2 table in the header": Case(looping(0)),
    "no clusters": Case(patched((20, _u(4, 0)))),
    "clusters of 2 GiB": Case(patched((20, _u(4, 31)))),
    "clusters without a size": Case(patched((20, _u(4, 63)))),
    "refcounts of 2^63 bits": Case(patched((96, _u(4, 63)))),
    "refcounts nowhere": Case(patched((48, _u(8, 2**62) + _u(4, 0x7FFFFFFF)))),
    "refcounts of nothing": Case(patched((0x20000, bytes(0x10000))), taken=True),
    "four billion snapshots": Case(patched((60, _u(4, 0xFFFFFFFF) + _u(8, 0x10000)))),
    "a snapshot": Case(with_snapshot, taken=True),
    "encrypted by AES": Case(patched((32, _u(4, 1)))),
    "encrypted by LUKS": Case(patched((32, _u(4, 2)))),
    "marked as corrupt": Case(patched((72, _u(8, 2)))),
    "unknown features": Case(patched((72, _u(8, 2**40)))),
    "version 99": Case(patched((4, _u(4, 99)))),
    "a header without an end": Case(patched((100, _u(4, 0xFFFFFFF8)))),
    "an extension without an end": Case(with_extension(0x12345678, 0xFFFFFFF0)),
    "extensions without an end": Case(with_extension(0x12345678, 0, count=5000)),
    "one cluster a terabyte long": Case(repeating(TIB)),
    # VMDK
    "flat extent": Case(vmdk_text('createType="monolithicFlat"\nRW 2048 FLAT "{canary}" 0\n')),
    "flat extent upwards": Case(
        vmdk_text('createType="monolithicFlat"\nRW 2048 FLAT "../canary" 0\n')
    ),
    "flat extent, said to be VMDK": Case(
        vmdk_text('createType="monolithicFlat"\nRW 2048 FLAT "{canary}" 0\n'),
        ("--format", "vmdk"),
    ),
    "flat extent inside": Case(vmdk('createType="monolithicFlat"\nRW 2048 FLAT "{canary}" 0\n')),
    "device extent inside": Case(vmdk('createType="fullDevice"\nRW 2048 FLAT "/dev/vda" 0\n')),
    "second extent": Case(vmdk(SPARSE + 'RW 2048 FLAT "{canary}" 0\n')),
    "split VMDK": Case(vmdk('createType="twoGbMaxExtentSparse"\nRW 9 SPARSE "{canary}"\n')),
    "parent of a VMDK": Case(vmdk(SPARSE + 'parentCID=7\nparentFileNameHint="{canary}"\n')),
    "VMDK by its descriptor": Case(vmdk('RW 2048 FLAT "{canary}" 0\n', capacity=0)),
    "VMDK of 8 ZiB": Case(vmdk(SPARSE, capacity=2**64 - 1)),
    "VMDK with its descriptor nowhere": Case(vmdk(SPARSE, at=2**62)),
    "VMDK without grains": Case(vmdk(SPARSE, grain=0)),
    "VMDK with huge tables": Case(vmdk(SPARSE, entries=0xFFFFFFFF)),
    "VMDK with a grain without an end": Case(vmdk_grain_bomb),
    # archives
    "symbolic link in an archive": Case(link("box.vmdk", tarfile.SYMTYPE)),
    "hard link in an archive": Case(link("box.vmdk", tarfile.LNKTYPE)),
    "block device in an archive": Case(link("box.vmdk", tarfile.BLKTYPE, "")),
    "character device in an archive": Case(link("box.vmdk", tarfile.CHRTYPE, "")),
    "pipe in an archive": Case(link("box.vmdk", tarfile.FIFOTYPE, "")),
    "folder in an archive": Case(link("box.vmdk", tarfile.DIRTYPE, "")),
    "path upwards in an archive": Case(ova(("../out", b"x", tarfile.REGTYPE, ""))),
    "absolute path in an archive": Case(ova(("/etc/cron.d/hanok", b"x", tarfile.REGTYPE, ""))),
    "the same name twice": Case(ova(("box.vmdk", b"x", tarfile.REGTYPE, ""))),
    "a sparse member": Case(ova_sparse),
    "a giant member": Case(ova_giant),
    "path upwards in a pax header": Case(ova_pax(path="../../box.vmdk")),
    "canary in a pax header": Case(ova_pax(path="{canary}")),
    "size below zero in a pax header": Case(ova_pax(size="-1")),
    "a sparse map in a pax header": Case(
        ova_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "box.vmdk"})
    ),
    "archive that ends early": Case(
        lambda place: place.write("box.ova", ova()(place).read_bytes()[:4000])
    ),
    "archive in an archive": Case(ova_with(ova())),
    "backing file in an archive": Case(ova_with(backed("{canary}"))),
    "manifest that lists the canary": Case(ova_manifest),
    # descriptors
    "a billion laughs": Case(ova(ovf=LAUGHS)),
    "external entity": Case(ova(ovf=EXTERNAL)),
    "remote definition": Case(ova(ovf=REMOTE)),
    "inclusion": Case(ova(ovf=INCLUDED), taken=True),
    "a hundred thousand levels": Case(ova(ovf=DEEP), taken=True),
    "descriptor of 5 MiB": Case(ova(ovf=VIRTUALBOX + " " * 5 * MIB)),
    "disk of a path": Case(ova(ovf=named("{canary}"))),
    "disk of a URL": Case(ova(ovf=named("file://{canary}"))),
    "disk upwards": Case(ova(ovf=named("../canary"))),
    "descriptor of a path": Case(ovf_beside("{canary}")),
    "descriptor of a path upwards": Case(ovf_beside("../canary")),
    "descriptor of a link": Case(ovf_beside("box.vmdk", symlink=True)),
    # packed
    "gzip": Case(bomb("disk.img.gz", gzip.compress)),
    "gzip, said to be raw": Case(bomb("disk.img.gz", gzip.compress), ("--format", "qcow2")),
    "xz": Case(bomb("disk.img.xz", lambda data: lzma.compress(data, preset=0))),
    "zstd": Case(bomb("disk.img.zst", zstandard.ZstdCompressor().compress)),
    # special files
    "a pipe": Case(special(os.mkfifo, "pipe")),
    "a folder": Case(special(lambda path: path.mkdir(), "folder")),
    "a device": Case(special(lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(1, 5)), "zero")),
    "nothing": Case(lambda place: place.write("empty", b"")),
    "a byte": Case(lambda place: place.write("byte", b"Q")),
    "15 TiB of nothing": Case(huge_hole, status=1),
    # not what they seem
    "qcow2 header on a raw disk": Case(raw_with_header),
    "qcow2 header on a disk said to be raw": Case(
        raw_with_header, ("--format", "raw", "--firmware", "bios"), taken=True
    ),
    "boot sector that begins like VMDK": Case(polyglot(b"KDMV")),
    "boot sector that begins like LUKS": Case(polyglot(b"LUKS\xba\xbe"), taken=True),
    "boot sector that begins like VHDX": Case(polyglot(b"vhdxfile")),
    "boot sector that begins like a tar": Case(
        lambda place: place.write(
            "disk.img", b"x" * 257 + b"ustar\0" + bytes(247) + b"\x55\xaa" + bytes(SIZE)
        )
    ),
    "cut off in the header": Case(cut("qcow2", 90)),
    "cut off in the tables": Case(cut("qcow2", 0x10000)),
    "VMDK cut off": Case(cut("vmdk", 700)),
}
assert len(CASES) >= 40
