"""The UEFI firmware of domains in mode full.

Since edk2-stable202108 EDK II's firmware for QEMU has no part for Xen any more: a platform of its
own, OvmfXen, does. Debian 12 and 13 package the former alone, and their xl would take it. So Hanok
names the file itself. Source: EDK II, OvmfPkg/README, OvmfXen.dsc and bug 2122; xl.cfg(5),
``bios_path_override``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Made by hand as docs/xen.md says; then where Fedora, openSUSE and Xen's own build have it.
FILES = (
    Path("/usr/local/lib/hanok/OVMF_XEN.fd"),
    Path("/usr/share/edk2/xen/OVMF.fd"),
    Path("/usr/share/qemu/ovmf-x86_64-xen-4m.bin"),
    Path("/usr/share/qemu/ovmf-x86_64-xen.bin"),
    Path("/usr/libexec/xen/boot/ovmf.bin"),
    Path("/usr/lib/xen/boot/ovmf.bin"),
)


def find_uefi(files: Sequence[Path] = FILES) -> Path | None:
    """Return the firmware that this host has for domains, the first of ``files``, or None."""
    return next((file for file in files if file.is_file()), None)
