"""The server's disk: built once, kept beside the test images by what it is made of."""

from __future__ import annotations

from pathlib import Path

from tests.disks import DiskSet, disks_of

ROOT_UUID = "5e2f1c1e-7c5f-4d0e-9a51-2f0d6d1f3a10"
_SERVER = DiskSet(
    name="server",
    folder=Path(__file__).parent,
    uuid=ROOT_UUID,
    packages=(
        *("linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus", "kmod", "procps"),
        *("grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "mtools", "dosfstools", "fdisk"),
        *("e2fsprogs", "python3", "qemu-guest-agent", "iproute2", "zstd"),
    ),
    disks=("disk",),
    # apt in the server has no network: what it may be asked for lies in its cache.
    cached=("xen-system-amd64", "qemu-system-xen", "isolinux", "syslinux-common"),
)


def server_disk() -> Path:
    """Return the server's disk (qcow2); building it takes about two minutes."""
    return disks_of(_SERVER)["disk"]
