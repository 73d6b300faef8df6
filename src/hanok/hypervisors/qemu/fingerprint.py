"""What frozen memory and devices depend on, as one text."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.qemu.argv import Platform, build_argv, guest_cpu
from hanok.hypervisors.qemu.build import QemuBuild
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.units import MIB

# What of the arguments a guest sees.
_SEEN = ("-machine", "-rtc", "-cpu", "-smp", "-device", "-global")
_CPUINFO = Path("/proc/cpuinfo")


def fingerprint(platform: Platform, build: QemuBuild) -> str:
    """Return the text: equal ones can go on from the same frozen memory, others cannot.

    QEMU by its version and content, since distributions change it without a new version; the
    layout of devices that this Hanok makes; on KVM, whose guests see the host's CPU, that too.
    """
    parts = [
        f"QEMU {build.version} (sha256 {build.digest[:16]})",
        platform.machine_type,
        platform.accelerator,
        f"cpu {guest_cpu(Mode.PARA, platform)}",
        f"devices {_layout(platform)}",
    ]
    if platform.accelerator == "kvm":
        parts.append(f"Linux {os.uname().release} on {_host_cpu()}")
    return "; ".join(parts)


def _layout(platform: Platform) -> str:
    """Return a digest of how a guest sees a machine that has one of each device."""
    folder = Path("/")
    machine = Machine(
        uuid="00000000-0000-0000-0000-000000000000",
        name="layout",
        cpus=1,
        memory=256 * MIB,
        mode=Mode.PARA,
        folder=folder,
        account=None,
        disks=(
            Disk("root", folder / "disk", DiskFormat.QCOW2),
            Disk("seed", folder / "seed", DiskFormat.RAW, read_only=True),
        ),
        nics=(Nic("52:54:00:00:00:00", "network"),),
    )
    argv = build_argv(machine, platform, (0,))
    seen = [f"{flag} {value}" for flag, value in itertools.pairwise(argv) if flag in _SEEN]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _host_cpu() -> str:
    """Return the host CPU's name, and a digest of what it can do and its microcode's version."""
    facts: dict[str, str] = {}
    for line in _CPUINFO.read_text().partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    able = " ".join(facts.get(key, "") for key in ("flags", "stepping", "microcode"))
    digest = hashlib.sha256(able.encode()).hexdigest()[:16]
    return f"{facts.get('model name', 'an unknown CPU')} ({digest})"
