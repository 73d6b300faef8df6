"""What a plan must know of a server, gathered once. The plan itself reads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hanok.proc import Runner, find_program
from hanok.units import MIB

GRUB_CFG = "/boot/grub/grub.cfg"
GRUBENV = "/boot/grub/grubenv"
_NEEDED = ("update-grub", "grub-probe", "grub-editenv", "apt-get", "systemctl")
_WRITABLE = frozenset({"ext2", "xfs", "fat"})
_SERIAL = re.compile(r"\bconsole=ttyS0(?:,(\d+))?")
_TYPE_FILE = "/sys/hypervisor/type"


@dataclass(frozen=True)
class Server:
    """A server as it is. Sizes in bytes. ``files``: what is at the paths that a plan may write.

    ``serial``: the speed of the first serial port when it is a console. ``grubenv_problem``: why
    GRUB cannot write its environment at boot, if it cannot. ``missing``: programs.
    """

    system: str
    version: str
    architecture: str
    is_root: bool
    secure_boot: bool
    on_xen: bool
    memory: int
    cpus: int
    missing: tuple[str, ...] = ()
    serial: int | None = None
    grubenv_problem: str | None = None
    packages: frozenset[str] = frozenset()
    files: Mapping[str, bytes | None] = field(default_factory=dict)


async def read_server(runner: Runner, paths: tuple[str, ...]) -> Server:
    """Return what this machine is. Raises CommandFailed when dpkg does not answer."""
    release = _os_release(_text("/etc/os-release"))
    missing = tuple(name for name in _NEEDED if find_program(name) is None)
    architecture = await runner.run(["dpkg", "--print-architecture"], check=False)
    listed = await runner.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n"])
    serial = _SERIAL.search(_text("/proc/cmdline"))
    on_xen = _text(_TYPE_FILE).strip() == "xen"
    size = await _size_on_xen(runner) if on_xen else _own_size()
    return Server(
        system=release.get("ID", "unknown"),
        version=release.get("VERSION_ID", "unknown"),
        architecture=architecture.stdout.decode().strip(),
        is_root=os.geteuid() == 0,
        secure_boot=_has_secure_boot(),
        on_xen=on_xen,
        memory=size.memory,
        cpus=size.cpus,
        missing=missing,
        serial=int(serial[1] or 9600) if serial is not None else None,
        grubenv_problem=None if missing else await _grubenv_problem(runner),
        packages=frozenset(
            line.split()[1] for line in listed.stdout.decode().splitlines() if line[1:2] == "i"
        ),
        files={path: read_bytes(path) for path in paths},
    )


def read_bytes(path: str) -> bytes | None:
    """Return the content of a file, or None when there is none."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _text(path: str) -> str:
    return (read_bytes(path) or b"").decode("utf-8", "replace")


def _os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip().strip("\"'") for name, _, value in pairs}


@dataclass(frozen=True)
class _Size:
    memory: int
    cpus: int


def _own_size() -> _Size:
    return _Size(
        _number(_text("/proc/meminfo"), r"^MemTotal:\s+(\d+) kB$") * 1024, os.cpu_count() or 1
    )


async def _size_on_xen(runner: Runner) -> _Size:
    """Dom0 sees its own share only; Xen knows the whole."""
    info = (await runner.run(["xl", "info"])).stdout.decode()
    memory = _number(info, r"^total_memory\s*:\s*(\d+)$") * MIB
    return _Size(memory, _number(info, r"^nr_cpus\s*:\s*(\d+)$"))


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text, re.M)
    return int(found[1]) if found is not None else 0


def _has_secure_boot() -> bool:
    """UEFI 2.10, 3.3: the variable's first four bytes here are attributes, the fifth its value."""
    folder = Path("/sys/firmware/efi/efivars")
    for path in folder.glob("SecureBoot-*") if folder.is_dir() else ():
        return (read_bytes(str(path)) or b"")[4:5] == b"\1"
    return False


async def _grubenv_problem(runner: Runner) -> str | None:
    """GRUB writes the sectors of a plain file: nothing can lie between it and the disk."""
    found = {}
    for target in ("abstraction", "fs"):
        argv = ["grub-probe", f"--target={target}", "/boot/grub"]
        done = await runner.run(argv, check=False)
        if done.returncode != 0:
            return f"grub-probe does not know what /boot/grub is on: {done.stderr.decode()[-200:]}"
        found[target] = done.stdout.decode().strip()
    if found["abstraction"]:
        return f"/boot/grub is on {found['abstraction']}"
    return None if found["fs"] in _WRITABLE else f"/boot/grub is on {found['fs']}"
