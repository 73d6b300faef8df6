"""Admission and fit are two views of one sum; neither ever gives away what is not there.

Most properties hold for both policies of memory, so they are drawn for both.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import InvalidInput, NotAdmitted
from hanok.model.host import CapacityPolicy, Demand, HostResources, MemoryPolicy
from hanok.placement.admission import admit, admit_all, fit
from hanok.placement.capacity import (
    MEMORY,
    REAL_MEMORY,
    capacity,
    clone_cost,
    counted,
    left,
    needs,
    rooms,
    usage,
)
from hanok.units import GIB, MIB, parse_size

HOST = HostResources(cpus=2, memory=8 * GIB, disk=100 * GIB, disk_free=50 * GIB)
POLICY = CapacityPolicy(cpu_ratio=4, reserve_memory=2 * GIB, reserve_disk=10 * GIB)
SHARED_HOST = HOST.model_copy(update={"cpus": 64, "available": 3 * GIB, "disk_free": 500 * GIB})
SHARED = POLICY.model_copy(update={"memory_policy": MemoryPolicy.SHARED, "memory_factor": 2.0})

hosts = st.builds(
    HostResources,
    cpus=st.integers(1, 64),
    memory=st.integers(0, 64 * GIB),
    disk=st.just(1024 * GIB),
    disk_free=st.integers(0, 256 * GIB),
    available=st.integers(0, 64 * GIB),
).map(lambda host: host.model_copy(update={"available": min(host.available, host.memory)}))
policies = st.builds(
    CapacityPolicy,
    cpu_ratio=st.floats(1, 64),
    reserve_memory=st.integers(0, 8 * GIB).map(lambda size: max(1, size)),
    reserve_disk=st.integers(1, 8 * GIB),
    memory_policy=st.sampled_from(MemoryPolicy),
    memory_factor=st.floats(1, 64),
    shared_reserve=st.integers(1, 8 * GIB),
)
demands = st.builds(
    Demand,
    cpus=st.integers(1, 16),
    memory=st.integers(64 * MIB, 16 * GIB),
    overhead=st.integers(0, GIB),
    disk=st.integers(0, 64 * GIB),
    cost_now=st.none() | st.integers(0, 16 * GIB),
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
    assert [room.resource for room in before] == list(counted(policy))
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
        for resource in counted(policy):
            assert free.of(resource) >= 0 or needs(demand).of(resource) == 0


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
    return all(free.of(name) >= 0 for name in counted(policy) if needs(shape).of(name) > 0)


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
        update={
            "memory": host.memory + more,
            "available": host.available + more,
            "disk_free": host.disk_free + more,
        }
    )
    larger_shape = shape.model_copy(update={"memory": shape.memory + more})
    count = fit(host, policy, now, shape).count
    assert fit(larger_host, policy, now, shape).count >= count
    assert fit(host, policy, now, larger_shape).count <= count


# A lot at once


@given(hosts, policies, others, st.lists(demands, max_size=6))
def test_a_lot_is_admitted_as_its_vms_would_be_one_by_one(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], lot: list[Demand]
) -> None:
    running, refused = list(now), None
    for demand in lot:
        refused = _refused_resource(host, policy, running, demand)
        if refused is not None:
            break
        running.append(demand)
    if refused is None:
        admit_all(host, policy, now, lot)
        return
    with pytest.raises(NotAdmitted) as caught:
        admit_all(host, policy, now, lot)
    assert caught.value.field == refused
    fitting = len(running) - len(now)
    if len(lot) > 1:
        said = f"{len(lot)} VMs do not fit, {fitting or 'none'} of them would: "
        assert caught.value.message.startswith(said)
    if fitting:
        assert caught.value.expected == f"at most {fitting}"
        admit_all(host, policy, now, lot[:fitting])


def test_refusal_of_a_lot() -> None:
    with pytest.raises(NotAdmitted) as caught:
        admit_all(HOST, POLICY, [_vm("1G")], [_vm("1G")] * 100)
    assert caught.value.message == (
        "100 VMs do not fit, 4 of them would: 600 MiB of memory is missing: "
        "1.1 GiB is asked (1 GiB RAM + 100 MiB overhead), 524 MiB is free"
    )
    assert caught.value.expected == "at most 4"


# The policies of memory


@given(hosts, policies, others, demands)
def test_guaranteed_counts_all_memory_and_nothing_that_was_measured(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], wanted: Demand
) -> None:
    guaranteed = policy.model_copy(update={"memory_policy": MemoryPolicy.GUARANTEED})
    sold = sum(demand.memory + demand.overhead for demand in [*now, wanted])
    fits = sold <= max(0, host.memory - policy.reserve_memory)
    assert (_refused_resource(host, guaranteed, now, wanted) != MEMORY) == fits
    blind = host.model_copy(update={"available": 0})
    plain = [demand.model_copy(update={"cost_now": None}) for demand in [*now, wanted]]
    assert _refused_resource(blind, guaranteed, plain[:-1], plain[-1]) == _refused_resource(
        host, guaranteed, now, wanted
    )


@given(hosts, policies, others, demands)
def test_shared_admits_within_both_limits(
    host: HostResources, policy: CapacityPolicy, now: list[Demand], wanted: Demand
) -> None:
    shared = policy.model_copy(update={"memory_policy": MemoryPolicy.SHARED})
    if _refused_resource(host, shared, now, wanted) is not None:
        return
    lot = [*now, wanted]
    sold = sum(demand.memory + demand.overhead for demand in lot)
    assert sold <= policy.memory_factor * max(0, host.memory - policy.reserve_memory)
    cost = needs(wanted).real
    coming = sum(needs(demand).real for demand in now)
    assert cost == 0 or host.available - coming - cost >= policy.shared_reserve


def _clone(memory: str = "256M", *, cost: str = "50M") -> Demand:
    return _vm(memory).model_copy(update={"cost_now": parse_size(cost)})


def test_shared_sells_more_than_there_is() -> None:
    have = capacity(SHARED_HOST, SHARED)
    assert (have.memory, have.real) == (12 * GIB, 7 * GIB)
    started = _vm("1G").model_copy(update={"cost_now": 0})
    found = fit(SHARED_HOST, SHARED, [started] * 7, _clone())
    # 12 GiB - 7 * 1124 MiB at 356 MiB each, and 2 GiB at 50 MiB each
    assert found.by_resource == {"memory": 12, "real-memory": 40, "cpus": 249, "disk": 483}
    assert (found.count, found.limit) == (12, MEMORY)
    assert (found.policy, found.cost_now, found.cost_most) == ("shared", 50 * MIB, 356 * MIB)
    rows = {room.resource: room for room in found.rooms}
    assert rows[REAL_MEMORY].used == 5 * GIB
    assert rows[REAL_MEMORY].free == 2 * GIB


def test_shared_counts_those_that_have_not_started_yet() -> None:
    def real(now: list[Demand]) -> int:
        return fit(SHARED_HOST, SHARED, now, _clone()).by_resource[REAL_MEMORY]

    assert real([]) == 40
    assert real([_clone()] * 30) == 10
    assert real([_vm("1G")]) == 18


def test_shared_refuses_what_would_be_sold_too_often() -> None:
    started = _vm("1G").model_copy(update={"cost_now": 0})
    with pytest.raises(NotAdmitted) as caught:
        admit(SHARED_HOST, SHARED, [started] * 10, _clone("1G"))
    assert caught.value.field == MEMORY
    assert caught.value.message == (
        "76 MiB of memory is missing: 1.1 GiB is asked (1 GiB RAM + 100 MiB overhead), "
        "1 GiB is free to sell at 2 times what there is; no further clone of this template fits"
    )
    assert "HANOK_MEMORY_FACTOR" in str(caught.value.hint)


def test_shared_refuses_what_would_not_really_be_there() -> None:
    with pytest.raises(NotAdmitted) as caught:
        admit(SHARED_HOST, SHARED, [_clone(cost="2G")], _clone())
    assert caught.value.field == REAL_MEMORY
    assert caught.value.message == (
        "50 MiB of real memory is missing: 50 MiB is asked (what one more clone takes now), "
        "0 B is free beside the 1 GiB that stay free; no further clone of this template fits"
    )
    assert "HANOK_SHARED_RESERVE" in str(caught.value.hint)
    with pytest.raises(NotAdmitted) as caught:
        admit(SHARED_HOST, SHARED, [_clone(cost="1G")], _vm("1G"))
    assert caught.value.message == (
        "100 MiB of real memory is missing: 1.1 GiB is asked (1 GiB RAM + 100 MiB overhead), "
        "1 GiB is free beside the 1 GiB that stay free; a VM of up to 924 MiB fits"
    )
    admit(SHARED_HOST, SHARED, [_clone(cost="1G")], _vm("924M"))
    short = SHARED_HOST.model_copy(update={"available": GIB // 2})
    with pytest.raises(NotAdmitted, match="1 GiB that stay free, 512 MiB of which are used alr"):
        admit(short, SHARED, [], _clone())


@given(demands, st.integers(0, 64 * GIB), st.lists(st.integers(0, 64 * GIB)))
def test_a_clone_never_costs_more_than_all_its_memory(
    whole: Demand, memory_used: int, measured: list[int]
) -> None:
    cost = clone_cost(whole, memory_used, measured)
    assert 0 <= cost <= whole.memory + whole.overhead
    if measured:
        most = whole.memory + whole.overhead
        assert min(most, *measured) <= cost <= max(measured)


def test_one_busy_clone_says_little_of_a_new_one() -> None:
    whole = _vm("256M")
    assert clone_cost(whole, 60 * MIB, []) == 65 * MIB
    assert clone_cost(whole, 60 * MIB, [45 * MIB, 50 * MIB, 300 * MIB]) == 50 * MIB


def test_the_administrator_may_allow_hundreds_of_vms_a_cpu() -> None:
    assert capacity(HOST, CapacityPolicy(cpu_ratio=1024)).cpus == 2048
