"""From a machine to QEMU's arguments: pure, no I/O.

Each text that comes from outside ends as one value of one argument: in options of the form
``key=value,key=value`` a comma in a value is doubled (QEMU's QemuOpts), block nodes are JSON, and
``-kernel``, ``-initrd``, ``-append`` and ``-pidfile`` take their text as it is.

The layout of devices is fixed, so that a machine looks the same at each start: in mode para
disks are PCI slots 8 to 15 and network cards 16 to 23; in mode full disks are the ports of the
built-in AHCI controller. Sources: qemu(1), docs/interop/qemu-qmp-ref, hw/i386/pc_q35.c.

A clone and the loader of its template (see freeze.py) have the same devices as any other machine;
only what is behind them differs: the RAM is a file, and the state of the devices comes in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import InvalidInput
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.hypervisors.qemu.arch import Architecture
from hanok.model.image import DiskFormat
from hanok.model.vm import Mode
from hanok.units import MIB

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
AGENT_SOCKET = "agent.sock"
IDENTITY_SOCKET = "identity.sock"
PID_FILE = "qemu.pid"
LOG_FILE = "qemu.log"
AGENT_PORT = "org.qemu.guest_agent.0"
IDENTITY_PORT = "hanok.identity.0"

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Bytes of a qcow2 image's tables kept in memory: all of 32 GiB of disk. QEMU's own limit, 32 MiB,
# is more than is counted for a machine (see arch.py).
_QCOW2_TABLES = 4 * MIB
_FIRST_DISK_SLOT = 8
_FIRST_NIC_SLOT = 16
_MAX_PARA_DISKS = 8
_MAX_FULL_DISKS = 6
_MAX_NICS = 8


@dataclass(frozen=True)
class Platform:
    """How machines run on this host: ``accelerator`` is kvm or tcg, ``sandbox`` seccomp's."""

    architecture: Architecture
    accelerator: str
    machine_type: str
    sandbox: bool


def default_tcg_buffer(memory: int) -> int:
    """Return the bytes of TCG's translation buffer for a guest with ``memory`` bytes.

    QEMU's own default is 1 GiB a machine; booting a Linux guest fills about 57 MiB.
    """
    return 64 * MIB if memory <= 512 * MIB else 256 * MIB


def build_argv(
    machine: Machine,
    platform: Platform,
    taps: Sequence[int] = (),
    emulator: str = "qemu",
    *,
    load_into: int | None = None,
) -> list[str]:
    """Return the arguments, program first, that run ``machine``; ``taps`` as in Hypervisor.start.

    ``load_into`` makes it a loader: its RAM is that memfd, shared, and it waits to be sent another
    machine's state. Raises InvalidInput when the machine cannot be said to QEMU (too many disks or
    cards, a character that no argument may hold, taps that do not match the cards).
    """
    _check(machine, taps)
    argv = [
        emulator,
        *_base(machine.mode, machine.machine_type or platform.machine_type, platform),
        *("-name", _options({"guest": machine.name})),
        *("-uuid", machine.uuid),
        *("-pidfile", str(machine.folder / PID_FILE)),
        *_processor(machine, platform),
        *_memory(machine.memory, _backing(machine, load_into)),
        *_monitor(machine.folder),
        *_console(machine.folder),
        *_kernel(machine),
    ]
    for index, disk in enumerate(machine.disks):
        argv += _disk(index, disk, machine.mode)
    for index, (nic, tap) in enumerate(zip(machine.nics, taps, strict=True)):
        argv += _nic(index, nic, tap, machine.mode)
    if machine.mode is Mode.PARA:
        argv += _para_devices()
    if machine.agent:
        argv += _agent(machine.folder, machine.mode, loader=load_into is not None)
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
        *("-chardev", _options({"id": "console", "fd": str(console)}, "socket")),
        *("-device", "isa-serial,id=serial0,chardev=console,index=0"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline),
        *_para_devices(),
    ]
    return [_checked(argument) for argument in argv]


def _check(machine: Machine, taps: Sequence[int]) -> None:
    para = machine.mode is Mode.PARA
    if not para and machine.mode is not Mode.FULL:
        raise InvalidInput(
            f"mode {machine.mode} cannot be run as it is", field="mode", expected="full or para"
        )
    limit = _MAX_PARA_DISKS if para else _MAX_FULL_DISKS
    if len(machine.disks) > limit:
        raise InvalidInput(
            f"{len(machine.disks)} disks are too many",
            field="disks",
            expected=f"at most {limit} in mode {machine.mode}",
        )
    if len(machine.nics) > _MAX_NICS:
        raise InvalidInput(
            f"{len(machine.nics)} network cards are too many",
            field="networks",
            expected=f"at most {_MAX_NICS}",
        )
    if len(taps) != len(machine.nics):
        raise InvalidInput(
            f"{len(machine.nics)} network cards, but {len(taps)} taps",
            field="networks",
            expected="one tap a card",
        )
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


def _options(fields: Mapping[str, str], head: str | None = None) -> str:
    """Return ``head,key=value,...``, each comma in a value doubled."""
    pairs = [f"{key}={_escape(value)}" for key, value in fields.items()]
    return ",".join(pairs if head is None else [_escape(head), *pairs])


def _escape(value: str) -> str:
    return value.replace(",", ",,")


def _base(mode: Mode, machine_type: str, platform: Platform) -> list[str]:
    machine = {
        "memory-backend": "ram",
        "usb": "off",
        "vmport": "off",
        "smm": "off",
        "sata": "off" if mode is Mode.PARA else "on",
        "dump-guest-core": "off",
    }
    argv = ["-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", _options(machine, machine_type)]
    argv += ["-rtc", "base=utc", "-boot", "strict=on,menu=off"]
    argv += ["-action", "reboot=reset,shutdown=poweroff,panic=pause,watchdog=reset"]
    if platform.sandbox:
        argv += ["-sandbox", SANDBOX]
    return argv


def _accelerator(platform: Platform, tcg_buffer: int) -> list[str]:
    if platform.accelerator == "kvm":
        return ["-accel", "kvm"]
    return ["-accel", f"tcg,thread=multi,tb-size={_mebibytes(tcg_buffer)}"]


def _processor(machine: Machine, platform: Platform) -> list[str]:
    buffer = machine.tcg_buffer or default_tcg_buffer(machine.memory)
    return [
        *_accelerator(platform, buffer),
        *("-cpu", guest_cpu(machine.mode, platform, nested=machine.nested)),
        *("-smp", f"cpus={machine.cpus},sockets=1,cores={machine.cpus},threads=1"),
    ]


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
    return model if nested else f"{model},{row.cpu_not_nested}"


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


def _console(folder: Path) -> list[str]:
    serial = "isa-serial,id=serial0,chardev=console,index=0"
    return [*_listener("console", folder / CONSOLE_SOCKET), "-device", serial]


def _agent(folder: Path, mode: Mode, *, loader: bool) -> list[str]:
    listener = _listener("agent", folder / AGENT_SOCKET)
    if loader:
        # A port whose host side is not as open as it was for the guest makes QEMU tell the guest,
        # and the guest's agent pause. A file counts as open.
        listener = ["-chardev", "file,id=agent,path=/dev/null"]
    if mode is Mode.FULL:
        return [*listener, "-device", "isa-serial,id=serial1,chardev=agent,index=1"]
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
    return ["-chardev", _options(fields, "socket")]


def _kernel(machine: Machine) -> list[str]:
    kernel, folder = machine.kernel, machine.kernel_folder
    if kernel is None or folder is None:
        return []
    argv = ["-kernel", str(folder / kernel.vmlinuz)]
    if kernel.initrd:
        argv += ["-initrd", str(folder / kernel.initrd)]
    return [*argv, "-append", kernel.cmdline]


def _para_devices() -> list[str]:
    # pvpanic tells a panicked guest from a hung one. Not in mode full: a guest there must not
    # find out that it is virtualized.
    return [
        *("-object", "rng-builtin,id=rng0"),
        *("-device", "virtio-rng-pci,rng=rng0,addr=0x2,disable-legacy=on"),
        *("-device", "virtio-balloon-pci,id=balloon,addr=0x3,disable-legacy=on"),
        *("-device", "pvpanic-pci,addr=0x5"),
    ]


def _disk(index: int, disk: Disk, mode: Mode) -> list[str]:
    name = f"disk{index}"
    argv: list[str] = []
    below: str | None = None
    for depth, base in reversed(list(enumerate(disk.bases))):
        node = f"{name}-base{depth or ''}"
        argv += _nodes(node, base.path, base.format, read_only=True, backing=below)
        below = node
    argv += _nodes(name, disk.path, disk.format, read_only=disk.read_only, backing=below)
    return [*argv, "-device", _disk_device(index, name, disk.read_only, mode)]


def _nodes(
    name: str, path: Path, format: DiskFormat, *, read_only: bool, backing: str | None
) -> list[str]:
    """Return the two nodes of an image file: the file, and its format on top.

    The backing node is always said, ``null`` when there is none: what the header of a qcow2 file
    names is never opened. JSON, because only JSON has a null.
    """
    shared = {
        "read-only": read_only,
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": False},
    }
    file = {"driver": "file", "node-name": f"{name}-file", "filename": str(path), **shared}
    node = {"driver": str(format), "node-name": name, "file": f"{name}-file", **shared}
    if format is DiskFormat.QCOW2:
        node["backing"] = backing
        node["l2-cache-size"] = _QCOW2_TABLES
    elif backing is not None:
        raise InvalidInput(f"a {format} disk has no base", field="disks", expected="qcow2")
    return [
        *("-blockdev", json.dumps(file, ensure_ascii=False)),
        *("-blockdev", json.dumps(node, ensure_ascii=False)),
    ]


def _disk_device(index: int, name: str, read_only: bool, mode: Mode) -> str:
    # A full disk of the host stops the guest until there is room again; other errors are the
    # guest's to see. A CD carries what is read-only in mode full: an ATA disk cannot be that.
    common = f"id={name}-dev,drive={name},bootindex={index + 1}"
    errors = "write-cache=on,werror=enospc,rerror=report"
    if mode is Mode.PARA:
        slot = f"addr={_FIRST_DISK_SLOT + index:#x},disable-legacy=on"
        return f"virtio-blk-pci,{common},{slot},{errors}"
    if read_only:
        return f"ide-cd,{common},bus=ide.{index}"
    return f"ide-hd,{common},bus=ide.{index},{errors}"


def _nic(index: int, nic: Nic, tap: int, mode: Mode) -> list[str]:
    # No boot ROM: nothing of ours boots from the network, and strict=on would not let it.
    common = {"id": f"net{index}-dev", "netdev": f"net{index}", "mac": nic.mac, "romfile": ""}
    slot = f"{_FIRST_NIC_SLOT + index:#x}"
    netdev = {"id": f"net{index}", "fd": str(tap)}
    if mode is Mode.PARA:
        netdev["vhost"] = "off"
        device = _options({**common, "addr": slot, "disable-legacy": "on"}, "virtio-net-pci")
    else:
        device = _options({**common, "addr": slot}, "e1000e")
    return ["-netdev", _options(netdev, "tap"), "-device", device]
