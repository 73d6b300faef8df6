"""VMs of one shape on hosts of which any one may fail."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.placement.redundant import Resident, Shelter, fill_redundantly, survives

BOTH = (0, 1)


def test_as_many_as_survive_the_failure_of_any_host() -> None:
    hosts = [Shelter((10, 100)), Shelter((10, 100)), Shelter((10, 100))]
    filling = fill_redundantly(hosts, (2, 1), BOTH)
    assert filling.total == 10  # of 15: the VMs of one host fit on the other two
    assert filling.bound == 15
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
