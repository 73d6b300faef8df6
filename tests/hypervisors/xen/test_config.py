"""Machines to xl.cfg: golden files, and text that cannot become a key or a field of its own.

``HANOK_UPDATE_GOLDEN=1`` writes the golden files anew; read the difference before committing it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import HanokError, InvalidInput, Unsupported
from hanok.hypervisors.base import Base, Boot, Disk, Frozen, Machine, Nic
from hanok.hypervisors.xen.config import (
    CARD_SCRIPT,
    build_config,
    command_line,
    domain_name,
    settings_of,
)
from hanok.hypervisors.xen.confinement import Confinement
from hanok.hypervisors.xen.firmware import find_uefi
from hanok.model.image import DiskFormat, Kernel
from hanok.model.vm import Firmware, Mode
from hanok.proc import Account
from hanok.units import MIB
from tests.golden import check_golden
from tests.hypervisors.xen.xlcfg import disk_fields, parse, split_fields

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/var/lib/hanok/vms/u/m")
IMAGE = Path("/var/lib/hanok/images/abc")
KERNEL = Kernel(
    name="cloud",
    vmlinuz="vmlinux",
    initrd="initrd",
    cmdline="console=ttyS0,115200 root=LABEL=hanok-root rw",
    modes=(Mode.PARA, Mode.HYBRID, Mode.FULL),
    bzimage="vmlinuz",
)
ROOT = Disk(
    "root",
    FOLDER / "disk.qcow2",
    DiskFormat.QCOW2,
    bases=(Base(IMAGE / "disk.qcow2", DiskFormat.QCOW2),),
)
SEED = Disk("seed", FOLDER.parent / "seed.iso", DiskFormat.RAW, read_only=True)
PARA = Machine(
    uuid="11111111-2222-3333-4444-555555555555",
    name="web",
    cpus=2,
    memory=512 * MIB,
    mode=Mode.PARA,
    folder=FOLDER,
    account=None,
    disks=(ROOT, SEED),
    nics=(Nic("52:54:00:11:22:33", "default"),),
    kernel=KERNEL,
    kernel_folder=IMAGE,
)
HYBRID = dataclasses.replace(PARA, mode=Mode.HYBRID)
FULL = dataclasses.replace(PARA, mode=Mode.FULL)
TWO = (Nic("52:54:00:11:22:33", "default"), Nic("52:54:00:44:55:66", "back"))
NONE = Confinement()
UEFI = Path("/usr/share/edk2/xen/OVMF.fd")
ALL = Confinement(Path("/usr/lib/hanok/device-model"))
CASES = {
    "para": (PARA, (), NONE),
    "para-confined": (PARA, (), ALL),
    "para-two-nics-no-agent": (dataclasses.replace(PARA, nics=TWO, agent=False), (), NONE),
    "para-no-nic": (dataclasses.replace(PARA, nics=()), (), NONE),
    "hybrid": (HYBRID, (), NONE),
    "hybrid-confined": (HYBRID, (), ALL),
    "full": (FULL, (7,), NONE),
    "full-confined": (
        dataclasses.replace(FULL, account=Account(1700000003, 1700000003)),
        (7,),
        ALL,
    ),
    "full-boot-disc": (FULL, (7,), NONE),
    "full-firmware": (dataclasses.replace(FULL, kernel=None), (7,), NONE),
    "full-uefi": (
        dataclasses.replace(FULL, kernel=None, boot=Boot(Firmware.UEFI, FOLDER / "uefi.fd")),
        (7,),
        NONE,
    ),
    "full-two-nics-no-agent": (dataclasses.replace(FULL, nics=TWO, agent=False), (7, 9), NONE),
}
# Every key of xl.cfg(5) that names a program, a file that is run, or arguments of one; but for the
# one that has a constant of ours.
CONSTANT = {"device_model_override"}
RUNS = {
    "bootloader",
    "bootloader_args",
    "device_model_args",
    "dm_restrict",
    "device_model_args_pv",
    "device_model_user",
    "device_model_stubdomain_override",
    "stubdomain_kernel",
    "bios_path_override",
    "firmware_override",
    "vif_script",
    "colo_checkpoint_host",
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    machine, taps, confinement = CASES[name]
    disc = FOLDER / "boot.iso" if name == "full-boot-disc" else None
    check_golden(GOLDEN / f"{name}.cfg", build_config(machine, taps, confinement, disc, UEFI))


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.cfg")} == set(CASES)


# Machines with nothing odd, by mode.
CALM = {Mode.PARA: (PARA, ()), Mode.HYBRID: (HYBRID, ()), Mode.FULL: (FULL, (7,))}

# What a user, an image or an administrator can put into a machine, however odd.
texts = st.text(max_size=60) | st.sampled_from(
    [
        'x"\nbootloader="/bin/sh',
        "x,script=/tmp/evil",
        "/a,target=/etc/shadow",
        "\\",
        '"]',
        "' + '",
        "a\\x41",
        "iscsi:/x",
    ]
)
paths = texts.map(lambda text: Path("/") / (text.replace("\0", "") or "x"))


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    disks = draw(st.lists(st.tuples(paths, st.booleans()), max_size=4))
    return Machine(
        uuid=draw(st.uuids().map(str)),
        name=draw(texts),
        cpus=draw(st.integers(1, 64)),
        memory=draw(st.integers(64 * MIB, 4096 * MIB)),
        mode=draw(st.sampled_from([Mode.PARA, Mode.HYBRID, Mode.FULL])),
        folder=draw(paths),
        account=None,
        disks=tuple(Disk("d", path, DiskFormat.RAW, only) for path, only in disks),
        nics=tuple(Nic(mac, "n") for mac in draw(st.lists(texts, max_size=2))),
        kernel=KERNEL.model_copy(update={"cmdline": draw(texts), "vmlinuz": draw(texts) or "k"}),
        kernel_folder=draw(paths),
        agent=draw(st.booleans()),
    )


@given(machines())
def test_no_text_becomes_a_key_or_a_program(machine: Machine) -> None:
    taps = tuple(range(3, 3 + len(machine.nics))) if machine.mode is Mode.FULL else ()
    try:
        text = build_config(machine, taps, ALL)
    except InvalidInput:
        return  # refused with a reason is as good
    settings = settings_of(machine, taps, ALL)
    read = parse(text)
    assert [key for key, _ in read] == [setting.key for setting in settings]
    assert len({key for key, _ in read}) == len(read)
    assert {key for key, _ in read} & RUNS == set()
    found = dict(read)
    constant = dict(parse(build_config(CALM[machine.mode][0], CALM[machine.mode][1], ALL)))
    assert {key: found.get(key) for key in CONSTANT} == {key: constant.get(key) for key in CONSTANT}
    assert found["name"] == domain_name(machine.name, machine.uuid)
    assert found["cmdline"] == command_line(_kernel(machine), machine.mode)
    _check_fields(machine, found)


def _kernel(machine: Machine) -> Kernel:
    assert machine.kernel is not None
    return machine.kernel


def _check_fields(machine: Machine, found: dict[str, str | int | list[str]]) -> None:
    if machine.mode is Mode.FULL:
        assert "disk" not in found
        assert "vif" not in found
        return
    disks, cards = found["disk"], found["vif"]
    assert isinstance(disks, list)
    assert isinstance(cards, list)
    for text, disk in zip(disks, machine.disks, strict=True):
        fields = disk_fields(text)
        assert set(fields) == {"format", "vdev", "access", "backendtype", "target"}
        assert fields["target"] == str(disk.path)
        assert fields["format"] == "raw"
        assert fields["access"] == ("ro" if disk.read_only else "rw")
    for text in cards:
        fields = split_fields(text)
        assert set(fields) == {"type", "mac", "script"}
        assert fields["script"] == CARD_SCRIPT
    for text in found.get("channel", []):  # type: ignore[union-attr]
        assert set(split_fields(str(text))) <= {"connection", "path", "name"}


def test_the_agents_channel_is_not_the_first() -> None:
    channels = dict(parse(build_config(PARA)))["channel"]
    assert isinstance(channels, list)
    assert "org.qemu.guest_agent.0" not in channels[0]
    assert channels[1].endswith("name=org.qemu.guest_agent.0")


def test_full_has_nothing_paravirtual() -> None:
    found = dict(parse(build_config(FULL, (7,))))
    assert found["xen_platform_pci"] == 0
    assert str(found["cmdline"]).endswith(" xen_nopv")
    assert not {"disk", "vif", "channel"} & found.keys()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": Mode.AUTO}, "mode"),
        ({"disks": (SEED,) * 17}, "disks"),
        ({"nics": (PARA.nics[0],) * 9}, "networks"),
        ({"kernel_folder": None}, "kernel"),
        ({"folder": Path("/srv/a,b")}, "agent"),
        ({"disks": (Disk("d", Path("/srv/d,"), DiskFormat.RAW),)}, "disks"),
        ({"disks": (dataclasses.replace(ROOT, format=DiskFormat.RAW),)}, "disks"),
        ({"kernel": None}, "mode"),
        ({"frozen": Frozen(3, 4)}, "kind"),
    ],
)
def test_what_cannot_be_said_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(HanokError) as caught:
        build_config(dataclasses.replace(PARA, **change))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.expected


def test_cards_need_taps_in_mode_full() -> None:
    with pytest.raises(InvalidInput) as caught:
        build_config(FULL)
    assert caught.value.field == "networks"


def test_frozen_memory_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        build_config(dataclasses.replace(PARA, frozen=Frozen(3, 4)))


@pytest.mark.parametrize(
    ("more", "uefi", "field"),
    [
        ({"secure": True}, UEFI, "secure_boot"),
        ({"tpm": FOLDER / "tpm"}, UEFI, "tpm"),
        ({}, None, "firmware"),
    ],
)
def test_what_firmware_cannot_do_is_unsupported(
    more: dict[str, Any], uefi: Path | None, field: str
) -> None:
    boot = Boot(Firmware.UEFI, FOLDER / "uefi.fd", **more)
    with pytest.raises(Unsupported) as caught:
        build_config(dataclasses.replace(FULL, kernel=None, boot=boot), (7,), uefi=uefi)
    assert caught.value.field == field
    assert caught.value.hint or "QEMU" in str(caught.value.expected)


def test_the_first_firmware_that_is_there_is_taken(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("none", "first", "second")]
    for file in files[1:]:
        file.touch()
    assert find_uefi(files) == files[1]
    assert find_uefi(files[:1]) is None
