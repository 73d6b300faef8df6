"""What differs between processor architectures: a row each, x86_64 first."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from hanok.errors import HostError
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

    ``machine_prefix`` starts the names of the versioned machine types. The CPU models:
    ``cpu_translated`` for TCG; ``cpu_para`` and ``cpu_full`` for KVM, the latter without anything
    that tells the guest that it is virtualized; ``cpu_not_nested`` takes from each of them what a
    hypervisor in the guest needs.
    """

    name: str
    package: str
    machine_prefix: str
    cpu_translated: str
    cpu_para: str
    cpu_full: str
    cpu_not_nested: str
    overhead: OverheadFigures


# TCG: "max" offers all that TCG emulates, so that guests built for x86-64-v3 run too. Its
# five-level page tables (la57) are left out: every walk of a translated guest is one step longer
# with them (boot to init 2-5 % slower), and no guest of ours has 128 TiB.
X86_64 = Architecture(
    name="x86_64",
    package="qemu-system-x86",
    machine_prefix="pc-q35-",
    cpu_translated="max,la57=off",
    cpu_para="host",
    cpu_full="host,kvm=off,hypervisor=off",
    cpu_not_nested="svm=off,vmx=off",
    # Measured with QEMU 7.2 and the guest micro: PSS of a lone process without guest RAM and
    # translated code, libraries counted whole. A kernel in ELF form is a mapped file, pages of
    # which are dropped when memory is short: without it 27-31 MiB, idle and under load, in both
    # modes, one and two vCPUs, 128 to 512 MiB. A compressed kernel and its initrd are copied:
    # 42-52 MiB then, also with 3 GiB. So 56 MiB, and 8 MiB for the qcow2 tables that argv.py
    # allows. TCG's TLB of a vCPU grows with the pages that the guest touches in a tenth of a
    # second: 64 bytes a page, twice, for the kernel and for programs. Page tables: 8 bytes a page
    # of 4 KiB, by the host and by KVM.
    overhead=OverheadFigures(
        base=64 * MIB,
        per_cpu=2 * MIB,
        per_cpu_translated=8 * MIB,
        per_gib=4 * MIB,
    ),
)

ARCHITECTURES = {X86_64.name: X86_64}


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
