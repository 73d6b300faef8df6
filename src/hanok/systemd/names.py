"""Names, properties and commands for systemd, and what it answers: pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.units import GIB

SLICE = "hanok.slice"
_MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
# QEMU's threads beside its vCPUs: one for itself, at most 64 for disks, a few for migration.
_THREADS = 256
_WEIGHT = 100
_MOST_WEIGHT = 10_000


@dataclass(frozen=True)
class Limits:
    """What a scope may take at most: bytes, threads; and its share of CPU time (1 to 10000)."""

    memory: int
    tasks: int
    cpu_weight: int


# A keeper with its dnsmasq and pasta takes about 60 MiB; sockets' buffers are counted too.
NETWORK_LIMITS = Limits(memory=GIB, tasks=512, cpu_weight=500)


def vm_limits(cpus: int, memory: int, overhead: int) -> Limits:
    """Return the limits of a VM; ``memory`` and ``overhead`` (what placement counts) in bytes."""
    return Limits(
        memory=memory + overhead,
        tasks=_THREADS + 2 * cpus,
        cpu_weight=min(_WEIGHT * cpus, _MOST_WEIGHT),
    )


def vm_scope(uuid: str) -> str:
    """Return the name of a VM's scope."""
    return f"hanok-vm-{uuid}.scope"


def network_scope(network: str, home: str) -> str:
    """Return the name of a network's scope; another data directory may have one of its name."""
    return f"hanok-net-{network}-{hashlib.sha256(home.encode()).hexdigest()[:8]}.scope"


def start_scope_argv(
    unit: str,
    pids: Collection[int],
    limits: Limits,
    controllers: Collection[str],
    *,
    daemon: str | None,
    grows: bool = False,
) -> list[str]:
    """Return the command that puts processes into a new scope (StartTransientUnit).

    A limit without its cgroup controller is left out. ``daemon`` is the unit of the daemon: when
    the host shuts down, systemd ends it before the scope, so that it can ask guests to power off.
    ``grows``: others come into it later, which systemd allows for delegated units only.
    """
    properties: list[tuple[str, str, list[str]]] = [
        ("Description", "s", [_description(unit)]),
        ("Slice", "s", [SLICE]),
        ("CollectMode", "s", ["inactive-or-failed"]),
        ("PIDs", "au", [str(len(pids)), *map(str, pids)]),
    ]
    if grows:
        properties.append(("Delegate", "b", ["true"]))
    if daemon is not None:
        properties.append(("Before", "as", ["1", daemon]))
    properties += _limits(limits, controllers)
    words = [word for name, kind, value in properties for word in (name, kind, *value)]
    call = _call("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail")
    return [*call, str(len(properties)), *words, "0"]


def resize_argv(unit: str, limits: Limits, controllers: Collection[str]) -> list[str]:
    """Return the command that gives a scope other limits, until it ends (SetUnitProperties)."""
    properties = _limits(limits, controllers)
    words = [word for name, kind, value in properties for word in (name, kind, *value)]
    call = _call("SetUnitProperties", "sba(sv)", unit, "true")
    return [*call, str(len(properties)), *words]


def _limits(limits: Limits, controllers: Collection[str]) -> list[tuple[str, str, list[str]]]:
    wanted = (
        ("memory", "MemoryMax", limits.memory),
        ("pids", "TasksMax", limits.tasks),
        ("cpu", "CPUWeight", limits.cpu_weight),
    )
    return [
        (name, "t", [str(value)]) for controller, name, value in wanted if controller in controllers
    ]


def attach_argv(unit: str, pids: Collection[int]) -> list[str]:
    """Return the command that puts processes into a scope that there is already."""
    numbers = [str(pid) for pid in pids]
    return _call("AttachProcessesToUnit", "ssau", unit, "", str(len(numbers)), *numbers)


def _call(method: str, *arguments: str) -> list[str]:
    return ["busctl", "--quiet", "--system", "call", *_MANAGER, method, *arguments]


def _description(unit: str) -> str:
    kind, ident = ("VM", "hanok-vm-") if unit.startswith("hanok-vm-") else ("network", "hanok-net-")
    return f"Hanok {kind} {unit.removeprefix(ident).removesuffix('.scope')}"


def unit_in(cgroup: str) -> str | None:
    """Return the unit that the text of a /proc/PID/cgroup names; None when it names none."""
    for line in cgroup.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (hierarchy, controllers) != ("0", "") and controllers != "name=systemd":
            continue
        for part in reversed(path.split("/")):
            if part.endswith((".service", ".scope")):
                return part
    return None


def job_in(jobs: str, unit: str) -> str | None:
    """Return the kind of job (stop, restart ...) of ``unit`` in ``systemctl list-jobs``' text."""
    for line in jobs.splitlines():
        words: Sequence[str] = line.split()
        if len(words) >= 3 and words[1] == unit:
            return words[2]
    return None


def limit_in(folder: Path, name: str) -> int | None:
    """Return a limit of a cgroup's folder; None when there is none.

    Raises FileNotFoundError when the controller or the cgroup is not there.
    """
    text = (folder / name).read_text().strip()
    return int(text) if text.isdecimal() else None
