"""Admission and fit are two views of one sum; neither ever gives away what is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import InvalidInput, NotAdmitted
from hanok.model.host import CapacityPolicy, Demand, HostResources
from hanok.placement.admission import admit, fit
from hanok.placement.capacity import RESOURCES, capacity, left, needs, rooms, usage
from hanok.units import GIB, MIB, parse_size

HOST = HostResources(cpus=2, memory=8 * GIB, disk=100 * GIB, disk_free=50 * GIB)
POLICY = CapacityPolicy(cpu_ratio=4, reserve_memory=2 * GIB, reserve_disk=10 * GIB)

hosts = st.builds(
    HostResources,
    cpus=st.integers(1, 64),
    memory=st.integers(0, 64 * GIB),
    disk=st.just(1024 * GIB),
    disk_free=st.integers(0, 256 * GIB),
)
policies = st.builds(
    CapacityPolicy,
    cpu_ratio=st.floats(1, 64),
    reserve_memory=st.integers(0, 8 * GIB).map(lambda size: max(1, size)),
    reserve_disk=st.integers(1, 8 * GIB),
)
demands = st.builds(
    Demand,
    cpus=st.integers(1, 16),
    memory=st.integers(64 * MIB, 16 * GIB),
    overhead=st.integers(0, GIB),
    disk=st.integers(0, 64 * GIB),
)
others = st.lists(demands, max_size=6)


def _vm(memory: str, *, cpus: int = 1, overhead: str = "100M", disk: str = "1G") -> Demand:
    return Demand(
        cpus=cpus,
        memory=parse_size(memory),
        overhead=parse_size(overhead),
        disk=parse_size(disk),
    )


def test_what_may_be_given_away() -> None:
    have = capacity(HOST, POLICY)
    assert (have.memory, have.cpus, have.disk) == (6 * GIB, 8, 40 * GIB)


def test_cpu_ratio_is_not_lost_to_rounding() -> None:
    host = HOST.model_copy(update={"cpus": 100})
    assert capacity(host, POLICY.model_copy(update={"cpu_ratio": 1.15})).cpus == 115


def test_refusal_says_what_is_missing_and_what_would_fit() -> None:
    with pytest.raises(NotAdmitted) as caught:
        admit(HOST, POLICY, [_vm("4G")], _vm("3G"))
    assert caught.value.message == (
        "1.2 GiB of memory is missing: 3.1 GiB is asked (3 GiB RAM + 100 MiB overhead), "
        "1.9 GiB is free; a VM of up to 1848 MiB fits"
    )
    assert caught.value.field == "memory"
    assert caught.value.expected == "at most 1848 MiB"
    admit(HOST, POLICY, [_vm("4G")], _vm("1848M"))
    with pytest.raises(NotAdmitted):
        admit(HOST, POLICY, [_vm("4G")], _vm("1849M"))


def test_refusal_for_cpus_and_disk() -> None:
    with pytest.raises(NotAdmitted) as caught:
        admit(HOST, POLICY, [_vm("1G", cpus=6)], _vm("1G", cpus=3))
    assert caught.value.message == (
        "1 vCPU is missing: 3 vCPUs are asked, 2 vCPUs are free; a VM with up to 2 vCPUs fits"
    )
    with pytest.raises(NotAdmitted) as caught:
        admit(HOST, POLICY, [], _vm("1G", disk="41G"))
    assert caught.value.message == (
        "1 GiB of disk is missing: 41 GiB is asked, 40 GiB is free; a disk of up to 40 GiB fits"
    )


def test_refusal_when_nothing_fits() -> None:
    with pytest.raises(NotAdmitted) as caught:
        admit(HOST, POLICY, [_vm("6G")], _vm("1G"))
    assert "100 MiB too much is given away already; no further VM fits" in caught.value.message
    assert caught.value.expected is None


def test_fit_names_the_limit() -> None:
    found = fit(HOST, POLICY, [], _vm("1G", disk="20G"))
    assert (found.count, found.limit, found.missing) == (2, "disk", 20 * GIB)
    assert found.by_resource == {"memory": 5, "cpus": 8, "disk": 2}


def test_fit_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput):
        fit(HOST, POLICY, [], Demand(cpus=0, memory=0, overhead=0, disk=0))


@given(hosts, policies, others, demands)
def test_rooms_are_never_negative_and_add_up(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], more: Demand
) -> None:
    before, after = rooms(host, policy, usage(now)), rooms(host, policy, usage([*now, more]))
    assert [room.resource for room in before] == list(RESOURCES)
    for old, new in zip(before, after, strict=True):
        assert old.free >= new.free >= 0
        assert old.capacity == new.capacity >= 0
        assert new.used - old.used == needs(more).of(old.resource)
        assert old.free == max(0, old.capacity - old.used)


@given(hosts, policies, others, demands)
def test_admitted_vms_never_exceed_capacity(
    host: HostResources, policy: CapacityPolicy, wanted: list[Demand], last: Demand
) -> None:
    running: list[Demand] = []
    for demand in [*wanted, last]:
        free = left(host, policy, usage(running))
        refused = _refused_resource(host, policy, running, demand)
        if refused is not None:
            assert needs(demand).of(refused) > free.of(refused)
            continue
        running.append(demand)
        free = left(host, policy, usage(running))
        assert min(free.memory, free.cpus) >= 0
        assert free.disk >= 0 or demand.disk == 0


def _refused_resource(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], wanted: Demand
) -> str | None:
    try:
        admit(host, policy, now, wanted)
    except NotAdmitted as refusal:
        return refusal.field
    return None


@given(hosts, policies, others, demands)
def test_fit_counts_what_admission_admits(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], shape: Demand
) -> None:
    found = fit(host, policy, now, shape)
    assert 0 <= found.count == min(found.by_resource.values())
    running = list(now)
    for _ in range(min(found.count, 40)):
        admit(host, policy, running, shape)
        running.append(shape)
    if found.count <= 40:
        with pytest.raises(NotAdmitted) as caught:
            admit(host, policy, running, shape)
        assert caught.value.field == found.limit
        free = left(host, policy, usage(running)).of(found.limit)
        assert found.missing == needs(shape).of(found.limit) - free > 0
    else:  # too many to admit one by one: what they take in sum is what counts
        assert _fits_in_sum(host, policy, now, shape, found.count)
        assert not _fits_in_sum(host, policy, now, shape, found.count + 1)


def _fits_in_sum(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], shape: Demand, count: int
) -> bool:
    free = left(host, policy, usage([*now, *[shape] * count]))
    return all(free.of(name) >= 0 for name in RESOURCES if needs(shape).of(name) > 0)


@given(hosts, policies, others, demands, demands)
def test_more_vms_never_make_more_room(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], other: Demand, shape: Demand
) -> None:
    assert fit(host, policy, [*now, other], shape).count <= fit(host, policy, now, shape).count


@given(hosts, policies, others, demands, st.integers(0, 16 * GIB))
def test_a_larger_host_never_fits_fewer_and_a_larger_shape_never_more(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], shape: Demand, more: int
) -> None:
    larger_host = host.model_copy(
        update={"memory": host.memory + more, "disk_free": host.disk_free + more}
    )
    larger_shape = shape.model_copy(update={"memory": shape.memory + more})
    count = fit(host, policy, now, shape).count
    assert fit(larger_host, policy, now, shape).count >= count
    assert fit(host, policy, now, larger_shape).count <= count
