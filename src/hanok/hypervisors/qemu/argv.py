"""From a machine to QEMU's arguments: pure, no I/O.

Each text that comes from outside ends as one value of one argument: in options of the form
``key=value,key=value`` a comma in a value is doubled (QEMU's QemuOpts), block nodes are JSON, and
``-kernel``, ``-initrd``, ``-append`` and ``-pidfile`` take their text as it is. With a hypervisor
below the kernel ``-initrd`` is a list, in which commas are doubled too.

The layout of devices is fixed, so that a machine looks the same at each start: in mode para
disks are PCI slots 8 to 15 and network cards 16 to 23, and slot 7 has ports for those that are
plugged in while it runs; in mode full disks are the ports of the built-in AHCI controller.
Sources: qemu(1), docs/interop/qemu-qmp-ref, hw/i386/pc_q35.c.

A clone and the loader of its template (see freeze.py) have the same devices as any other machine;
only what is behind them differs: the RAM is a file, and the state of the devices comes in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import InvalidInput
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.blockdev import block_nodes, escape, options
from hanok.hypervisors.qemu.arch import X86_64, Architecture
from hanok.hypervisors.qemu.firmware import UefiFiles
from hanok.hypervisors.qemu.usernet import user_netdev
from hanok.hypervisors.taps import check_taps
from hanok.model.image import BareHypervisor, Kernel
from hanok.model.keeping import WatchdogAction
from hanok.model.network import Plug, UserLink
from hanok.model.vm import Mode
from hanok.units import MIB

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
AGENT_SOCKET = "agent.sock"
IDENTITY_SOCKET = "identity.sock"
SCREEN_SOCKET = "vnc.sock"
TPM_SOCKET = "tpm.sock"
PID_FILE = "qemu.pid"
LOG_FILE = "qemu.log"
AGENT_PORT = "org.qemu.guest_agent.0"
IDENTITY_PORT = "hanok.identity.0"

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_WATCHDOG_SLOT = "0x6"
HOTPLUG_PORTS = 8
_PORTS_SLOT = 7
_MOST_CPUS = 8
_FIRST_DISK_SLOT = 8
_FIRST_NIC_SLOT = 16
_MAX_PARA_DISKS = 8
_MAX_FULL_DISKS = 6
_MAX_NICS = 8


@dataclass(frozen=True)
class Platform:
    """How machines run on this host: ``accelerator`` is kvm or tcg, ``sandbox`` seccomp's.

    ``vnc``: this QEMU can show a screen by VNC.
    """

    architecture: Architecture
    accelerator: str
    machine_type: str
    sandbox: bool
    vnc: bool = False


def default_tcg_buffer(memory: int) -> int:
    """Return the bytes of TCG's translation buffer for a guest with ``memory`` bytes.

    QEMU's own default is 1 GiB a machine; booting a Linux guest fills about 57 MiB.
    """
    return 64 * MIB if memory <= 512 * MIB else 256 * MIB


def build_argv(
    machine: Machine,
    platform: Platform,
    taps: Sequence[Plug] = (),
    emulator: str = "qemu",
    *,
    load_into: int | None = None,
    uefi: UefiFiles | None = None,
) -> list[str]:
    """Return the arguments, program first, that run ``machine``; ``taps`` as in Hypervisor.start.

    ``uefi`` boots it instead of SeaBIOS, its variables in the file that ``machine.boot`` names.
    ``load_into`` makes it a loader: its RAM is that memfd, shared, and it waits to be sent another
    machine's state. Raises InvalidInput when the machine cannot be said to QEMU (too many disks or
    cards, a character that no argument may hold, taps that do not match the cards).
    """
    _check(machine, taps, platform.architecture)
    argv = [
        emulator,
        *_base(machine.mode, machine.machine_type or platform.machine_type, platform, uefi),
        *_watchdog(machine.watchdog),
        *("-name", options({"guest": machine.name})),
        *("-uuid", machine.uuid),
        *("-pidfile", str(machine.folder / PID_FILE)),
        *_processor(machine, platform),
        *_memory(machine.memory, _backing(machine, load_into)),
        *_monitor(machine.folder),
        *_console(machine.folder, platform),
        *_kernel(machine),
        *_screen(machine, platform),
        *_flash(machine, uefi),
        *_tpm(machine),
    ]
    hot = has_hotplug(machine, platform.architecture)
    if hot:
        argv += _hotplug_ports()
    for index, disk in enumerate(machine.disks):
        argv += _disk(index, disk, machine.mode, hot=hot)
    for index, (nic, tap) in enumerate(zip(machine.nics, taps, strict=True)):
        argv += _nic(index, nic, tap, machine.mode, hot=hot)
    if machine.mode is Mode.PARA:
        argv += _para_devices()
    if machine.agent:
        argv += _agent(machine, platform, loader=load_into is not None)
        if machine.mode is Mode.PARA:
            argv += _identity(machine.folder, frozen=machine.frozen is not None)
    if machine.frozen is not None or load_into is not None:
        argv += ["-S", "-incoming", "defer"]
    if load_into is not None and platform.accelerator == "kvm":
        argv += _CLOCK_FROM_MEMORY
    return [_checked(argument) for argument in argv]


def build_probe_argv(
    platform: Platform,
    emulator: str,
    *,
    kernel: Path,
    initrd: Path,
    cmdline: str,
    memory: int,
    console: int,
) -> list[str]:
    """Return the arguments of a guest without disk or network whose console is a descriptor."""
    argv = [
        emulator,
        *_base(Mode.PARA, platform.machine_type, platform),
        *_accelerator(platform, default_tcg_buffer(memory)),
        *("-cpu", guest_cpu(Mode.PARA, platform)),
        *_memory(memory, _PLAIN),
        *("-chardev", options({"id": "console", "fd": str(console)}, "socket")),
        *platform.architecture.serial(0, "console"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline),
        *_para_devices(),
    ]
    return [_checked(argument) for argument in argv]


def _check(machine: Machine, taps: Sequence[Plug], architecture: Architecture) -> None:
    para = machine.mode is Mode.PARA
    if machine.mode not in architecture.modes:
        raise InvalidInput(
            f"mode {machine.mode} cannot be run as it is on {architecture.debian}",
            field="mode",
            expected=" or ".join(architecture.modes),
        )
    limit = _MAX_PARA_DISKS if para else _MAX_FULL_DISKS
    placed = [
        disk
        for disk in machine.disks
        if disk.port is None or not has_hotplug(machine, architecture)
    ]
    if len(placed) > limit:
        raise InvalidInput(
            f"{len(placed)} disks are too many",
            field="disks",
            expected=f"at most {limit} in mode {machine.mode}",
        )
    if len(machine.nics) > _MAX_NICS:
        raise InvalidInput(
            f"{len(machine.nics)} network cards are too many",
            field="networks",
            expected=f"at most {_MAX_NICS}",
        )
    check_taps(machine.nics, taps)
    if machine.kernel is not None and machine.kernel_folder is None:
        raise InvalidInput("a kernel without its folder", field="kernel", expected="kernel_folder")


def _checked(argument: str) -> str:
    """Return ``argument``; raises InvalidInput when the kernel could not pass it on."""
    if "\0" in argument:
        raise InvalidInput("a NUL character in a name or path", expected="text without NUL")
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("a name or path is not UTF-8", expected="UTF-8 text") from error
    return argument


def _base(
    mode: Mode, machine_type: str, platform: Platform, uefi: UefiFiles | None = None
) -> list[str]:
    board = platform.architecture.board(mode, uefi is not None and uefi.smm)
    machine = {"memory-backend": "ram", **board, "dump-guest-core": "off"}
    if uefi is not None:
        machine |= {"pflash0": "code", "pflash1": "variables"}
    argv = ["-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", options(machine, machine_type)]
    argv += ["-rtc", "base=utc", "-boot", "strict=on,menu=off"]
    argv += ["-action", "reboot=reset,shutdown=poweroff,panic=pause,watchdog=reset"]
    if platform.sandbox:
        argv += ["-sandbox", SANDBOX]
    return argv


def _watchdog(action: WatchdogAction | None) -> list[str]:
    """Return the watchdog, hardware of its time: a guest in mode full may find it as well.

    A guest that is to be ended is paused: the daemon, or the next one, sees that and ends it.
    """
    if action is None or action is WatchdogAction.NONE:
        return []
    does = "reset" if action is WatchdogAction.RESET else "pause"
    return ["-device", f"i6300esb,id=watchdog,addr={_WATCHDOG_SLOT}", "-action", f"watchdog={does}"]


def _accelerator(platform: Platform, tcg_buffer: int) -> list[str]:
    if platform.accelerator == "kvm":
        return ["-accel", "kvm"]
    return ["-accel", f"tcg,thread=multi,tb-size={_mebibytes(tcg_buffer)}"]


def _processor(machine: Machine, platform: Platform) -> list[str]:
    buffer = machine.tcg_buffer or default_tcg_buffer(machine.memory)
    return [
        *_accelerator(platform, buffer),
        *("-cpu", _cpu(machine, platform)),
        *("-smp", _topology(machine, hot=has_hotplug(machine, platform.architecture))),
    ]


def _topology(machine: Machine, *, hot: bool) -> str:
    """Return the vCPUs: those that there are, and with hot-plug as many more as there may be."""
    most = max(machine.cpus, _MOST_CPUS) if hot else machine.cpus
    shape = f"sockets=1,cores={most},threads=1"
    return f"cpus={machine.cpus},{shape}" + (f",maxcpus={most}" if most > machine.cpus else "")


def _cpu(machine: Machine, platform: Platform) -> str:
    model = guest_cpu(machine.mode, platform, nested=machine.nested)
    is_xen = machine.kernel is not None and machine.kernel.hypervisor is not None
    if not is_xen or platform.accelerator == "kvm":
        return model
    return f"{model},{platform.architecture.cpu_translated_xen}"


def guest_cpu(mode: Mode, platform: Platform, *, nested: bool = True) -> str:
    """Return the CPU model that guests in ``mode`` get.

    Without ``nested`` it lacks what KVM in the guest would need; with it, it has that where the
    accelerator offers it (TCG does on x86: SVM).
    """
    row = platform.architecture
    if platform.accelerator != "kvm":
        model = row.cpu_translated
    else:
        model = row.cpu_para if mode is Mode.PARA else row.cpu_full
    return model if nested or not row.cpu_not_nested else f"{model},{row.cpu_not_nested}"


# All three back ends have the same id, so that the block of RAM has the same name: it is named in
# the state of the devices.
_PLAIN = "memory-backend-ram,id=ram,size={size}"
_FILE = "memory-backend-file,id=ram,size={size},mem-path=/proc/self/fd/{fd},share={share}"


# The clock that KVM gives a machine counts from zero in a loader, whose vCPUs never run, and QEMU
# (hw/i386/kvm/clock.c) would save that: time in a clone then stands still until it has caught up,
# while its timer fires without end. So the loader is not to call its clock reliable: the clone's
# QEMU then works the clock out from what the guest's memory and time stamp counter say.
_CLOCK_FROM_MEMORY = ("-global", "kvmclock.x-mach-use-reliable-get-clock=off")


def _backing(machine: Machine, load_into: int | None) -> str:
    """Return the object behind the RAM, all but its size said."""
    if load_into is not None:
        return _FILE.format(size="{size}", fd=load_into, share="on")
    if machine.frozen is not None:
        return _FILE.format(size="{size}", fd=machine.frozen.memory, share="off")
    return _PLAIN


def _memory(memory: int, backing: str) -> list[str]:
    size = f"{_mebibytes(memory)}M"
    return ["-m", f"size={size}", "-object", backing.format(size=size)]


def ram_size(memory: int) -> int:
    """Return the bytes of RAM that a machine of ``memory`` bytes really has: whole MiB."""
    return _mebibytes(memory) * MIB


def _mebibytes(size: int) -> int:
    return -(-size // MIB)


def _monitor(folder: Path) -> list[str]:
    return [*_listener("qmp", folder / QMP_SOCKET), "-mon", "chardev=qmp,mode=control"]


def _console(folder: Path, platform: Platform) -> list[str]:
    serial = platform.architecture.serial(0, "console")
    return [*_listener("console", folder / CONSOLE_SOCKET), *serial]


def _agent(machine: Machine, platform: Platform, *, loader: bool) -> list[str]:
    listener = _listener("agent", machine.folder / AGENT_SOCKET)
    if loader:
        # A port whose host side is not as open as it was for the guest makes QEMU tell the guest,
        # and the guest's agent pause. A file counts as open.
        listener = ["-chardev", "file,id=agent,path=/dev/null"]
    if machine.mode is Mode.FULL:
        return [*listener, *platform.architecture.serial(1, "agent")]
    return [
        *listener,
        *("-device", "virtio-serial-pci,id=vserial,addr=0x4,disable-legacy=on,max_ports=3"),
        *("-device", f"virtserialport,bus=vserial.0,nr=1,chardev=agent,name={AGENT_PORT}"),
    ]


def _identity(folder: Path, *, frozen: bool) -> list[str]:
    """The port at which a guest's helper waits for another identity: only clones are told one.

    It is open at the host's side in all others too: the guest notices no difference.
    """
    chardev = ["-chardev", "file,id=identity,path=/dev/null"]
    if frozen:
        chardev = _listener("identity", folder / IDENTITY_SOCKET)
    port = f"virtserialport,bus=vserial.0,nr=2,chardev=identity,name={IDENTITY_PORT}"
    return [*chardev, "-device", port]


def _listener(name: str, path: Path) -> list[str]:
    fields = {"id": name, "path": str(path), "server": "on", "wait": "off"}
    return ["-chardev", options(fields, "socket")]


VNC = "none,password=on"


def _screen(machine: Machine, platform: Platform) -> list[str]:
    """Return the graphics card, in the slot that such a card has on this board.

    A VNC server can be switched on later only if it was there at the start: it is, listens to
    nobody ("none"), and lets nobody in until it has a password. See screen.py.
    """
    if not machine.screen:
        return []
    if platform.architecture.name != "x86_64":
        raise InvalidInput(
            f"a guest of {platform.architecture.name} has no graphics card here",
            field="display",
            expected="none",
        )
    argv = ["-device", "VGA,id=screen,addr=0x1"]
    return [*argv, "-vnc", VNC] if platform.vnc else argv


def _kernel(machine: Machine) -> list[str]:
    kernel, folder = machine.kernel, machine.kernel_folder
    if kernel is None or folder is None:
        return []
    if kernel.hypervisor is not None:
        return _multiboot(kernel, kernel.hypervisor, folder)
    argv = ["-kernel", str(folder / kernel.vmlinuz)]
    if kernel.initrd:
        argv += ["-initrd", str(folder / kernel.initrd)]
    return [*argv, "-append", kernel.cmdline]


# Only firmware in System Management Mode may write the variables, or the guest could undo Secure
# Boot; edk2 cannot keep that up across a suspend to RAM (OvmfPkg/README).
_GUARDED_FLASH = (
    *("-global", "driver=cfi.pflash01,property=secure,value=on"),
    *("-global", "ICH9-LPC.disable_s3=1"),
)


def _flash(machine: Machine, uefi: UefiFiles | None) -> list[str]:
    """Return the two flash devices of UEFI: its program, and the machine's own variables."""
    if uefi is None or machine.boot is None:
        return []
    argv = list(_GUARDED_FLASH) if uefi.smm else []
    for name, path, read_only in (
        ("code", uefi.code, True),
        ("variables", machine.boot.variables, False),
    ):
        file = {"driver": "file", "filename": str(path), "read-only": read_only}
        node = {"driver": "raw", "node-name": name, "read-only": read_only, "file": file}
        argv += ["-blockdev", json.dumps(node, ensure_ascii=False)]
    return argv


def _tpm(machine: Machine) -> list[str]:
    if machine.boot is None or machine.boot.tpm is None:
        return []
    socket = options({"id": "tpm", "path": str(machine.boot.tpm / TPM_SOCKET)}, "socket")
    return [
        *("-chardev", socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", "tpm-crb,tpmdev=tpm0"),
    ]


def _multiboot(kernel: Kernel, hypervisor: BareHypervisor, folder: Path) -> list[str]:
    """Return a hypervisor, and Dom0's kernel and initrd as its modules.

    QEMU (hw/i386/multiboot.c) parts the modules at single commas, and each file from its command
    line at the first space.
    """
    if " " in str(folder):
        raise InvalidInput(
            f"a hypervisor cannot be booted from {folder}: there is a space in its name",
            field="kernel_folder",
            expected="a folder for images without spaces in its path",
        )
    modules = [f"{folder / kernel.vmlinuz} {kernel.cmdline}"]
    if kernel.initrd:
        modules.append(str(folder / kernel.initrd))
    return [
        *("-kernel", str(folder / hypervisor.file)),
        *("-initrd", ",".join(escape(module) for module in modules)),
        *("-append", hypervisor.cmdline),
    ]


def _para_devices() -> list[str]:
    # pvpanic tells a panicked guest from a hung one. Not in mode full: a guest there must not
    # find out that it is virtualized.
    return [
        *("-object", "rng-builtin,id=rng0"),
        *("-device", "virtio-rng-pci,rng=rng0,addr=0x2,disable-legacy=on"),
        *("-device", "virtio-balloon-pci,id=balloon,addr=0x3,disable-legacy=on"),
        *("-device", "pvpanic-pci,addr=0x5"),
    ]


def has_hotplug(machine: Machine, architecture: Architecture) -> bool:
    """Whether a machine has ports for disks and cards that come while it runs.

    They take virtio, and ACPI as a PC has it. Below Xen in a machine nobody was seen to use them.
    """
    is_xen = machine.kernel is not None and machine.kernel.hypervisor is not None
    return machine.mode is Mode.PARA and architecture is X86_64 and not is_xen


def _hotplug_ports() -> list[str]:
    """The ports, as functions of one slot: what is plugged in is alone on a bus of its own."""
    argv: list[str] = []
    for number in range(HOTPLUG_PORTS):
        fields = {"id": port_name(number), "addr": f"{_PORTS_SLOT:#x}.{number}"}
        if number == 0:
            fields["multifunction"] = "on"
        argv += ["-device", options({**fields, "chassis": str(number + 1)}, "pcie-root-port")]
    return argv


def port_name(port: int) -> str:
    """Return the name of a hot-plug port, and of the bus behind it."""
    return f"hot{port}"


def _disk(index: int, disk: Disk, mode: Mode, *, hot: bool) -> list[str]:
    if disk.port is not None and hot:
        name = disk_name(disk.port)
        device = options(hotplug_disk(disk.port, disk))
        return [*block_nodes(name, disk), "-device", device.removeprefix("driver=")]
    name = f"disk{index}"
    device = _disk_device(index, name, disk, mode)
    return [*block_nodes(name, disk), "-device", device]


def _disk_device(index: int, name: str, disk: Disk, mode: Mode) -> str:
    # A full disk of the host stops the guest until there is room again; other errors are the
    # guest's to see. A CD carries what is read-only in mode full: an ATA disk cannot be that.
    common = f"id={name}-dev,drive={name},bootindex={index + 1}"
    if disk.serial is not None:
        common += f",serial={escape(disk.serial)}"
    errors = "write-cache=on,werror=enospc,rerror=report"
    if mode is Mode.PARA:
        slot = f"addr={_FIRST_DISK_SLOT + index:#x},disable-legacy=on"
        return f"virtio-blk-pci,{common},{slot},{errors}"
    if disk.read_only:
        return f"ide-cd,{common},bus=ide.{index}"
    return f"ide-hd,{common},bus=ide.{index},{errors}"


def disk_name(port: int) -> str:
    """Return the name of the node of the disk in a hot-plug port; ``-dev``: of its device."""
    return f"{port_name(port)}-disk"


def hotplug_disk(port: int, disk: Disk) -> dict[str, str]:
    """Return the device of a disk in a hot-plug port, the driver first."""
    name = disk_name(port)
    fields = {"driver": "virtio-blk-pci", "id": f"{name}-dev", "drive": name}
    fields |= {"bus": port_name(port), "disable-legacy": "on"}
    if disk.serial is not None:
        fields["serial"] = disk.serial
    return {**fields, "write-cache": "on", "werror": "enospc", "rerror": "report"}


def _nic(index: int, nic: Nic, tap: Plug, mode: Mode, *, hot: bool) -> list[str]:
    if nic.port is not None and hot:
        device = options(hotplug_nic(nic.port, nic)).removeprefix("driver=")
        return ["-netdev", _netdev(nic_name(nic.port), tap, mode), "-device", device]
    # No boot ROM: nothing of ours boots from the network, and strict=on would not let it.
    common = {"id": f"net{index}-dev", "netdev": f"net{index}", "mac": nic.mac, "romfile": ""}
    slot = f"{_FIRST_NIC_SLOT + index:#x}"
    if mode is Mode.PARA:
        device = options({**common, "addr": slot, "disable-legacy": "on"}, "virtio-net-pci")
    else:
        device = options({**common, "addr": slot}, "e1000e")
    return ["-netdev", _netdev(netdev_name(index), tap, mode), "-device", device]


def netdev_name(index: int) -> str:
    """Return what the network behind card ``index`` is called."""
    return f"net{index}"


def _netdev(name: str, tap: Plug, mode: Mode) -> str:
    if isinstance(tap, UserLink):
        return user_netdev(name, tap)
    fields = {"id": name, "fd": str(tap)}
    if mode is Mode.PARA:
        fields["vhost"] = "off"
    return options(fields, "tap")


def nic_name(port: int) -> str:
    """Return the name of what is behind the card in a hot-plug port; ``-dev``: of its device."""
    return f"{port_name(port)}-net"


def hotplug_nic(port: int, nic: Nic) -> dict[str, str]:
    """Return the device of a card in a hot-plug port, the driver first."""
    name = nic_name(port)
    fields = {"driver": "virtio-net-pci", "id": f"{name}-dev", "netdev": name, "mac": nic.mac}
    return {**fields, "bus": port_name(port), "disable-legacy": "on", "romfile": ""}
