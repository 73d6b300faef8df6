"""Admission: whether more VMs have room, why not, and how many of a shape would fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hanok.errors import InvalidInput, NotAdmitted
from hanok.model.host import CapacityPolicy, Demand, Fit, HostResources, MemoryPolicy
from hanok.placement.capacity import (
    CPUS,
    DISK,
    MEMORY,
    REAL_MEMORY,
    Amounts,
    counted,
    left,
    needs,
    rooms,
    usage,
)
from hanok.units import GIB, MIB, format_size

_HINTS = {
    MEMORY: "stop or delete a VM, or ask for less memory; 'hanok host show' sums up what is used",
    CPUS: "stop or delete a VM, or ask for fewer vCPUs; 'hanok host show' sums up what is used",
    DISK: "free some of the host's disk, delete a VM or an image, or ask for a smaller disk",
}


def admit(
    resources: HostResources,
    policy: CapacityPolicy,
    demands_now: Iterable[Demand],
    wanted: Demand,
) -> None:
    """Return when ``wanted`` fits beside ``demands_now``.

    Raises NotAdmitted, its field the resource that lacks, with how much is missing and what would
    fit; where several lack, the first of those that the policy counts.
    """
    admit_all(resources, policy, demands_now, [wanted])


def admit_all(
    resources: HostResources,
    policy: CapacityPolicy,
    demands_now: Iterable[Demand],
    lot: Sequence[Demand],
) -> None:
    """Return when all of ``lot`` fit together beside ``demands_now``.

    Raises NotAdmitted as ``admit`` does, for the first that does not, saying how many fit.
    """
    free = left(resources, policy, usage(demands_now))
    for index, wanted in enumerate(lot):
        asked = needs(wanted)
        for resource in counted(policy):
            if asked.of(resource) > max(0, free.of(resource)):
                raise _not_admitted(resource, policy, free, wanted, index, len(lot))
        free = free.minus(asked)


def _not_admitted(
    resource: str, policy: CapacityPolicy, free: Amounts, wanted: Demand, index: int, count: int
) -> NotAdmitted:
    message = _refusal(resource, policy, free, wanted)
    if count > 1:
        message = f"{count} VMs do not fit, {index or 'none'} of them would: {message}"
    else:
        message += f"; {_what_fits_text(resource, policy, free, wanted)}"
    expected = f"at most {index}" if index else _what_fits(resource, policy, free, wanted)
    return NotAdmitted(message, field=resource, expected=expected, hint=_hint(resource, policy))


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
        name: max(0, free.of(name) // asked.of(name))
        for name in counted(policy)
        if asked.of(name) > 0
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
        policy=policy.memory_policy,
        cost_now=shape.cost_now,
        cost_most=asked.memory,
    )


def _refusal(resource: str, policy: CapacityPolicy, free: Amounts, wanted: Demand) -> str:
    missing, room = needs(wanted).of(resource) - free.of(resource), free.of(resource)
    return (
        f"{_amount(resource, missing)}{_of(resource)} {_verb(resource, missing)} missing: "
        f"{_asked(resource, wanted)}, {_amount(resource, max(0, room))} "
        f"{_verb(resource, max(0, room))} free{_aside(resource, policy, room)}"
    )


def _asked(resource: str, wanted: Demand) -> str:
    asked = needs(wanted).of(resource)
    text = f"{_amount(resource, asked)} {_verb(resource, asked)} asked"
    if resource == REAL_MEMORY and wanted.cost_now is not None:
        return f"{text} (what one more clone takes now)"
    if resource in (MEMORY, REAL_MEMORY):
        ram, overhead = format_size(wanted.memory), format_size(wanted.overhead)
        text += f" ({ram} RAM + {overhead} overhead)"
    return text


def _aside(resource: str, policy: CapacityPolicy, free: int) -> str:
    """Return what there is to say of what is free."""
    if resource == REAL_MEMORY:
        reserve = f" beside the {format_size(policy.shared_reserve)} that stay free"
        return f"{reserve}, {format_size(-free)} of which are used already" if free < 0 else reserve
    over = f", {_amount(resource, -free)} too much is given away already" if free < 0 else ""
    if resource == MEMORY and policy.memory_policy is MemoryPolicy.SHARED:
        return f" to sell at {policy.memory_factor:g} times what there is{over}"
    return over


def _hint(resource: str, policy: CapacityPolicy) -> str:
    if resource == REAL_MEMORY:
        return (
            "stop or delete a VM, end other programs of this host, or lower HANOK_SHARED_RESERVE;"
            " 'hanok host show' sums up what is used"
        )
    if resource == MEMORY and policy.memory_policy is MemoryPolicy.SHARED:
        return (
            "stop or delete a VM, ask for less memory, or raise HANOK_MEMORY_FACTOR;"
            " 'hanok host show' sums up what is sold"
        )
    return _HINTS[resource]


def _largest(resource: str, policy: CapacityPolicy, free: Amounts, wanted: Demand) -> int:
    """The largest value that fits of what the user asks for: RAM without overhead, vCPUs, disk."""
    if resource not in (MEMORY, REAL_MEMORY):
        return free.of(resource)
    if policy.memory_policy is MemoryPolicy.SHARED:
        return min(free.memory, free.real) - wanted.overhead
    return free.memory - wanted.overhead


def _what_fits_text(resource: str, policy: CapacityPolicy, free: Amounts, wanted: Demand) -> str:
    if wanted.cost_now is not None:  # a clone has the shape of its template
        return "no further clone of this template fits"
    largest = _largest(resource, policy, free, wanted)
    if largest < _smallest(resource):
        return "no further VM fits"
    what = {CPUS: "a VM with up to {}", DISK: "a disk of up to {}"}
    text = what.get(resource, "a VM of up to {}")
    return text.format(_round_down(resource, largest)) + " fits"


def _what_fits(resource: str, policy: CapacityPolicy, free: Amounts, wanted: Demand) -> str | None:
    largest = _largest(resource, policy, free, wanted)
    if wanted.cost_now is not None or largest < _smallest(resource):
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
    return "" if resource == CPUS else f" of {resource.replace('-', ' ')}"


def _verb(resource: str, amount: int) -> str:
    return "are" if resource == CPUS and amount != 1 else "is"
