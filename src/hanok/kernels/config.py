"""Drivers that modes ask for, and how a kernel's configuration names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(rb"^CONFIG_([A-Z0-9_]+)=y$", re.M)


@dataclass(frozen=True)
class Driver:
    """A driver: its module, its symbol in Linux's Kconfig, and what it drives."""

    module: str
    symbol: str
    purpose: str


DRIVERS = (
    Driver("virtio_pci", "VIRTIO_PCI", "virtio devices on PCI"),
    Driver("virtio_blk", "VIRTIO_BLK", "virtio disks"),
    Driver("virtio_net", "VIRTIO_NET", "virtio network cards"),
    Driver("ahci", "SATA_AHCI", "the emulated SATA controller"),
    Driver("ata_piix", "ATA_PIIX", "the emulated IDE controller"),
    Driver("sd_mod", "BLK_DEV_SD", "disks on SATA, IDE and SCSI"),
    Driver("e1000e", "E1000E", "the emulated network card"),
    Driver("xen_blkfront", "XEN_BLKDEV_FRONTEND", "Xen's PV disks"),
    Driver("xen_netfront", "XEN_NETDEV_FRONTEND", "Xen's PV network cards"),
    Driver("ext4", "EXT4_FS", "the file system ext4"),
    Driver("xfs", "XFS_FS", "the file system XFS"),
    Driver("btrfs", "BTRFS_FS", "the file system btrfs"),
)


def module_name(text: str) -> str:
    """Return the name that Linux calls a module by: a dash is an underscore."""
    return text.replace("-", "_")


def drivers_built_in(config: bytes) -> tuple[str, ...]:
    """Return the drivers, by module name, that the configuration text ``config`` builds in."""
    symbols = {found.decode() for found in _LINE.findall(config)}
    return tuple(driver.module for driver in DRIVERS if driver.symbol in symbols)
