"""Plain QEMU, started by hand with the same guest: what Hanok is compared with.

The same kernel, initrd, disk, memory, devices and accelerator as Hanok's, and nothing of Hanok:
no daemon, no namespaces, no confinement, a network card that leads nowhere.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_AGENT = "org.qemu.guest_agent.0"
_BOOT_LIMIT = 120.0
_ASK_AGAIN = 0.5
_POLL = 0.05
_CONNECT_AGAIN = 0.002
# What QEMU's user network gives its first guest.
_ADDRESS = b'"10.0.2.15"'


@dataclass(frozen=True)
class Guest:
    """An image of Hanok's as plain QEMU boots it; ``memory`` in MiB."""

    folder: Path
    disk: str
    vmlinuz: str
    initrd: str
    cmdline: str
    memory: int

    @classmethod
    def of_image(cls, images: Path, image: dict[str, Any], memory: int) -> Guest:
        """Return the guest of an image as ``hanok image inspect --json`` tells it."""
        kernel = image["kernels"][0]
        return cls(
            folder=find_folder(images, image["id"]),
            disk=image["disk"],
            vmlinuz=kernel["vmlinuz"],
            initrd=kernel["initrd"],
            cmdline=kernel["cmdline"],
            memory=memory,
        )


def find_folder(images: Path, ident: str) -> Path:
    """Return the folder of image ``ident``."""
    for folder in images.iterdir():
        if folder.is_dir() and ident.startswith(folder.name):
            return folder
    raise FileNotFoundError(f"no image {ident} in {images}")


def seconds_to_ready(guest: Guest, accelerator: str, machine: str) -> float:
    """Return the seconds from QEMU's start until the guest's agent tells of its address.

    That is the state which Hanok calls ready.
    """
    with scratch_folder() as scratch:
        overlay = scratch / "disk.qcow2"
        base = guest.folder / guest.disk
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base)]
        subprocess.run([*create, str(overlay)], check=True)
        started = time.perf_counter()
        process = subprocess.Popen(plain_argv(guest, overlay, scratch, accelerator, machine))
        try:
            with wait_for_agent(scratch / "agent.sock", process):
                return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="hk-plain-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def plain_argv(
    guest: Guest, overlay: Path, scratch: Path, accelerator: str, machine: str
) -> list[str]:
    """Return QEMU's arguments; its console and agent are in ``scratch``."""
    accel = "kvm" if accelerator == "kvm" else "tcg,thread=multi,tb-size=64"
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"{machine},usb=off,sata=off", "-accel", accel),
        *("-cpu", "host" if accelerator == "kvm" else "max", "-smp", "1", "-m", f"{guest.memory}M"),
        *("-kernel", str(guest.folder / guest.vmlinuz), "-append", guest.cmdline),
        *(("-initrd", str(guest.folder / guest.initrd)) if guest.initrd else ()),
        *("-drive", f"file={overlay},format=qcow2,if=virtio"),
        *("-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"),
        *("-chardev", f"file,id=console,path={scratch}/console.log"),
        *("-serial", "chardev:console", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={scratch}/agent.sock,server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={_AGENT}"),
    ]


@contextlib.contextmanager
def wait_for_agent(path: Path, process: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    """Wait until the agent tells of the guest's address; give the connection to it."""
    with connect(path, process) as connection:
        wait_for_answer(connection)
        _wait_for_address(connection)
        yield connection


def wait_for_answer(connection: socket.socket) -> None:
    """Ask the agent until it answers. Raises TimeoutError."""
    deadline = time.monotonic() + _BOOT_LIMIT
    connection.settimeout(_ASK_AGAIN)
    received = b""
    while time.monotonic() < deadline:
        connection.sendall(b'{"execute":"guest-ping"}\n')
        with contextlib.suppress(TimeoutError):
            received += connection.recv(4096)
        if b'{"return": {}}' in received:
            return
    raise TimeoutError(f"the guest did not answer within {_BOOT_LIMIT:g} s")


def _wait_for_address(connection: socket.socket) -> None:
    deadline = time.monotonic() + _BOOT_LIMIT
    connection.settimeout(_BOOT_LIMIT)
    received = b""
    while _ADDRESS not in received and time.monotonic() < deadline:
        connection.sendall(b'{"execute":"guest-network-get-interfaces"}\n')
        received = connection.recv(65536)
        if _ADDRESS not in received:
            time.sleep(_POLL)


@contextlib.contextmanager
def connect(path: Path, process: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    """Give a connection to a socket that ``process`` is about to open."""
    deadline = time.monotonic() + _BOOT_LIMIT
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        while not _is_connected(connection, path):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"QEMU ended with status {process.poll()} before its guest ran")
            time.sleep(_CONNECT_AGAIN)
        yield connection


def _is_connected(connection: socket.socket, path: Path) -> bool:
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True
