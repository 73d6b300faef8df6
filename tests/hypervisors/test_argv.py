"""Machines to arguments: golden files, and text that cannot break out of its argument.

``HANOK_UPDATE_GOLDEN=1`` writes the golden files anew; read the difference before committing it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import HostError, InvalidInput
from hanok.hypervisors.base import Base, Boot, Disk, Frozen, Machine, Nic
from hanok.hypervisors.qemu.arch import AARCH64, X86_64, find_architecture
from hanok.hypervisors.qemu.argv import (
    Platform,
    build_argv,
    build_probe_argv,
    default_tcg_buffer,
)
from hanok.hypervisors.qemu.build import QemuBuild, newest_machine_type
from hanok.hypervisors.qemu.fingerprint import fingerprint
from hanok.hypervisors.qemu.firmware import UefiFiles
from hanok.model.image import BareHypervisor, DiskFormat, Kernel
from hanok.model.keeping import WatchdogAction
from hanok.model.network import Plug, UserLink
from hanok.model.vm import Firmware, Mode, Publish
from hanok.proc import Account
from hanok.units import GIB, MIB
from tests.golden import check_golden

GOLDEN = Path(__file__).parent / "golden"
TCG = Platform(X86_64, "tcg", "pc-q35-7.2", sandbox=True)
KVM = Platform(X86_64, "kvm", "pc-q35-10.0", sandbox=True)
BARE = Platform(X86_64, "tcg", "pc-q35-7.2", sandbox=False)
ARM64 = Platform(AARCH64, "tcg", "virt-7.2", sandbox=True)
SHOWS = dataclasses.replace(TCG, vnc=True)

FOLDER = Path("/var/lib/hanok/vms/u/m")
IMAGE = Path("/var/lib/hanok/images/abc")
KERNEL = Kernel(
    name="cloud",
    vmlinuz="vmlinuz",
    initrd="initrd",
    cmdline="console=ttyS0 root=LABEL=hanok-root rw",
    modes=(Mode.PARA,),
)
ROOT = Disk(
    "root",
    FOLDER / "disk.qcow2",
    DiskFormat.QCOW2,
    bases=(Base(IMAGE / "disk.qcow2", DiskFormat.QCOW2),),
)
SEED = Disk("seed", FOLDER / "seed.iso", DiskFormat.RAW, read_only=True)
DATA = Disk("data", FOLDER / "data.raw", DiskFormat.RAW)
MORE = Disk("hanok.img", IMAGE / "hanok.img", DiskFormat.RAW, read_only=True)
NIC = Nic("52:54:00:11:22:33", "default")
SECOND_NIC = Nic("52:54:00:44:55:66", "back")
PARA = Machine(
    uuid="11111111-2222-3333-4444-555555555555",
    name="web",
    cpus=2,
    memory=512 * MIB,
    mode=Mode.PARA,
    folder=FOLDER,
    account=Account(1_700_000_001, 1_700_000_001),
    disks=(ROOT, SEED),
    nics=(NIC,),
    kernel=KERNEL,
    kernel_folder=IMAGE,
)
FULL = dataclasses.replace(PARA, mode=Mode.FULL)
COMMAS = dataclasses.replace(
    PARA,
    name="a,b=c,,d",
    folder=Path("/srv/my, vms/x=y"),
    disks=(Disk("root", Path('/srv/a,b "c"/d.qcow2'), DiskFormat.QCOW2),),
    kernel_folder=Path("/srv/k,ernels"),
)
CLONE = dataclasses.replace(
    PARA,
    frozen=Frozen(memory=11, state=12),
    disks=(
        dataclasses.replace(
            ROOT, bases=(Base(Path("/t/disk.qcow2"), DiskFormat.QCOW2), *ROOT.bases)
        ),
        SEED,
    ),
)
PLUGGED = dataclasses.replace(
    PARA,
    disks=(ROOT, SEED, dataclasses.replace(DATA, serial="a,data", port=3)),
    nics=(NIC, dataclasses.replace(SECOND_NIC, port=0)),
)
XEN = dataclasses.replace(
    PARA,
    memory=3 * GIB,
    kernel=KERNEL.model_copy(
        update={
            "cmdline": "console=hvc0 root=LABEL=hanok-root rw module=a,b",
            "hypervisor": BareHypervisor(file="xen", cmdline="console=com1 com1=115200,8n1"),
        }
    ),
)

USER = UserLink(
    subnet="10.87.0.0/22",
    gateway="10.87.0.1",
    address="10.87.0.2",
    publish=(
        Publish(host_port=8080, guest_port=80),
        Publish(host_port=2222, guest_port=22, address="0.0.0.0"),
    ),
)
APART = UserLink(
    subnet="10.88.0.0/28", gateway="10.88.0.1", address="10.88.0.14", outward=False, publish=()
)

CASES: dict[str, tuple[Machine, Platform, tuple[Plug, ...]]] = {
    "para-watchdog": (dataclasses.replace(PARA, watchdog=WatchdogAction.STOP), TCG, (7,)),
    "full-watchdog": (dataclasses.replace(FULL, watchdog=WatchdogAction.RESET), TCG, (7,)),
    "para-tcg": (PARA, TCG, (7,)),
    "full-tcg": (FULL, TCG, (7,)),
    "para-kvm": (PARA, KVM, (7,)),
    "full-kvm": (FULL, KVM, (7,)),
    "para-no-nic": (dataclasses.replace(PARA, nics=()), TCG, ()),
    "full-no-nic-no-agent": (dataclasses.replace(FULL, nics=(), agent=False), TCG, ()),
    "para-two-nics": (dataclasses.replace(PARA, nics=(NIC, SECOND_NIC)), TCG, (7, 9)),
    "para-firmware-raw": (
        dataclasses.replace(PARA, kernel=None, kernel_folder=None, disks=(DATA,), nics=()),
        TCG,
        (),
    ),
    "para-large": (
        dataclasses.replace(
            PARA, memory=4 * GIB, tcg_buffer=100 * MIB + 1, machine_type="pc-q35-6.2"
        ),
        TCG,
        (7,),
    ),
    "para-no-sandbox": (PARA, BARE, (7,)),
    "commas": (COMMAS, TCG, (7,)),
    "clone": (CLONE, TCG, (7,)),
    "para-not-nested-tcg": (dataclasses.replace(PARA, nested=False), TCG, (7,)),
    "para-not-nested-kvm": (dataclasses.replace(PARA, nested=False), KVM, (7,)),
    "full-not-nested-kvm": (dataclasses.replace(FULL, nested=False), KVM, (7,)),
    "xen-tcg": (XEN, TCG, (7,)),
    "xen-kvm": (XEN, KVM, (7,)),
    "xen-clone": (dataclasses.replace(XEN, frozen=CLONE.frozen), TCG, (7,)),
    "para-user-network": (
        dataclasses.replace(PARA, nics=(NIC, SECOND_NIC)),
        TCG,
        (USER, APART),
    ),
    "full-user-network": (FULL, TCG, (USER,)),
    "arm64": (dataclasses.replace(PARA, nested=False), ARM64, (7,)),
    "para-plugged": (PLUGGED, TCG, (7, 9)),
    "full-plugged": (dataclasses.replace(PLUGGED, mode=Mode.FULL), TCG, (7, 9)),
    "full-screen": (dataclasses.replace(FULL, screen=True), SHOWS, (7,)),
    "para-screen": (dataclasses.replace(PARA, screen=True), SHOWS, (7,)),
    "full-screen-no-vnc": (dataclasses.replace(FULL, screen=True), TCG, (7,)),
    "para-more-disks": (dataclasses.replace(PARA, disks=(ROOT, MORE, SEED)), TCG, (7,)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden(name: str) -> None:
    machine, platform, taps = CASES[name]
    check_argv(name, build_argv(machine, platform, taps, platform.architecture.emulator))


@pytest.mark.parametrize("smm", [False, True])
@pytest.mark.parametrize("mode", [Mode.PARA, Mode.FULL])
def test_golden_uefi(mode: Mode, smm: bool) -> None:
    tpm = FOLDER.parent / "tpm,2" if smm else None
    boot = Boot(Firmware.UEFI, FOLDER.parent / "efivars.fd", secure=smm, tpm=tpm)
    machine = PARA if mode is Mode.PARA else FULL
    machine = dataclasses.replace(machine, kernel=None, kernel_folder=None, boot=boot)
    uefi = UefiFiles(Path("/usr/share/OVMF/CODE,4M.fd"), Path("/usr/share/OVMF/VARS.fd"), smm)
    argv = build_argv(machine, TCG, (7,), "qemu-system-x86_64", uefi=uefi)
    check_argv(f"{mode}-uefi{'-smm' if smm else ''}", argv)


def test_golden_probe() -> None:
    argv = build_probe_argv(
        KVM,
        "qemu-system-x86_64",
        kernel=IMAGE / "vmlinuz",
        initrd=IMAGE / "initrd",
        cmdline="console=ttyS0",
        memory=256 * MIB,
        console=5,
    )
    check_argv("probe", argv)


def test_golden_loader() -> None:
    check_argv("loader", build_argv(PARA, TCG, (7,), "qemu-system-x86_64", load_into=11))


def test_a_loader_on_kvm_leaves_the_clock_to_the_guests_memory() -> None:
    said = ["kvmclock.x-mach-use-reliable-get-clock=off"]
    assert options(build_argv(PARA, KVM, (7,), load_into=11), "-global") == said
    for frozen in (None, Frozen(11, 12)):
        assert (
            options(build_argv(dataclasses.replace(PARA, frozen=frozen), KVM, (7,)), "-global")
            == []
        )
    assert options(build_argv(PARA, TCG, (7,), load_into=11), "-global") == []


def test_a_clone_and_a_loader_have_the_devices_of_what_was_frozen() -> None:
    cold, clone, loader = (
        build_argv(PARA, TCG, (7,)),
        build_argv(dataclasses.replace(PARA, frozen=Frozen(11, 12)), TCG, (7,)),
        build_argv(PARA, TCG, (7,), load_into=11),
    )
    for argv in (clone, loader):
        assert argv[-3:] == ["-S", "-incoming", "defer"]
        assert options(argv, "-device") == options(cold, "-device")
        for flag in ("-machine", "-cpu", "-smp", "-m", "-accel", "-blockdev", "-netdev"):
            assert options(argv, flag) == options(cold, flag), flag
    (private,), (shared,) = (
        [x for x in options(argv, "-object") if "id=ram" in x] for argv in (clone, loader)
    )
    assert private.replace("share=off", "share=on") == shared
    assert "share=on" in shared


def test_the_fingerprint_names_all_that_frozen_memory_depends_on() -> None:
    build = QemuBuild("7.2.22", "QEMU", "pc-q35-7.2", sandbox=True, digest="a" * 64)
    texts = {
        fingerprint(TCG, build),
        fingerprint(TCG, dataclasses.replace(build, digest="b" * 64)),
        fingerprint(TCG, dataclasses.replace(build, version="7.2.23")),
        fingerprint(dataclasses.replace(TCG, machine_type="pc-q35-8.0"), build),
        fingerprint(dataclasses.replace(TCG, accelerator="kvm"), build),
    }
    assert len(texts) == 5
    assert fingerprint(TCG, build) in texts
    # A sandbox is none of the guest's business.
    assert fingerprint(dataclasses.replace(TCG, sandbox=False), build) in texts


def check_argv(name: str, argv: list[str]) -> None:
    check_golden(GOLDEN / f"{name}.txt", "".join(f"{argument}\n" for argument in argv))


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {
        *CASES,
        *("probe", "loader"),
        *(f"{mode}-uefi{smm}" for mode in ("para", "full") for smm in ("", "-smm")),
    }


def test_mode_full_has_no_paravirtual_device() -> None:
    for name, (machine, platform, taps) in CASES.items():
        if machine.mode is Mode.FULL:
            text = " ".join(build_argv(machine, platform, taps))
            assert "virt" not in text, name
            assert "pvpanic" not in text, name
            assert "vmgenid" not in text, name


# --- text from outside ------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
PIECE = TEXT.filter(lambda text: "/" not in text and text not in (".", ".."))


def values(argument: str) -> Iterator[tuple[str, str]]:
    """Yield keys and values of an option string, as QEMU's opts_parse and keyval_parse see it."""
    parts, current, position = [], "", 0
    while position < len(argument):
        if argument[position] != ",":
            current += argument[position]
        elif argument[position : position + 2] == ",,":
            current += ","
            position += 1
        else:
            parts.append(current)
            current = ""
        position += 1
    for part in [*parts, current]:
        key, equals, value = part.partition("=")
        yield (key, value) if equals else ("", key)


def options(argv: list[str], flag: str) -> list[str]:
    """Return the arguments of every ``flag``."""
    return [argv[index + 1] for index, word in enumerate(argv) if word == flag]


@given(name=TEXT, piece=PIECE, disk=PIECE, cmdline=TEXT, machine_type=PIECE)
def test_text_stays_one_value_of_one_argument(
    name: str, piece: str, disk: str, cmdline: str, machine_type: str
) -> None:
    folder, images, path = Path("/f") / piece, Path("/i") / piece, Path("/d") / disk
    machine = dataclasses.replace(
        PARA,
        name=name,
        folder=folder,
        disks=(dataclasses.replace(ROOT, path=path), dataclasses.replace(SEED, path=path)),
        kernel=KERNEL.model_copy(update={"cmdline": cmdline}),
        kernel_folder=images,
        machine_type=machine_type,
    )
    argv = build_argv(machine, TCG, (7,))
    assert len(argv) == len(build_argv(PARA, TCG, (7,)))
    assert dict(values(options(argv, "-name")[0])) == {"guest": name}
    *sockets, identity = (dict(values(text)) for text in options(argv, "-chardev"))
    assert identity == {"": "file", "id": "identity", "path": "/dev/null"}
    assert [found["path"] for found in sockets] == [
        str(folder / socket) for socket in ("qmp.sock", "console.sock", "agent.sock")
    ]
    assert all(set(found) == {"", "id", "path", "server", "wait"} for found in sockets)
    nodes = [json.loads(text) for text in options(argv, "-blockdev")]
    files = [node["filename"] for node in nodes if node["driver"] == "file"]
    assert files == [str(ROOT.bases[0].path), str(path), str(path)]
    assert options(argv, "-append") == [cmdline]
    assert options(argv, "-kernel") == [str(images / "vmlinuz")]
    assert options(argv, "-pidfile") == [str(folder / "qemu.pid")]
    if "=" not in machine_type:
        assert next(values(options(argv, "-machine")[0])) == ("", machine_type)


def modules(initrd: str) -> list[tuple[str, str]]:
    """Return files and command lines of multiboot modules, as QEMU's load_multiboot sees them."""
    found, current, position = [], "", 0
    while position < len(initrd):
        if initrd[position] == ",":
            if initrd[position : position + 2] != ",,":
                found.append(current)
                current = ""
                position += 1
                continue
            position += 1
        current += initrd[position]
        position += 1
    parts = [module.partition(" ") for module in [*found, current]]
    return [(file, cmdline) for file, _, cmdline in parts]


@given(images=PIECE.filter(lambda text: " " not in text), dom0=TEXT, xen=TEXT)
def test_text_stays_one_module_of_a_hypervisor(images: str, dom0: str, xen: str) -> None:
    folder = Path("/i") / images
    kernel = KERNEL.model_copy(
        update={"cmdline": dom0, "hypervisor": BareHypervisor(file="xen", cmdline=xen)}
    )
    argv = build_argv(dataclasses.replace(XEN, kernel=kernel, kernel_folder=folder), TCG, (7,))
    assert len(argv) == len(build_argv(XEN, TCG, (7,)))
    assert options(argv, "-kernel") == [str(folder / "xen")]
    assert options(argv, "-append") == [xen]
    assert modules(options(argv, "-initrd")[0]) == [
        (str(folder / "vmlinuz"), dom0),
        (str(folder / "initrd"), ""),
    ]


def test_a_hypervisor_without_an_initrd_has_one_module() -> None:
    assert XEN.kernel is not None
    kernel = XEN.kernel.model_copy(update={"initrd": ""})
    argv = build_argv(dataclasses.replace(XEN, kernel=kernel), TCG, (7,))
    assert [file for file, _ in modules(options(argv, "-initrd")[0])] == [str(IMAGE / "vmlinuz")]


@given(text=st.text(), field=st.sampled_from(["name", "folder", "disk", "cmdline"]))
def test_what_no_argument_can_hold_is_refused(text: str, field: str) -> None:
    changed = {
        "name": {"name": text},
        "folder": {"folder": Path("/f") / text},
        "disk": {"disks": (dataclasses.replace(DATA, path=Path("/f") / text),)},
        "cmdline": {"kernel": KERNEL.model_copy(update={"cmdline": text})},
    }[field]
    machine = dataclasses.replace(PARA, **changed)  # type: ignore[arg-type]
    try:
        argv = build_argv(machine, TCG, (7,))
    except InvalidInput:
        assert "\0" in text or any("\ud800" <= char <= "\udfff" for char in text)
        return
    for argument in argv:
        assert b"\0" not in argument.encode()


def test_every_disk_node_names_its_format_and_its_base() -> None:
    nodes = [json.loads(text) for text in options(build_argv(PARA, TCG, (7,)), "-blockdev")]
    by_name = {node["node-name"]: node for node in nodes}
    assert by_name["disk0"]["backing"] == "disk0-base"
    assert by_name["disk0-base"]["backing"] is None
    assert by_name["disk0-base"]["read-only"] is True
    assert by_name["disk1"]["driver"] == "raw"
    assert by_name["disk1"]["read-only"] is True
    assert not any(node["cache"]["no-flush"] for node in nodes)


@pytest.mark.parametrize(
    ("changes", "taps", "field"),
    [
        ({"mode": Mode.HYBRID}, (7,), "mode"),
        ({"mode": Mode.AUTO}, (7,), "mode"),
        ({"disks": (DATA,) * 9}, (7,), "disks"),
        ({"disks": (DATA,) * 7, "mode": Mode.FULL}, (7,), "disks"),
        ({"disks": (dataclasses.replace(DATA, bases=ROOT.bases),)}, (7,), "disks"),
        ({"nics": (NIC,) * 9}, (7,) * 9, "networks"),
        ({}, (), "networks"),
        ({}, (7, 8), "networks"),
        ({"kernel_folder": None}, (7,), "kernel"),
        ({"kernel": XEN.kernel, "kernel_folder": Path("/my images")}, (7,), "kernel_folder"),
    ],
)
def test_what_qemu_cannot_be_told_is_refused(
    changes: dict[str, object], taps: tuple[int, ...], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_argv(dataclasses.replace(PARA, **changes), TCG, taps)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.expected


def test_the_translation_buffer_is_always_said() -> None:
    assert default_tcg_buffer(512 * MIB) == 64 * MIB
    assert default_tcg_buffer(512 * MIB + 1) == 256 * MIB
    for machine, platform, taps in CASES.values():
        accelerator = options(build_argv(machine, platform, taps), "-accel")[0]
        assert accelerator == "kvm" or "tb-size=" in accelerator


# --- what QEMU says of itself -----------------------------------------------------------------


def test_the_newest_machine_is_chosen_by_number() -> None:
    listing = """Supported machines are:
microvm              microvm (i386)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)
pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)
pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)
pc-q35-4.0.1         Standard PC (Q35 + ICH9, 2009)
pc-q35-rhel9.0.0     RHEL-9.0.0 PC (Q35 + ICH9, 2009)
pc-i440fx-10.1       Standard PC (i440FX + PIIX, 1996)
"""
    assert newest_machine_type(listing, "pc-q35-") == "pc-q35-10.0"


def test_a_qemu_without_versioned_machines_is_refused() -> None:
    with pytest.raises(HostError):
        newest_machine_type("Supported machines are:\nq35  x\n", "pc-q35-")


def test_an_architecture_without_a_row_is_refused() -> None:
    assert find_architecture("x86_64") is X86_64
    with pytest.raises(HostError) as caught:
        find_architecture("riscv64")
    assert "x86_64" in (caught.value.hint or "")
