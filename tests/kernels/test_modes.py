"""The modes that a kernel can run in, and the words for what the others lack."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hanok.kernels.initrd import read_initrd
from hanok.kernels.kernel import read_kernel
from hanok.kernels.modes import report
from hanok.model.kernel import Answer, KernelReport
from tests.kernels.samples import (
    AHCI,
    ALL_NOTES,
    PV_NOTES,
    PVH_NOTES,
    VIRTIO,
    XEN,
    make_bzimage,
    make_elf,
    make_initrd,
)

YES, NO, UNKNOWN = Answer.YES, Answer.NO, Answer.UNKNOWN


def judge(
    notes: Mapping[int, bytes], initrd: bytes | None, *, unpacked: bool = False
) -> KernelReport:
    elf = make_elf(notes)
    kernel = read_kernel(elf if unpacked else make_bzimage(elf))
    return report("k", kernel, None if initrd is None else read_initrd(initrd))


def answers(found: KernelReport) -> dict[str, Answer]:
    return {f"{one.hypervisor} {one.mode}": one.can for one in found.modes}


def lacks(found: KernelReport, hypervisor: str, mode: str) -> str:
    (one,) = [v for v in found.modes if (v.hypervisor, v.mode) == (hypervisor, mode)]
    return "; ".join(one.lacks)


def test_a_kernel_with_everything_runs_everywhere() -> None:
    found = judge(ALL_NOTES, make_initrd(*VIRTIO, *XEN, *AHCI))
    assert answers(found) == {
        "qemu full": YES,
        "qemu para": YES,
        "qemu hybrid": NO,
        "xen para": YES,
        "xen hybrid": YES,
        "xen full": YES,
    }
    assert lacks(found, "qemu", "hybrid") == (
        "QEMU does not offer mode hybrid; it offers full and para"
    )


def test_what_is_missing_is_named() -> None:
    found = judge({}, make_initrd(*AHCI))
    assert answers(found) == {
        "qemu full": YES,
        "qemu para": NO,
        "qemu hybrid": NO,
        "xen para": NO,
        "xen hybrid": NO,
        "xen full": YES,
    }
    assert lacks(found, "qemu", "para") == (
        "no driver virtio_pci (virtio devices on PCI): neither built in nor in the initrd; "
        "no driver virtio_blk (virtio disks): neither built in nor in the initrd"
    )
    assert "no Xen PV entry" in lacks(found, "xen", "para")
    assert "no PVH entry" in lacks(found, "xen", "hybrid")


@pytest.mark.parametrize(
    ("notes", "para", "hybrid"), [(PV_NOTES, YES, NO), (PVH_NOTES, NO, YES), ({}, NO, NO)]
)
def test_pv_and_pvh_each_have_an_entry_of_their_own(
    notes: Mapping[int, bytes], para: Answer, hybrid: Answer
) -> None:
    found = answers(judge(notes, make_initrd(*XEN)))
    assert (found["xen para"], found["xen hybrid"]) == (para, hybrid)


def test_built_in_drivers_count_as_much_as_modules() -> None:
    names = ("virtio_pci", "virtio_blk", "xen-blkfront", "ahci", "sd_mod", "ext4")
    found = judge(ALL_NOTES, make_initrd(built_in=names))
    assert set(answers(found).values()) - {NO} == {YES}


def test_without_a_list_of_built_in_drivers_nothing_is_claimed() -> None:
    found = judge(ALL_NOTES, None)
    assert answers(found)["qemu para"] == UNKNOWN
    assert "not known" in lacks(found, "qemu", "para")


def test_modules_of_another_kernel_do_not_count() -> None:
    found = judge(ALL_NOTES, make_initrd(*VIRTIO, *AHCI, built_in=("ext4",), release="5.10.0-9"))
    assert answers(found)["qemu para"] == NO
    assert "the initrd are for 5.10.0-9" in lacks(found, "qemu", "para")


def test_qemu_starts_an_unpacked_kernel_by_its_pvh_entry_only() -> None:
    initrd = make_initrd(*VIRTIO, *XEN)
    assert answers(judge(ALL_NOTES, initrd, unpacked=True))["qemu para"] == YES
    without = judge(PV_NOTES, initrd, unpacked=True)
    assert answers(without)["qemu para"] == NO
    assert "a bzImage needs none" in lacks(without, "qemu", "para")


def test_a_root_file_system_nobody_can_read_is_said() -> None:
    found = judge(ALL_NOTES, make_initrd(*VIRTIO, built_in=()))
    assert "root file system" in lacks(found, "qemu", "para")


def test_a_kernel_of_another_computer_runs_nowhere() -> None:
    kernel = read_kernel(make_elf(ALL_NOTES, machine=183))
    found = report("k", kernel, read_initrd(make_initrd(*VIRTIO)))
    assert set(answers(found).values()) == {NO}
    assert "arm64" in lacks(found, "xen", "para")


def test_a_multiboot_kernel_may_run_in_full_and_nowhere_else() -> None:
    kernel = read_kernel(make_elf({}, b"\x02\xb0\xad\x1b"))
    found = answers(report("k", kernel, None))
    assert found.pop("qemu full") == UNKNOWN
    assert set(found.values()) == {NO}
