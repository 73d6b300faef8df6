"""VMs of one shape on hosts of which any one may fail."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.placement.redundant import (
    Resident,
    Shelter,
    fill_redundantly,
    most_redundant,
    survives,
)

BOTH = (0, 1)


def test_as_many_as_survive_the_failure_of_any_host() -> None:
    hosts = [Shelter((10, 100)), Shelter((10, 100)), Shelter((10, 100))]
    filling = fill_redundantly(hosts, (2, 1), BOTH)
    assert filling.total == 10  # of 15: the VMs of one host fit on the other two
    assert filling.bound == 10
    assert survives(hosts, (2, 1), filling.counts, BOTH)


def test_what_does_not_count_at_a_restart_is_no_limit_then() -> None:
    hosts = [Shelter((10, 4)), Shelter((10, 4))]
    assert fill_redundantly(hosts, (1, 1), (0,)).counts == (4, 4)
    assert fill_redundantly(hosts, (1, 1), BOTH).total == 4


def test_replicated_vms_restart_on_their_other_host_only() -> None:
    bound = Resident((4, 0), partner=1)
    hosts = [Shelter((6, 9), (bound,)), Shelter((6, 9)), Shelter((6, 9))]
    filling = fill_redundantly(hosts, (1, 1), (0,))
    assert filling.counts[1] <= 2
    assert filling.total > 0


def test_nothing_is_added_where_a_host_may_not_fail_even_now() -> None:
    hosts = [Shelter((1, 9), (Resident((5, 0)),)), Shelter((4, 9))]
    assert fill_redundantly(hosts, (1, 1), BOTH).counts == (0, 0)


def test_vms_restart_in_their_own_group() -> None:
    hosts = [Shelter((5, 9), group="a"), Shelter((5, 9), group="b")]
    assert fill_redundantly(hosts, (1, 1), BOTH).total == 0


def test_a_shape_larger_than_all_is_not_placed() -> None:
    assert fill_redundantly([Shelter((5, 5))] * 2, (6, 1), BOTH).total == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=3))
def test_small_clusters_are_filled_as_by_trying_all(free: list[tuple[int, int]]) -> None:
    hosts = [Shelter(amounts) for amounts in free]
    most = [min(amounts) for amounts in free]
    best = max(
        sum(counts)
        for counts in product(*(range(count + 1) for count in most))
        if survives(hosts, (1, 1), counts, BOTH)
    )
    filling = fill_redundantly(hosts, (1, 1), BOTH)
    assert filling.total == best
    assert survives(hosts, (1, 1), filling.counts, BOTH)
    assert filling.total <= filling.bound


AMOUNT = st.integers(0, 9)
RESIDENT = st.builds(
    Resident, st.tuples(st.integers(1, 5), st.just(0)), st.sampled_from([None, 0, 1, 2])
)
HOST = st.builds(
    Shelter,
    st.tuples(AMOUNT, AMOUNT),
    st.lists(RESIDENT, max_size=2).map(tuple),
    st.sampled_from(["", "other"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(HOST, min_size=2, max_size=4), st.sampled_from([(1, 1), (2, 1), (3, 0)]))
def test_no_answer_exceeds_the_bound(hosts: list[Shelter], shape: tuple[int, int]) -> None:
    most = [
        min(have // need for have, need in zip(host.free, shape, strict=True) if need)
        for host in hosts
    ]
    bound = most_redundant(hosts, shape, (0,))
    for counts in product(*(range(count + 1) for count in most)):
        if sum(counts) > bound:
            assert not survives(hosts, shape, counts, (0,))


def test_the_bound_is_what_the_others_take_when_one_fails() -> None:
    hosts = [Shelter((10, 99)), Shelter((4, 99)), Shelter((4, 99))]
    assert most_redundant(hosts, (2, 1), (0,)) == 4  # when the large one fails
    assert fill_redundantly(hosts, (2, 1), (0,)).total == 4


def test_the_bound_counts_the_residents_that_restart_too() -> None:
    hosts = [Shelter((10, 99), (Resident((3, 0)),)), Shelter((7, 99))]
    assert most_redundant(hosts, (2, 1), (0,)) == 2  # 7 free there, 3 for the resident
    held = [Shelter((9, 9), (Resident((4, 0), 1),)), Shelter((6, 9)), Shelter((9, 9))]
    assert most_redundant(held, (1, 1), (0,)) == 11  # at most 2 on the second, 9 on the third
