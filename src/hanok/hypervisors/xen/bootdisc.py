"""The disc by which firmware loads the kernel of a domain in mode full.

xl has QEMU hand a kernel and its initrd to the firmware through fw_cfg, a port that under Xen gives
one byte at a time, each written into the guest by the device model: where Dom0 itself is emulated,
16 MB took over a minute. Reading them from a CD takes a command for every 64 KiB. The loader is
ISOLINUX, of Debian's packages isolinux and syslinux-common; without them, or for a kernel that it
cannot load, fw_cfg remains. Source: El Torito 1.0, syslinux(1), Linux x86 boot protocol.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from pycdlib import PyCdlib

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Machine
from hanok.hypervisors.xen.config import MOST_FULL_DISKS, command_line, kernel_file
from hanok.model.vm import Mode

BOOT_DISC = "boot.iso"
# boot protocol: "HdrS" at 0x202 of a bzImage.
_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_MOST_COMMAND_LINE = 2047
# What ISOLINUX waits for a key, in tenths of a second; 0 would be for ever.
_CONFIG = "DEFAULT hanok\nPROMPT 0\nTIMEOUT 1\nLABEL hanok\nLINUX /KERNEL\n"


@dataclass(frozen=True)
class Loader:
    """Where a host has ISOLINUX: ``boot`` starts from the disc, ``core`` is what it loads first."""

    boot: Path = Path("/usr/lib/ISOLINUX/isolinux.bin")
    core: Path = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")

    def can_load(self, kernel: Path, command_line: str) -> bool:
        """Whether all are there, and this is a kernel that it can start."""
        if len(command_line) > _MOST_COMMAND_LINE or not command_line.isprintable():
            return False
        if not all(file.is_file() for file in (self.boot, self.core, kernel)):
            return False
        with kernel.open("rb") as file:
            file.seek(_MAGIC_AT)
            return file.read(len(_MAGIC)) == _MAGIC


def make_boot_disc(machine: Machine, loader: Loader) -> Path | None:
    """Make the disc that a machine boots from, anew, in its folder; None: it needs or gets none.

    Raises HypervisorError when it cannot be written.
    """
    kernel, folder = machine.kernel, machine.kernel_folder
    if machine.mode is not Mode.FULL or kernel is None or folder is None:
        return None
    file, text = kernel_file(kernel, folder, machine.mode), command_line(kernel, machine.mode)
    # The controller has a port for it beside the disks.
    if len(machine.disks) == MOST_FULL_DISKS or not loader.can_load(file, text):
        return None
    target = machine.folder / BOOT_DISC
    write_boot_disc(target, file, folder / kernel.initrd if kernel.initrd else None, text, loader)
    return target


def write_boot_disc(
    target: Path, kernel: Path, initrd: Path | None, command_line: str, loader: Loader
) -> None:
    """Write the disc; an earlier one is replaced. Raises HypervisorError for a full disk and such.

    Only for a kernel that ``loader.can_load``.
    """
    config = f"{_CONFIG}APPEND {command_line}\n"
    if initrd is not None:
        config += "INITRD /INITRD\n"
    files = {
        "/ISOLINUX.BIN;1": loader.boot.read_bytes(),
        "/LDLINUX.C32;1": loader.core.read_bytes(),
        "/ISOLINUX.CFG;1": config.encode(),
    }
    iso = PyCdlib()
    iso.new(interchange_level=1, vol_ident="HANOK-BOOT")
    try:
        for path, content in files.items():
            iso.add_fp(io.BytesIO(content), len(content), path)
        iso.add_eltorito("/ISOLINUX.BIN;1", boot_load_size=4, boot_info_table=True)
        iso.add_file(str(kernel), "/KERNEL.;1")
        if initrd is not None:
            iso.add_file(str(initrd), "/INITRD.;1")
        target.unlink(missing_ok=True)
        iso.write(str(target))
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise HypervisorError(
            f"{target}, from which the guest would boot, could not be written: {error.strerror}",
            hint="make room in Hanok's data directory",
        ) from error
    finally:
        iso.close()
