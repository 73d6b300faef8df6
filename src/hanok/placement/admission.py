"""Admission: whether one more VM has room, why not, and how many of a shape would fit."""

from __future__ import annotations

from collections.abc import Iterable

from hanok.errors import InvalidInput, NotAdmitted
from hanok.model.host import CapacityPolicy, Demand, Fit, HostResources
from hanok.placement.capacity import CPUS, MEMORY, RESOURCES, Amounts, left, needs, rooms, usage
from hanok.units import GIB, MIB, format_size

_HINTS = {
    MEMORY: "stop or delete a VM, or ask for less memory; 'hanok host show' sums up what is used",
    CPUS: "stop or delete a VM, or ask for fewer vCPUs; 'hanok host show' sums up what is used",
    "disk": "free some of the host's disk, delete a VM or an image, or ask for a smaller disk",
}


def admit(
    resources: HostResources,
    policy: CapacityPolicy,
    demands_now: Iterable[Demand],
    wanted: Demand,
) -> None:
    """Return when ``wanted`` fits beside ``demands_now``.

    Raises NotAdmitted, its field the resource that lacks, with how much is missing and what would
    fit; where several lack, the first of memory, cpus and disk.
    """
    free = left(resources, policy, usage(demands_now))
    asked = needs(wanted)
    for resource in RESOURCES:
        missing = asked.of(resource) - free.of(resource)
        if asked.of(resource) > 0 and missing > 0:
            raise NotAdmitted(
                _refusal(resource, missing, free.of(resource), wanted),
                field=resource,
                expected=_what_fits(resource, free, wanted),
                hint=_HINTS[resource],
            )


def fit(
    resources: HostResources,
    policy: CapacityPolicy,
    demands_now: Iterable[Demand],
    shape: Demand,
) -> Fit:
    """Return how many more VMs of ``shape`` fit, and what the next one would lack.

    A resource of which ``shape`` takes nothing is not counted. Raises InvalidInput when it takes
    nothing at all.
    """
    used = usage(demands_now)
    free, asked = left(resources, policy, used), needs(shape)
    counts = {
        name: max(0, free.of(name) // asked.of(name)) for name in RESOURCES if asked.of(name) > 0
    }
    if not counts:
        raise InvalidInput(
            "a VM that takes nothing fits without end", field="cpus", expected="at least 1 vCPU"
        )
    count = min(counts.values())
    limit = next(name for name, fitting in counts.items() if fitting == count)
    return Fit(
        count=count,
        limit=limit,
        missing=(count + 1) * asked.of(limit) - free.of(limit),
        by_resource=counts,
        rooms=rooms(resources, policy, used),
    )


def _refusal(resource: str, missing: int, free: int, wanted: Demand) -> str:
    over = f", {_amount(resource, -free)} too much is given away already" if free < 0 else ""
    return (
        f"{_amount(resource, missing)}{_of(resource)} {_verb(resource, missing)} missing: "
        f"{_asked(resource, wanted)}, {_amount(resource, max(0, free))} "
        f"{_verb(resource, max(0, free))} free{over}; {_what_fits_text(resource, free, wanted)}"
    )


def _asked(resource: str, wanted: Demand) -> str:
    asked = needs(wanted).of(resource)
    text = f"{_amount(resource, asked)} {_verb(resource, asked)} asked"
    if resource == MEMORY:
        ram, overhead = format_size(wanted.memory), format_size(wanted.overhead)
        text += f" ({ram} RAM + {overhead} overhead)"
    return text


def _largest(resource: str, free: int, wanted: Demand) -> int:
    """The largest value that fits of what the user asks for: RAM without overhead, vCPUs, disk."""
    return free - wanted.overhead if resource == MEMORY else free


def _what_fits_text(resource: str, free: int, wanted: Demand) -> str:
    largest = _largest(resource, free, wanted)
    if largest < _smallest(resource):
        return "no further VM fits"
    what = {MEMORY: "a VM of up to {}", CPUS: "a VM with up to {}", "disk": "a disk of up to {}"}
    return what[resource].format(_round_down(resource, largest)) + " fits"


def _what_fits(resource: str, free: Amounts, wanted: Demand) -> str | None:
    largest = _largest(resource, free.of(resource), wanted)
    if largest < _smallest(resource):
        return None
    return f"at most {_round_down(resource, largest)}"


def _smallest(resource: str) -> int:
    """The least that a VM can be asked for: VmSpec takes 64 MiB of memory and of disk."""
    return 1 if resource == CPUS else 64 * MIB


def _round_down(resource: str, amount: int) -> str:
    """Text that a user can ask for: rounding up would name a size that does not fit."""
    if resource == CPUS:
        return _amount(resource, amount)
    return f"{amount // GIB} GiB" if amount % GIB == 0 else f"{amount // MIB} MiB"


def _amount(resource: str, amount: int) -> str:
    if resource != CPUS:
        return format_size(amount)
    return f"{amount} vCPU" if amount == 1 else f"{amount} vCPUs"


def _of(resource: str) -> str:
    return "" if resource == CPUS else f" of {resource}"


def _verb(resource: str, amount: int) -> str:
    return "are" if resource == CPUS and amount != 1 else "is"
