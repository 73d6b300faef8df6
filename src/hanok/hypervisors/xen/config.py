"""From a machine to the text of its xl.cfg: pure, no I/O.

The keys are fixed here; what comes from outside becomes a value, quoted as xl's own lexer reads it
(libxlu_cfg: a backslash goes before a quote and a backslash). Some values have a grammar of their
own inside: a disk's ends with ``target=``, which takes the rest as it is (libxlu_disk); a channel's
and a card's are split at commas, so that nothing with a comma gets there. So none of the keys that
run a program in Dom0 (``script``, ``bootloader``, ``device_model_override``) can come from a text:
``script`` and ``device_model_override`` are always the one constant, the other is never written.

A machine of mode para is a PV domain, hybrid a PVH one, full an HVM one. In full, disks and cards
are not told to xl, which would put a paravirtual back end beside each emulated device: the device
model gets them as arguments, with block nodes that name all formats and bases, as Hanok's QEMU
does. Source: xl.cfg(5) of Xen 4.17.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import InvalidInput, Unsupported
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.blockdev import block_nodes, options
from hanok.hypervisors.taps import check_taps
from hanok.hypervisors.xen.confinement import Confinement
from hanok.hypervisors.xen.firmware import FILES
from hanok.model.image import DiskFormat, Kernel
from hanok.model.vm import Firmware, Mode
from hanok.units import MIB

CONSOLE_SOCKET = "console.sock"
AGENT_SOCKET = "agent.sock"
AGENT_PORT = "org.qemu.guest_agent.0"
# What xl calls when a back end of a card comes or goes. It does nothing: the driver itself moves
# the card into its network, while the domain is still paused.
CARD_SCRIPT = "/bin/true"

_UNCONFINED = Confinement()

_UNUSED_PORT = "org.hanok.unused"
_TYPES = {Mode.PARA: "pv", Mode.HYBRID: "pvh", Mode.FULL: "hvm"}
_CONTROLLER = "hanok-ahci"
_FIRST_NIC_SLOT = 16
_MOST_PARA_DISKS = 16
MOST_FULL_DISKS = 6
_MOST_NICS = 8
HOTPLUG_PORTS = 8

# The domain stays when its guest ends, however it does: what xl itself would do (destroy, restart)
# would hide why, and would leave the cards of the new domain outside their networks.
_ENDS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Value = str | int | tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One line of an xl.cfg."""

    key: str
    value: Value


def domain_name(name: str, uuid: str) -> str:
    """Return the name of a machine's domain: two data directories may have VMs of one name."""
    return f"{name}-{uuid[:8]}"


def build_config(
    machine: Machine,
    taps: Sequence[int] = (),
    confinement: Confinement = _UNCONFINED,
    boot_disc: Path | None = None,
    uefi: Path | None = None,
) -> str:
    """Return the text that ``xl create`` reads for ``machine``.

    ``taps``: open descriptors, one a card, that the device model inherits; in mode full only.
    ``confinement``: what there is to keep the device model from the rest of Dom0. ``boot_disc``:
    the disc with the kernel and its command line, see bootdisc.py; in mode full only. ``uefi``: the
    host's firmware of that kind, see firmware.py.
    Raises InvalidInput when the machine cannot be said to xl (too many disks or cards, a character
    that no value may hold), Unsupported when it cannot be run so.
    """
    return render(settings_of(machine, taps, confinement, boot_disc, uefi))


def settings_of(
    machine: Machine,
    taps: Sequence[int] = (),
    confinement: Confinement = _UNCONFINED,
    boot_disc: Path | None = None,
    uefi: Path | None = None,
) -> list[Setting]:
    """Return the settings of ``machine``'s domain, in the order of the file. See build_config."""
    _check(machine, taps)
    settings = [
        Setting("name", domain_name(machine.name, machine.uuid)),
        Setting("uuid", machine.uuid),
        Setting("type", _TYPES[machine.mode]),
        Setting("vcpus", machine.cpus),
        Setting("memory", mebibytes(machine.memory)),
        Setting("maxmem", mebibytes(machine.memory)),
        # Guests read the time stamp counter themselves. Emulating it costs an exit each time, and
        # where Xen runs in software emulation it cannot decode RDTSCP: the guest dies at boot.
        Setting("tsc_mode", "native"),
        *(Setting(key, "preserve") for key in _ENDS),
        *([] if boot_disc is not None else _boot(machine, uefi)),
    ]
    if machine.mode is Mode.FULL:
        return [*settings, *_full(machine, taps, confinement, boot_disc)]
    return [*settings, *_para(machine, confinement)]


def render(settings: Sequence[Setting]) -> str:
    """Return the text of an xl.cfg. Raises InvalidInput for what a value cannot hold."""
    return "".join(f"{setting.key} = {_render(setting.value)}\n" for setting in settings)


def _render(value: Value) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quote(value)
    return f"[ {', '.join(quote(item) for item in value)} ]"


def quote(text: str) -> str:
    """Return ``text`` as a string of an xl.cfg. Raises InvalidInput for control characters."""
    if _CONTROL.search(text):
        raise InvalidInput(
            "a control character in a name, a path or a kernel's command line",
            expected="text in one line",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("a name or path is not UTF-8", expected="UTF-8 text") from error
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def mebibytes(size: int) -> int:
    """Return ``size`` bytes in whole MiB, rounded up."""
    return -(-size // MIB)


def _check(machine: Machine, taps: Sequence[int]) -> None:
    if machine.mode not in _TYPES:
        raise InvalidInput(
            f"mode {machine.mode} cannot be run as it is",
            field="mode",
            expected="para, hybrid or full",
        )
    if machine.frozen is not None:
        raise Unsupported(
            "Xen starts no machine from frozen memory",
            field="kind",
            expected="linked or full",
            hint="make the clone with another kind, or on a host with QEMU",
        )
    full = machine.mode is Mode.FULL
    limit = MOST_FULL_DISKS if full else _MOST_PARA_DISKS
    placed = [disk for disk in machine.disks if full or disk.port is None]
    _check_count(len(placed), limit, "disks", machine.mode)
    _check_count(len(machine.nics), _MOST_NICS, "networks", machine.mode)
    if full:
        check_taps(machine.nics, taps)
    if machine.kernel is not None and machine.kernel_folder is None:
        raise InvalidInput("a kernel without its folder", field="kernel", expected="kernel_folder")


def _check_count(count: int, limit: int, field: str, mode: Mode) -> None:
    if count > limit:
        raise InvalidInput(
            f"{count} {field} are too many",
            field=field,
            expected=f"at most {limit} in mode {mode} on Xen",
        )


def _boot(machine: Machine, uefi: Path | None) -> list[Setting]:
    """Return what a domain boots by: a kernel of its image, or firmware and its disk."""
    kernel, folder = machine.kernel, machine.kernel_folder
    if kernel is None or folder is None:
        return _firmware(machine, uefi)
    if kernel.bare:
        raise Unsupported(
            "a kernel without a boot loader that is no Linux is not started on Xen here",
            field="image",
            expected="a host with QEMU, or a disk with a boot loader",
        )
    settings = [Setting("kernel", str(kernel_file(kernel, folder, machine.mode)))]
    if kernel.initrd:
        settings.append(Setting("ramdisk", str(folder / kernel.initrd)))
    return [*settings, Setting("cmdline", command_line(kernel, machine.mode))]


def _firmware(machine: Machine, uefi: Path | None) -> list[Setting]:
    boot = machine.boot
    if machine.mode is not Mode.FULL:
        raise Unsupported(
            f"the image has no kernel of its own beside its disk, so mode {machine.mode} cannot"
            " boot it on Xen",
            field="mode",
            expected="full",
        )
    if boot is not None and (boot.secure or boot.tpm is not None):
        raise Unsupported(
            "on Xen a machine has neither Secure Boot nor a TPM",
            field="secure_boot" if boot.secure else "tpm",
            expected="a machine without, or a host with QEMU",
        )
    if boot is None or boot.firmware is not Firmware.UEFI:
        return []
    if uefi is None:
        raise Unsupported(
            "this host has no UEFI firmware for Xen: Debian's package ovmf is for QEMU alone",
            field="firmware",
            expected=f"OvmfXen, for example at {FILES[0]}",
            hint="docs/xen.md says how to get it; or take a machine with --firmware bios",
        )
    return [Setting("bios", "ovmf"), Setting("bios_path_override", str(uefi))]


def kernel_file(kernel: Kernel, folder: Path, mode: Mode) -> Path:
    """Return the file that ``mode`` starts.

    An ELF kernel would start at its PVH entry, where Linux looks for Xen before it has read its
    command line. Firmware starts a bzImage as on bare metal.
    """
    return folder / ((kernel.bzimage if mode is Mode.FULL else None) or kernel.vmlinuz)


def command_line(kernel: Kernel, mode: Mode) -> str:
    """Return the kernel's command line with what Xen needs in ``mode``.

    The last console named is the one that gets a shell. In mode full Linux would find Xen by its
    CPUID leaves and use its clock and event channels.
    """
    return f"{kernel.cmdline} {'xen_nopv' if mode is Mode.FULL else 'console=hvc0'}"


# --- PV and PVH ---------------------------------------------------------------------------


def _para(machine: Machine, confinement: Confinement) -> list[Setting]:
    settings = [
        Setting("disk", tuple(_para_disk(n, disk) for n, disk in enumerate(machine.disks))),
        Setting("vif", tuple(nic_text(nic) for nic in machine.nics)),
    ]
    if machine.agent:
        settings.append(Setting("channel", _channels(machine)))
    return [*settings, *_launcher(confinement)]


def _own_user(machine: Machine, confinement: Confinement) -> list[Setting]:
    if confinement.launcher is None or machine.account is None:
        return []
    user = f"{machine.account.uid}:{machine.account.gid}"
    return [Setting("device_model_args", ("-runas", user))]


def _launcher(confinement: Confinement) -> list[Setting]:
    if confinement.launcher is None:
        return []
    return [Setting("device_model_override", str(confinement.launcher))]


def _para_disk(index: int, disk: Disk) -> str:
    vdev = f"xvd{chr(ord('a') + index)}" if disk.port is None else port_vdev(disk.port)
    return disk_text(vdev, disk)


def port_vdev(port: int) -> str:
    """Return what a guest calls the disk in a hot-plug port: behind those in fixed places."""
    return f"xvd{chr(ord('a') + _MOST_PARA_DISKS + port)}"


def disk_text(vdev: str, disk: Disk) -> str:
    """Return a disk's text; ``target`` must be the last, since it takes all that follows.

    Overlays stand on what their own header says: whoever starts the domain has to have compared
    that with ``disk.bases``.
    """
    if disk.bases and disk.format is not DiskFormat.QCOW2:
        raise InvalidInput(f"a {disk.format} disk has no base", field="disks", expected="qcow2")
    if str(disk.path).endswith(","):  # xl takes it for the end of a field
        raise InvalidInput(
            f"the path {disk.path} ends with a comma", field="disks", expected="another name"
        )
    access = "ro" if disk.read_only else "rw"
    return f"format={disk.format},vdev={vdev},access={access},backendtype=qdisk,target={disk.path}"


def nic_text(nic: Nic) -> str:
    """Return a card's text."""
    _refuse_comma(nic.mac, "networks")
    return f"type=vif,mac={nic.mac},script={CARD_SCRIPT}"


def _channels(machine: Machine) -> tuple[str, ...]:
    # xl 4.17 gives the first channel the number of the primary console and then drops it; later
    # ones give all of them their own. So the guest's is the second, and is found by its name.
    path = str(machine.folder / AGENT_SOCKET)
    _refuse_comma(path, "agent")
    return (
        f"connection=pty,name={_UNUSED_PORT}",
        f"connection=socket,path={path},name={AGENT_PORT}",
    )


def _refuse_comma(text: str, field: str) -> None:
    if "," in text:
        raise InvalidInput(
            f"a comma in {text!r}, which xl takes for the end of a field",
            field=field,
            expected="text without commas",
            hint="set HANOK_HOME to a folder whose path has none",
        )


# --- HVM ----------------------------------------------------------------------------------


def _full(
    machine: Machine, taps: Sequence[int], confinement: Confinement, boot_disc: Path | None
) -> list[Setting]:
    serial = [_serial(machine, CONSOLE_SOCKET)]
    if machine.agent:
        serial.append(_serial(machine, AGENT_SOCKET))
    return [
        # No device by which a guest could find its way to paravirtual ones.
        Setting("xen_platform_pci", 0),
        Setting("vga", "none"),
        Setting("vnc", 0),
        Setting("usb", 0),
        Setting("acpi", 1),
        Setting("boot", "c"),
        Setting("serial", tuple(serial)),
        *_launcher(confinement),
        *_own_user(machine, confinement),
        Setting("device_model_args_hvm", tuple(_device_model(machine, taps, boot_disc))),
    ]


def _serial(machine: Machine, name: str) -> str:
    """Return a serial port that is a socket, in QEMU's short form (-serial in qemu(1))."""
    return options({"server": "on", "wait": "off"}, f"unix:{machine.folder / name}")


def _device_model(machine: Machine, taps: Sequence[int], boot_disc: Path | None) -> list[str]:
    argv = ["-device", f"ahci,id={_CONTROLLER}"]
    if boot_disc is not None:
        disc = Disk("boot", boot_disc, DiskFormat.RAW, read_only=True)
        argv += [*block_nodes("boot", disc), "-device", _boot_drive(len(machine.disks))]
    for index, disk in enumerate(machine.disks):
        name = f"disk{index}"
        argv += [*block_nodes(name, disk), "-device", _full_disk(index, name, disk.read_only)]
    for index, (nic, tap) in enumerate(zip(machine.nics, taps, strict=True)):
        argv += ["-netdev", options({"id": f"net{index}", "fd": str(tap)}, "tap")]
        card = {"id": f"net{index}-dev", "netdev": f"net{index}", "mac": nic.mac, "romfile": ""}
        card["addr"] = f"{_FIRST_NIC_SLOT + index:#x}"
        # Linux reads an e1000's EEPROM bit by bit: thousands of exits to the device model.
        argv += ["-device", options(card, "e1000e")]
    return argv


def _boot_drive(port: int) -> str:
    return f"ide-cd,id=boot-dev,drive=boot,bus={_CONTROLLER}.{port},bootindex=0"


def _full_disk(index: int, name: str, read_only: bool) -> str:
    # A full disk of the host stops the guest until there is room again. A CD carries what is
    # read-only: an ATA disk cannot be that.
    common = f"id={name}-dev,drive={name},bus={_CONTROLLER}.{index},bootindex={index + 1}"
    if read_only:
        return f"ide-cd,{common}"
    return f"ide-hd,{common},write-cache=on,werror=enospc,rerror=report"
