"""Network namespaces for tests: a host of our own with an outside world, and guests in it.

Nothing here touches the network of the machine that runs the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_libc = ctypes.CDLL(None, use_errno=True)


def _in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own, which may change its namespace."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Namespace:
    """A network namespace that lives as long as its descriptor is open."""

    def __init__(self) -> None:
        self.descriptor = _in_thread(self._make)
        self.command("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        self.ip("link set lo up")

    @staticmethod
    def _make() -> int:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """A path that names it for ip(8)."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @property
    def inode(self) -> int:
        """Its identity."""
        return os.fstat(self.descriptor).st_ino

    def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` inside; what it starts or opens belongs to the namespace."""

        def body() -> T:
            if _libc.setns(self.descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            return work()

        return _in_thread(body)

    def command(self, *argv: str, text: str = "") -> str:
        """Run a command inside and return its output."""
        return self.run(
            lambda: (
                subprocess.run(
                    argv, input=text, capture_output=True, text=True, check=True, timeout=30
                ).stdout
            )
        )

    def ip(self, *lines: str) -> None:
        """Run lines of ip -batch inside."""
        self.command("ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Let it go."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class World:
    """A host with a default route to an outside, where OUTSIDE answers."""

    host: Namespace
    outside: Namespace


OUTSIDE = "203.0.113.1"
HOST = "198.51.100.2"
UPLINK = "198.51.100.1"


@contextlib.contextmanager
def make_world() -> Iterator[World]:
    """Yield a world; its namespaces end with it."""
    with contextlib.ExitStack() as stack:
        host, outside = Namespace(), Namespace()
        stack.callback(host.close)
        stack.callback(outside.close)
        host.ip(f"link add up0 type veth peer name down0 netns {outside.path}")
        outside.ip(
            f"address add {UPLINK}/24 dev down0",
            f"address add {OUTSIDE}/32 dev lo",
            "link set down0 up",
        )
        host.ip(
            f"address add {HOST}/24 dev up0",
            "link set up0 up",
            f"route add default via {UPLINK}",
        )
        while "LOWER_UP" not in host.command("ip", "link", "show", "up0"):
            time.sleep(0.01)  # the kernel tells of the carrier a little later
        yield World(host, outside)


class StackGuest:
    """A guest with a real network stack: a namespace whose NIC is wired to a tap."""

    def __init__(self, tap: int, mac: str, address: str, gateway: str) -> None:
        self.namespace = Namespace()
        self._tap = tap
        self._nic = self.namespace.run(_open_nic)
        self.namespace.ip(
            f"link set eth0 address {mac} mtu 1500",
            f"address add {address}/22 dev eth0",
            "link set eth0 up",
            f"route add default via {gateway}",
        )
        self._wake, self._stop = os.pipe()
        self._pump = threading.Thread(target=self._copy, daemon=True)
        self._pump.start()

    def _copy(self) -> None:
        other = {self._tap: self._nic, self._nic: self._tap}
        while True:
            ready, _, _ = select.select([*other, self._wake], [], [])
            if self._wake in ready:
                return
            for source in ready:
                with contextlib.suppress(OSError):
                    os.write(other[source], os.read(source, 70000))

    def close(self) -> None:
        """Unplug it and end it."""
        os.close(self._stop)
        self._pump.join()
        for descriptor in (self._wake, self._tap, self._nic):
            os.close(descriptor)
        self.namespace.close()


def _open_nic() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP_NO_PI_VNET_HDR))
    return descriptor
