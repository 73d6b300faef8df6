"""The modes that a kernel with its initrd can run in, and what the others lack. Pure.

What each mode gives a guest: emulated devices in full, virtio or Xen's PV devices in para, Xen's PV
devices on a hardware-assisted CPU in hybrid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hanok.kernels.config import DRIVERS, Driver
from hanok.model.kernel import (
    Answer,
    DriverFacts,
    Found,
    InitrdFacts,
    KernelFacts,
    KernelFormat,
    KernelReport,
    ModeVerdict,
    Platform,
)
from hanok.model.vm import Mode

_PURPOSES = {driver.module: driver.purpose for driver in DRIVERS}


@dataclass(frozen=True)
class _Need:
    """What finds the root disk in a mode: one driver of each tuple; and the network card's."""

    disk: tuple[tuple[str, ...], ...]
    network: str


_NEEDS = {
    (Platform.QEMU, Mode.FULL): _Need((("ahci",), ("sd_mod",)), "e1000e"),
    (Platform.QEMU, Mode.PARA): _Need((("virtio_pci",), ("virtio_blk",)), "virtio_net"),
    (Platform.XEN, Mode.PARA): _Need((("xen_blkfront",),), "xen_netfront"),
    (Platform.XEN, Mode.HYBRID): _Need((("xen_blkfront",),), "xen_netfront"),
    (Platform.XEN, Mode.FULL): _Need((("ahci", "ata_piix"), ("sd_mod",)), "e1000e"),
}
_FILE_SYSTEMS = ("ext4", "xfs", "btrfs")


def report(name: str, kernel: KernelFacts, initrd: InitrdFacts | None) -> KernelReport:
    """Return everything about the kernel called ``name`` with its initrd."""
    places = {driver.module: _place(driver, kernel, initrd) for driver in DRIVERS}
    drivers = tuple(
        DriverFacts(name=name, purpose=_PURPOSES[name], found=found)
        for name, found in places.items()
    )
    verdicts = [
        _verdict(platform, mode, need, kernel, initrd, places)
        for (platform, mode), need in _NEEDS.items()
    ]
    verdicts.insert(2, _not_offered())
    return KernelReport(
        name=name, kernel=kernel, initrd=initrd, drivers=drivers, modes=tuple(verdicts)
    )


def _not_offered() -> ModeVerdict:
    return ModeVerdict(
        hypervisor=Platform.QEMU,
        mode=Mode.HYBRID,
        can=Answer.NO,
        lacks=("QEMU does not offer mode hybrid; it offers full and para",),
    )


def _place(driver: Driver, kernel: KernelFacts, initrd: InitrdFacts | None) -> Found:
    lists = [kernel.built_in, initrd.built_in if initrd is not None else None]
    if any(driver.module in names for names in lists if names is not None):
        return Found.BUILT_IN
    if initrd is not None and driver.module in initrd.modules and fits(kernel, initrd):
        return Found.INITRD
    if all(names is None for names in lists):
        return Found.UNKNOWN
    return Found.ABSENT


def fits(kernel: KernelFacts, initrd: InitrdFacts) -> bool:
    """Whether the initrd has modules for this kernel, as far as both say."""
    return kernel.version is None or not initrd.releases or kernel.version in initrd.releases


def _verdict(
    platform: Platform,
    mode: Mode,
    need: _Need,
    kernel: KernelFacts,
    initrd: InitrdFacts | None,
    places: dict[str, Found],
) -> ModeVerdict:
    if kernel.format is KernelFormat.MULTIBOOT:
        return _multiboot(platform, mode)
    lacks = _entry_lacks(platform, mode, kernel)
    unknown: list[str] = []
    for choice in need.disk:
        _look(choice, places, lacks, unknown)
    if all(places[name] is Found.ABSENT for name in _FILE_SYSTEMS):
        lacks.append("no driver for the root file system (ext4, XFS or btrfs)")
    if initrd is not None and not fits(kernel, initrd):
        lacks.append(
            f"the modules of the initrd are for {', '.join(initrd.releases)}, "
            f"the kernel is {kernel.version}"
        )
    notes = _notes(platform, mode, need, kernel, places)
    if lacks:
        can, reasons = Answer.NO, lacks
    else:
        can, reasons = (Answer.UNKNOWN, unknown) if unknown else (Answer.YES, [])
    return ModeVerdict(
        hypervisor=platform, mode=mode, can=can, lacks=tuple(reasons), notes=tuple(notes)
    )


def _multiboot(platform: Platform, mode: Mode) -> ModeVerdict:
    can = platform is Platform.QEMU and mode is Mode.FULL
    why = "" if can else "it is no Linux kernel, and nothing shows that it knows of hypervisors"
    notes = ("a multiboot kernel: which devices it drives is not known here",) if can else ()
    return ModeVerdict(
        hypervisor=platform,
        mode=mode,
        can=Answer.UNKNOWN if can else Answer.NO,
        lacks=(why,) if why else (),
        notes=notes,
    )


def _entry_lacks(platform: Platform, mode: Mode, kernel: KernelFacts) -> list[str]:
    """Return what the kernel itself lacks to be started in a mode."""
    xen = kernel.xen
    if kernel.arch not in ("x86-64", "i386"):
        return [f"it is a kernel for {kernel.arch}, not for an x86 computer"]
    has_pvh = xen is not None and xen.pvh_entry is not None
    if platform is Platform.XEN and mode is Mode.PARA:
        if xen is None or xen.pv_entry is None:
            return ["no Xen PV entry (the note XEN_ELFNOTE_ENTRY): built without CONFIG_XEN_PV"]
        if xen.xen_version not in (None, "xen-3.0"):
            return [f"it is for another Xen: {xen.xen_version}, not xen-3.0"]
        return []
    if platform is Platform.XEN and mode is Mode.HYBRID and not has_pvh:
        return ["no PVH entry (the note XEN_ELFNOTE_PHYS32_ENTRY): built without CONFIG_PVH"]
    if platform is Platform.QEMU and kernel.format is KernelFormat.VMLINUX and not has_pvh:
        return ["no PVH entry, by which alone QEMU starts an unpacked kernel; a bzImage needs none"]
    return []


def _look(
    choice: Sequence[str], places: dict[str, Found], lacks: list[str], unknown: list[str]
) -> None:
    found = {places[name] for name in choice}
    names = " or ".join(choice)
    if found & {Found.BUILT_IN, Found.INITRD}:
        return
    if Found.UNKNOWN in found:
        unknown.append(f"whether {names} is there is not known: no list of built-in drivers")
    else:
        lacks.append(
            f"no driver {names} ({_PURPOSES[choice[0]]}): neither built in nor in the initrd"
        )


def _notes(
    platform: Platform, mode: Mode, need: _Need, kernel: KernelFacts, places: dict[str, Found]
) -> list[str]:
    notes = []
    if places[need.network] not in (Found.BUILT_IN, Found.INITRD):
        notes.append(f"the network driver {need.network} has to be on the disk")
    if platform is Platform.XEN and mode is Mode.FULL and kernel.format is KernelFormat.VMLINUX:
        notes.append("Xen starts an unpacked kernel in this mode only through a boot loader")
    return notes
