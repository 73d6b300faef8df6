"""Disks that Hanok has not made: a Debian as distributions publish it, and boot loaders alone.

All boot by SeaBIOS and by OVMF. None has an agent.
"""

from __future__ import annotations

from pathlib import Path

from tests.disks import DiskSet, disks_of

_FOREIGN = DiskSet(
    name="foreign",
    folder=Path(__file__).parent,
    uuid="9d2a4a52-6f0e-4c55-8a7e-0c6f2f7c1b21",
    packages=(
        *("linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus", "kmod"),
        *("grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-signed", "shim-signed"),
        *("grub2-common", "mtools", "dosfstools", "fdisk", "e2fsprogs", "lz4"),
        *("cloud-init", "openssh-server", "iproute2"),
    ),
    disks=("debian", "loader", "signed"),
)


def foreign_debian() -> Path:
    """Return the disk of a Debian 12 with cloud-init (qcow2), built when it is not there."""
    return disks_of(_FOREIGN)["debian"]


def foreign_loader() -> Path:
    """Return a disk whose GRUB prints ``foreign loader on PLATFORM``, ``pc`` or ``efi``, and stays.

    Its EFI program is not signed.
    """
    return disks_of(_FOREIGN)["loader"]


def signed_loader() -> Path:
    """Return a disk as ``foreign_loader`` whose EFI programs are signed, as Debian signs them."""
    return disks_of(_FOREIGN)["signed"]
