"""Processor architectures of guests: what all parts must call alike. QEMU's own words for them are
in its driver's table (hypervisors/qemu/arch.py)."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from enum import StrEnum


class Arch(StrEnum):
    """An architecture, by Debian's name."""

    AMD64 = "amd64"
    ARM64 = "arm64"


@dataclass(frozen=True)
class GuestArchitecture:
    """``machine`` is what uname(2) calls it, ``console`` Linux's name of its first serial port."""

    arch: Arch
    machine: str
    console: str


GUEST_ARCHITECTURES = {
    row.arch: row
    for row in (
        GuestArchitecture(Arch.AMD64, "x86_64", "ttyS0"),
        GuestArchitecture(Arch.ARM64, "aarch64", "ttyAMA0"),
    )
}


def host_arch() -> Arch | None:
    """Return this host's architecture; None when no guest here could have the same."""
    machine = platform.machine()
    return next((arch for arch, row in GUEST_ARCHITECTURES.items() if row.machine == machine), None)
