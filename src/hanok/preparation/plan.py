"""What will be changed on a server, to make it a Type 1 host or what it was. Pure.

Which fall-backs of GRUB work was tried: an entry whose own `if multiboot2 ...` starts Linux covers
a Xen that cannot be loaded; a variable that is saved before Xen starts, and cleared once it has
come to be healthy, covers one that panics. `set fallback=` with an entry's id covers nothing.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources

from hanok.errors import HostError, InvalidInput, Unsupported
from hanok.preparation.facts import GRUB_CFG, GRUBENV, Server
from hanok.units import GIB, MIB, format_size

DROP_IN = "/etc/default/grub.d/hanok-xen.cfg"
ENTRY = "/etc/grub.d/45_hanok_xen"
UNIT = "/etc/systemd/system/hanok-xen-healthy.service"
OWN_PATHS = (DROP_IN, ENTRY, UNIT)
SUMS = "/boot/hanok-xen.sha256"  # written by ENTRY
PATHS = (*OWN_PATHS, SUMS, GRUB_CFG, GRUBENV)
VARIABLE = "hanok_xen_try"
_DEBIANS = ("11", "12", "13")
_LEAST_DOM0 = 512 * MIB
_LEAST_GUESTS = 256 * MIB
_APT = ("apt-get", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold")


@dataclass(frozen=True)
class FileChange:
    """A file's content before and after; None where there is no file."""

    path: str
    old: bytes | None
    new: bytes | None
    mode: int = 0o644


@dataclass(frozen=True)
class Command:
    """A program to run, why, and what takes back what it does."""

    argv: tuple[str, ...]
    why: str
    undo: tuple[str, ...] | None = None


_TRIED = f"{VARIABLE}=1".encode()
_FORGET = Command(
    ("grub-editenv", GRUBENV, "unset", VARIABLE), "an attempt of earlier no longer counts"
)


@dataclass(frozen=True)
class Plan:
    """Steps in their order, and in words what the next boot will do."""

    steps: tuple[FileChange | Command, ...]
    reboot: tuple[str, ...]

    def diff(self) -> str:
        """Return the plan as a unified diff, with the programs that run between its files."""
        return "".join(_shown(step) for step in self.steps)


@dataclass(frozen=True)
class Wanted:
    """What Dom0 gets; None: chosen by the server's size. Bytes."""

    memory: int | None = None
    cpus: int | None = None


def plan_type1(server: Server, wanted: Wanted) -> Plan:
    """Return what makes ``server`` a Type 1 host; no steps when it is one already.

    Raises HostError and Unsupported for a server that cannot be one or whose fall-back could not be
    promised, InvalidInput for a Dom0 that does not fit.
    """
    _check(server)
    memory, cpus = _dom0(server, wanted)
    texts = {DROP_IN: _drop_in(server, memory, cpus), ENTRY: _file("45_hanok_xen")}
    texts[UNIT] = _file("hanok-xen-healthy.service")
    files = tuple(
        FileChange(path, server.files[path], text, 0o755 if path == ENTRY else 0o644)
        for path, text in texts.items()
        if server.files[path] != text
    )
    packages = tuple(name for name in packages_for(server) if name not in server.packages)
    if not files and not packages and has_entry(server.files[GRUB_CFG]):
        # After a start of Xen that failed, GRUB stays with Linux until it is asked to try again.
        again = (_FORGET,) if _has_failed(server) else ()
        return Plan(again, _reboot_into_xen(server, memory, cpus))
    commands = [*_install(packages), *_switch_on(server)]
    return Plan((*files, *commands), _reboot_into_xen(server, memory, cpus))


def _has_failed(server: Server) -> bool:
    return not server.on_xen and _TRIED in (server.files[GRUBENV] or b"").splitlines()


def packages_for(server: Server) -> tuple[str, ...]:
    """Return Debian's packages of Xen, of its device model, and of what loads kernels fast."""
    model = "qemu-system-x86" if server.version == "11" else "qemu-system-xen"
    return ("xen-system-amd64", model, "isolinux", "syslinux-common")


def has_entry(grub_cfg: bytes | None) -> bool:
    """Whether GRUB's configuration has our entry and starts it."""
    text = grub_cfg or b""
    return b"'hanok-xen'" in text and b'set default="hanok-xen"' in text


def plan_type2(server: Server, saved: dict[str, FileChange], added: tuple[str, ...]) -> Plan:
    """Return what makes ``server`` what it was: ``saved`` has the files as they were.

    ``added`` are the packages that were installed for Xen. Raises HostError.
    """
    if not server.is_root:
        raise _not_root()
    present = tuple(name for name in added if name in server.packages)
    steps: list[FileChange | Command] = []
    if server.files[UNIT] is not None:
        steps.append(Command(("systemctl", "disable", UNIT.rpartition("/")[2]), "no longer needed"))
    for path in (*OWN_PATHS, SUMS):
        change = saved.get(path)
        old = change.old if change is not None else None
        if server.files[path] != old:
            mode = change.mode if change is not None else 0o644
            steps.append(FileChange(path, server.files[path], old, mode))
    steps.append(Command(("systemctl", "daemon-reload"), "systemd forgets the unit"))
    if present:
        steps.append(Command((*_APT, "purge", *present), "Xen goes as it came"))
    if server.files[GRUBENV] is not None:
        unset = ("grub-editenv", GRUBENV, "unset", VARIABLE)
        steps.append(Command(unset, "nothing of Xen stays in GRUB's environment"))
    steps.append(Command(("update-grub",), "GRUB's entries are made again without Xen"))
    return Plan(tuple(steps), ("The next boot starts Linux, as before the preparation.",))


def _check(server: Server) -> None:
    if not server.is_root:
        raise _not_root()
    if server.system != "debian" or server.version not in _DEBIANS:
        raise Unsupported(
            f"this is {server.system} {server.version}",
            expected=f"Debian {', '.join(_DEBIANS[:-1])} or {_DEBIANS[-1]}",
        )
    if server.architecture != "amd64":
        raise Unsupported(f"this server is {server.architecture}", expected="amd64")
    if server.missing:
        raise HostError(
            f"this server has no {', '.join(server.missing)}",
            hint="Hanok changes servers that boot by GRUB 2 and run systemd",
        )
    if server.files[GRUB_CFG] is None:
        raise HostError(
            f"there is no {GRUB_CFG}: another boot loader starts this server",
            hint="install GRUB and boot by it once (grub-install, update-grub)",
        )
    if server.secure_boot:
        raise Unsupported(
            "Secure Boot is on, and Debian's Xen is not signed",
            hint="switch Secure Boot off in the firmware's setup",
        )
    if server.grubenv_problem is not None:
        raise Unsupported(
            f"GRUB could not come back to Linux by itself here: {server.grubenv_problem}, where it"
            " cannot write",
            expected="/boot/grub on a plain partition with ext4, XFS or FAT",
        )


def _not_root() -> HostError:
    return HostError("only root can change how a server boots", hint="sudo hanok host prepare ...")


def _dom0(server: Server, wanted: Wanted) -> tuple[int, int]:
    """Return Dom0's memory in bytes, in whole MiB, and its vCPUs."""
    most = server.memory - _LEAST_GUESTS
    memory = wanted.memory
    if memory is None:
        # Dom0 holds every device model and disk cache: a tenth, within bounds.
        memory = min(max(server.memory // 10, GIB), 8 * GIB, max(most, _LEAST_DOM0))
    if not _LEAST_DOM0 <= memory <= most:
        raise InvalidInput(
            f"Dom0 cannot have {format_size(memory)} of {format_size(server.memory)}",
            field="dom0_memory",
            expected=f"{format_size(_LEAST_DOM0)} to {format_size(max(most, 0))}",
        )
    cpus = wanted.cpus if wanted.cpus is not None else min(server.cpus, 4)
    if not 1 <= cpus <= server.cpus:
        raise InvalidInput(
            f"Dom0 cannot have {cpus} vCPUs on {server.cpus} CPUs",
            field="dom0_cpus",
            expected=f"1 to {server.cpus}",
        )
    return memory // MIB * MIB, cpus


def _drop_in(server: Server, memory: int, cpus: int) -> bytes:
    size = f"{memory // MIB}M"
    xen = f"dom0_mem={size},max:{size} dom0_max_vcpus={cpus}"
    dom0 = "panic=30"
    if server.serial is not None:
        # Xen takes the serial port; Dom0 writes to it through Xen.
        xen += f" com1={server.serial},8n1 console=com1,vga"
        dom0 += " console=tty0 console=hvc0"
    return f"""\
# Made by 'hanok host prepare --type 1'; '--type 2' removes it.
# Debian's own entry for Xen has no fall-back: it does not become the default.
XEN_OVERRIDE_GRUB_DEFAULT=0
GRUB_CMDLINE_XEN_DEFAULT="$GRUB_CMDLINE_XEN_DEFAULT {xen}"
HANOK_DOM0_CMDLINE="{dom0}"
HANOK_LINUX_DEFAULT="${{GRUB_DEFAULT:-0}}"
export HANOK_DOM0_CMDLINE HANOK_LINUX_DEFAULT
GRUB_DEFAULT=hanok-xen
""".encode()


def _file(name: str) -> bytes:
    return (resources.files("hanok.preparation") / "files" / name).read_bytes()


def _install(packages: tuple[str, ...]) -> list[Command]:
    if not packages:
        return []
    return [Command((*_APT, "install", *packages), "Xen, its tools and its device model")]


def _switch_on(server: Server) -> list[Command]:
    unit = UNIT.rpartition("/")[2]
    reload = ("systemctl", "daemon-reload")
    commands = [
        Command(reload, "systemd learns of the unit", undo=reload),
        Command(
            ("systemctl", "enable", unit),
            "each healthy start of Xen tells GRUB so",
            undo=("systemctl", "disable", unit),
        ),
    ]
    if server.files[GRUBENV] is None:
        create = ("grub-editenv", GRUBENV, "create")
        commands.append(Command(create, "what GRUB remembers", undo=("rm", "-f", GRUBENV)))
    commands.append(_FORGET)
    commands.append(Command(("update-grub",), "GRUB's entries are made again"))
    return commands


def _reboot_into_xen(server: Server, memory: int, cpus: int) -> tuple[str, ...]:
    now = "It runs on Xen now." if server.on_xen else "Nothing changes until this server reboots."
    return (
        now,
        f"The next boot starts Xen; Dom0, with this system, has {format_size(memory)} and "
        f"{cpus} vCPU{'s' if cpus > 1 else ''}.",
        "If Xen cannot be loaded, that same boot starts Linux as now. If it crashes, the boot after"
        " it does. If it hangs, that takes a reset by hand.",
        "'hanok host prepare --type 2' takes everything back.",
    )


def _shown(step: FileChange | Command) -> str:
    if isinstance(step, Command):
        return f"# {step.why}\n$ {' '.join(step.argv)}\n"
    old, new = ((text or b"").decode("utf-8", "replace") for text in (step.old, step.new))
    before = "/dev/null" if step.old is None else step.path
    after = "/dev/null" if step.new is None else step.path
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), before, after
    )
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)
