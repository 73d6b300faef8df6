"""How many VMs of one shape hosts take when any one of them may fail: N+1 without spare hosts.

Amounts are tuples by resource, whole numbers in any unit. VMs of a failed host restart on the
others of its group, except those that are bound to one other host (a replicated disk): there.
What counts at a restart are the resources numbered in ``lasting``: CPU may be shared for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

Amounts = tuple[int, ...]
MOST_ORDERS = 24


@dataclass(frozen=True)
class Resident:
    """A VM that is there already; ``partner`` is the number of the host where it would restart."""

    needs: Amounts
    partner: int | None = None


@dataclass(frozen=True)
class Shelter:
    """A host: what is free on it by resource, who is on it, and who may take whose VMs over."""

    free: Amounts
    residents: tuple[Resident, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Filling:
    """How many new VMs each host gets, and the number that no answer exceeds."""

    counts: tuple[int, ...]
    bound: int

    @property
    def total(self) -> int:
        """How many VMs were placed."""
        return sum(self.counts)


def fill_redundantly(hosts: Sequence[Shelter], shape: Amounts, lasting: Sequence[int]) -> Filling:
    """Return how many VMs of ``shape`` go where, as many as were found.

    All get none when a host could not fail even now. Of the bound see ``most_redundant``.
    """
    most = [_fitting(host.free, shape) for host in hosts]
    if not survives(hosts, shape, [0] * len(hosts), lasting):
        return Filling(tuple(0 for _ in hosts), 0)
    bound = most_redundant(hosts, shape, lasting)
    if survives(hosts, shape, most, lasting):
        return Filling(tuple(most), bound)
    best = [0] * len(hosts)
    numbers = range(len(hosts))
    orders = [tuple(numbers), tuple(reversed(numbers))]
    orders += [tuple(order) for order in _some_orders(len(hosts))]
    for counts in (
        _evenly(hosts, shape, most, lasting),
        *(_grown(hosts, shape, most, lasting, o) for o in orders),
    ):
        if sum(counts) > sum(best):
            best = counts
    if sum(best) < bound:
        best = _exchange(hosts, shape, most, lasting, best)
    return Filling(tuple(best), bound)


def most_redundant(hosts: Sequence[Shelter], shape: Amounts, lasting: Sequence[int]) -> int:
    """Return a number of VMs of ``shape`` that no answer exceeds, however VMs are restarted.

    In each group: what the hosts take as long as none fails, and for each host that may fail what
    the others take, less its residents: then all new VMs of the group are on those others.
    """
    groups = {host.group for host in hosts}
    return sum(
        _most_in([n for n, host in enumerate(hosts) if host.group == group], hosts, shape, lasting)
        for group in groups
    )


def _most_in(
    group: list[int], hosts: Sequence[Shelter], shape: Amounts, lasting: Sequence[int]
) -> int:
    most = sum(_most_on(number, hosts, shape, lasting) for number in group)
    for failing in group:
        others = [number for number in group if number != failing]
        residents = [
            resident
            for resident in hosts[failing].residents
            if resident.partner is None or resident.partner in others
        ]
        for r in (r for r in lasting if shape[r] > 0):
            frees = [(number, hosts[number].free[r]) for number in others]
            needs = [(one.partner, one.needs[r]) for one in residents]
            most = min(most, _most_beside(frees, needs, shape[r]))
        if any(shape[r] > 0 for r in lasting):
            most = min(most, sum(_fitting_of(hosts[n].free, shape, lasting) for n in others))
    return max(0, most)


def _most_on(number: int, hosts: Sequence[Shelter], shape: Amounts, lasting: Sequence[int]) -> int:
    """Return what one host takes beside those that may come to restart on it and nowhere else."""
    most = _fitting(hosts[number].free, shape)
    for other in hosts:
        coming = [one.needs for one in other.residents if one.partner == number]
        if coming and any(shape[r] > 0 for r in lasting):
            free = [have - sum(o[r] for o in coming) for r, have in enumerate(hosts[number].free)]
            most = min(most, _fitting_of(free, shape, lasting))
    return most


def _fitting_of(free: Sequence[int], shape: Amounts, lasting: Sequence[int]) -> int:
    return _fitting(tuple(free[r] for r in lasting), tuple(shape[r] for r in lasting))


def _most_beside(
    frees: Sequence[tuple[int, int]], needs: Sequence[tuple[int | None, int]], unit: int
) -> int:
    """Return how many ``unit`` fit beside ``needs`` at most, on hosts that have ``frees``.

    A resident takes the whole units of its size at least, and one more where what it leaves of a
    unit is not enough on any host: that is counted for one resident, two may share it.
    """
    volume = sum(free for _, free in frees) - sum(need for _, need in needs)
    whole = sum(free // unit for _, free in frees) - sum(need // unit for _, need in needs)
    odd = max(
        (
            min(
                (
                    free // unit - (free - need) // unit
                    for number, free in frees
                    if free >= need and partner in (None, number)
                ),
                default=0,
            )
            - need // unit
            for partner, need in needs
        ),
        default=0,
    )
    return min(volume // unit, whole - max(0, odd))


def _some_orders(count: int) -> list[tuple[int, ...]]:
    if count <= 4:
        return list(permutations(range(count)))[:MOST_ORDERS]
    return [tuple((start + n) % count for n in range(count)) for start in range(count)]


def _fitting(free: Amounts, shape: Amounts) -> int:
    fitting = [have // need for have, need in zip(free, shape, strict=True) if need > 0]
    return max(0, min(fitting, default=0))


def _evenly(
    hosts: Sequence[Shelter], shape: Amounts, most: list[int], lasting: Sequence[int]
) -> list[int]:
    """Return counts grown one VM at a time, each onto the host that has fewest."""
    counts, open_hosts = [0] * len(hosts), set(range(len(hosts)))
    while open_hosts:
        host = min(open_hosts, key=lambda one: (counts[one], one))
        counts[host] += 1
        if counts[host] > most[host] or not survives(hosts, shape, counts, lasting):
            counts[host] -= 1
            open_hosts.remove(host)
    return counts


def _grown(
    hosts: Sequence[Shelter],
    shape: Amounts,
    most: list[int],
    lasting: Sequence[int],
    order: tuple[int, ...],
) -> list[int]:
    """Return counts grown host by host, each as far as it goes (more is never safer)."""
    counts = [0] * len(hosts)
    for host in order:
        low, high = 0, most[host]
        while low < high:
            counts[host] = (low + high + 1) // 2
            if survives(hosts, shape, counts, lasting):
                low = counts[host]
            else:
                high = counts[host] - 1
        counts[host] = low
    return counts


def _exchange(
    hosts: Sequence[Shelter],
    shape: Amounts,
    most: list[int],
    lasting: Sequence[int],
    counts: list[int],
) -> list[int]:
    """Return counts to which no taking of one VM away and adding two is left."""
    counts, grew = list(counts), True
    while grew:
        grew = False
        for away in [None, *range(len(hosts))]:
            trial = list(counts)
            if away is not None:
                trial[away] -= 1
            if min(trial) < 0:
                continue
            grown = _topped_up(hosts, shape, most, lasting, trial)
            if sum(grown) > sum(counts):
                counts, grew = grown, True
    return counts


def _topped_up(
    hosts: Sequence[Shelter],
    shape: Amounts,
    most: list[int],
    lasting: Sequence[int],
    counts: list[int],
) -> list[int]:
    for host in range(len(hosts)):
        while counts[host] < most[host]:
            counts[host] += 1
            if not survives(hosts, shape, counts, lasting):
                counts[host] -= 1
                break
    return counts


def survives(
    hosts: Sequence[Shelter], shape: Amounts, counts: Sequence[int], lasting: Sequence[int]
) -> bool:
    """Return whether all VMs of any one host find room on the others, new ones included."""
    return all(_can_fail(hosts, shape, counts, lasting, failing) for failing in range(len(hosts)))


def _can_fail(
    hosts: Sequence[Shelter],
    shape: Amounts,
    counts: Sequence[int],
    lasting: Sequence[int],
    failing: int,
) -> bool:
    failed = hosts[failing]
    left = {
        number: [host.free[r] - shape[r] * counts[number] for r in lasting]
        for number, host in enumerate(hosts)
        if number != failing
    }
    near = [number for number in left if hosts[number].group == failed.group]
    loose = [tuple(shape[r] for r in lasting)] * counts[failing]
    for resident in failed.residents:
        needs = tuple(resident.needs[r] for r in lasting)
        if resident.partner is None:
            loose.append(needs)
        elif not _restart(left, resident.partner, needs):
            return False
    return all(_restart(left, _tightest(left, near, needs), needs) for needs in sorted(loose)[::-1])


def _tightest(left: dict[int, list[int]], near: list[int], needs: Amounts) -> int:
    """Return the host of ``near`` that has least left of those with room, -1 when none has."""
    fits = [
        number
        for number in near
        if all(have >= need for have, need in zip(left[number], needs, strict=True))
    ]
    return min(fits, key=lambda number: (left[number], number), default=-1)


def _restart(left: dict[int, list[int]], host: int, needs: Amounts) -> bool:
    if host not in left:
        return False
    left[host] = [have - need for have, need in zip(left[host], needs, strict=True)]
    return min(left[host]) >= 0
