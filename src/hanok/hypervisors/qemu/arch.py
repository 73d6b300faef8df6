"""What differs between processor architectures: a row each, x86_64 first.

Sources: qemu(1); hw/i386/pc_q35.c and hw/arm/virt.c for the boards.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

from hanok.errors import HostError
from hanok.model.architecture import Arch, host_arch
from hanok.model.vm import Mode
from hanok.units import MIB


@dataclass(frozen=True)
class OverheadFigures:
    """What a QEMU process takes beyond guest RAM and TCG's buffer, in bytes.

    ``base`` for the process, ``per_cpu`` for each vCPU, ``per_cpu_translated`` more for each with
    TCG, ``per_gib`` for each GiB of guest RAM.
    """

    base: int
    per_cpu: int
    per_cpu_translated: int
    per_gib: int


@dataclass(frozen=True)
class Architecture:
    """A processor architecture as QEMU calls its parts.

    ``debian`` is Debian's name, ``emulator`` the program, ``modes`` what its board offers.
    ``board`` gives the options of its machine type for a mode and whether firmware wants SMM;
    ``serial`` the arguments of serial port ``number`` on the character device of a name.
    ``machine_prefix`` starts the names of the versioned machine types, ``machine_alias`` is the
    newest of them by QEMU's own name. The CPU models:
    ``cpu_translated`` for TCG; ``cpu_para`` and ``cpu_full`` for KVM, the latter without anything
    that tells the guest that it is virtualized; ``cpu_not_nested`` takes from each of them what a
    hypervisor in the guest needs; ``cpu_translated_xen`` from TCG's what Xen cannot run with there.
    """

    name: str
    debian: Arch
    emulator: str
    package: str
    modes: tuple[Mode, ...]
    board: Callable[[Mode, bool], dict[str, str]]
    serial: Callable[[int, str], list[str]]
    machine_prefix: str
    machine_alias: str
    cpu_translated: str
    cpu_para: str
    cpu_full: str
    cpu_not_nested: str
    cpu_translated_xen: str
    overhead: OverheadFigures


def _pc(mode: Mode, smm: bool) -> dict[str, str]:
    return {
        "usb": "off",
        "vmport": "off",
        "smm": "on" if smm else "off",
        "sata": "off" if mode is Mode.PARA else "on",
    }


def _isa_serial(number: int, chardev: str) -> list[str]:
    return ["-device", f"isa-serial,id=serial{number},chardev={chardev},index={number}"]


def _virt(mode: Mode, smm: bool) -> dict[str, str]:
    return {"gic-version": "max", "highmem": "on"}


def _built_in_serial(number: int, chardev: str) -> list[str]:
    return ["-serial", f"chardev:{chardev}"]


# TCG: "max" offers all that TCG emulates, so that guests built for x86-64-v3 run too. Its
# five-level page tables (la57) are left out: every walk of a translated guest is one step longer
# with them (boot to init 2-5 % slower), and no guest of ours has 128 TiB.
X86_64 = Architecture(
    name="x86_64",
    debian=Arch.AMD64,
    emulator="qemu-system-x86_64",
    modes=(Mode.FULL, Mode.PARA),
    board=_pc,
    serial=_isa_serial,
    package="qemu-system-x86",
    machine_prefix="pc-q35-",
    machine_alias="q35",
    cpu_translated="max,la57=off",
    cpu_para="host",
    cpu_full="host,kvm=off,hypervisor=off",
    cpu_not_nested="svm=off,vmx=off",
    # With SMAP Dom0 dies in its first page fault. With XSAVE registers of one domain turn up in
    # another: Python in Dom0 died or found that log(60) has no value, and a PVH guest's processor
    # went on at an address of Xen's (all seen with QEMU 7.2 and Xen 4.17).
    cpu_translated_xen="smap=off,smep=off,xsave=off",
    # Measured with QEMU 7.2 and the guest micro: PSS of a lone process without guest RAM and
    # translated code, libraries counted whole. A kernel in ELF form is a mapped file, pages of
    # which are dropped when memory is short: without it 27-31 MiB, idle and under load, in both
    # modes, one and two vCPUs, 128 to 512 MiB. A compressed kernel and its initrd are copied:
    # 42-52 MiB then, also with 3 GiB. So 56 MiB, and 8 MiB for the qcow2 tables that argv.py
    # allows. TCG's TLB of a vCPU grows with the pages that the guest touches in a tenth of a
    # second: 64 bytes a page, twice, for the kernel and for programs. Page tables: 8 bytes a page
    # of 4 KiB, by the host and by KVM. Below Xen the modules (22 MiB) are kept in memory: 3 GiB,
    # two vCPUs and a PV guest in it took 322-328 MiB of the 352 that this comes to.
    overhead=OverheadFigures(
        base=64 * MIB,
        per_cpu=2 * MIB,
        per_cpu_translated=8 * MIB,
        per_gib=4 * MIB,
    ),
)

# A model that is emulated whole: what "max" adds (pointer authentication by a real cipher) makes
# each call of a function dear.
AARCH64 = Architecture(
    name="aarch64",
    debian=Arch.ARM64,
    emulator="qemu-system-aarch64",
    package="qemu-system-arm",
    modes=(Mode.PARA,),
    board=_virt,
    serial=_built_in_serial,
    machine_prefix="virt-",
    machine_alias="virt",
    cpu_translated="cortex-a72",
    cpu_para="host",
    cpu_full="host",
    cpu_not_nested="",
    cpu_translated_xen="",
    # The same process with other tables: counted like the first row.
    overhead=X86_64.overhead,
)

ARCHITECTURES = {row.name: row for row in (X86_64, AARCH64)}


def find_row(arch: Arch | None) -> Architecture:
    """Return the row of guests of ``arch``, None: of this host's. Raises HostError."""
    if arch is None or arch is host_arch():
        return find_architecture()
    return next(row for row in ARCHITECTURES.values() if row.debian is arch)


def find_architecture(name: str | None = None) -> Architecture:
    """Return the row of ``name``, by default this host's. Raises HostError when there is none."""
    wanted = name if name is not None else platform.machine()
    row = ARCHITECTURES.get(wanted)
    if row is None:
        raise HostError(
            f"QEMU guests on {wanted} hosts are not supported",
            hint=f"use a host of architecture {' or '.join(sorted(ARCHITECTURES))}",
        )
    return row
