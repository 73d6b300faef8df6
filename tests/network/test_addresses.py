"""Subnets, addresses and MACs: pure choices."""

from __future__ import annotations

import ipaddress
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import Conflict
from hanok.network.base import POOL, free_address, free_addresses, free_subnet, make_mac

_SUBNETS = st.builds(
    lambda value, prefix: str(ipaddress.IPv4Network((value, prefix), strict=False)),
    st.integers(int(POOL[0]) - 70000, int(POOL[-1]) + 70000),
    st.integers(17, 30),
)


@given(st.lists(_SUBNETS, max_size=60))
def test_a_free_subnet_overlaps_nothing(taken: list[str]) -> None:
    try:
        found = ipaddress.IPv4Network(free_subnet(taken))
    except Conflict:
        candidates = POOL.subnets(new_prefix=24)
        used = [ipaddress.IPv4Network(text) for text in taken]
        assert all(any(c.overlaps(network) for network in used) for c in candidates)
        return
    assert found.prefixlen in (22, 24)
    if found.prefixlen == 24:
        used = [ipaddress.IPv4Network(text) for text in taken]
        larger = POOL.subnets(new_prefix=22)
        assert all(any(c.overlaps(network) for network in used) for c in larger)
    assert found.subnet_of(POOL)
    assert not any(found.overlaps(ipaddress.IPv4Network(text)) for text in taken)


def test_subnets_are_given_in_order_and_freed_ones_again() -> None:
    assert free_subnet([]) == "10.87.0.0/22"
    assert free_subnet(["0.0.0.0/0", "10.87.0.0/22", "10.87.8.0/22"]) == "10.87.4.0/22"


def test_networks_of_earlier_versions_keep_their_smaller_subnets() -> None:
    assert free_subnet(["10.87.0.0/24", "10.87.1.0/24", "10.87.4.0/24"]) == "10.87.8.0/22"


def test_without_room_for_a_large_subnet_there_is_a_small_one() -> None:
    used = [f"10.87.{number}.0/24" for number in range(0, 256, 4)]
    assert free_subnet(used) == "10.87.1.0/24"


def test_no_free_subnet_is_a_conflict_that_says_what_to_do() -> None:
    with pytest.raises(Conflict) as caught:
        free_subnet(["10.0.0.0/8"])
    assert caught.value.field == "subnet"
    assert caught.value.hint


@given(st.uuids(), st.integers(0, 7))
def test_macs_are_stable_local_unicast(identity: uuid.UUID, index: int) -> None:
    mac = make_mac(str(identity), index)
    assert mac == make_mac(str(identity), index)
    assert mac.startswith("52:54:")
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6
    assert mac != make_mac(str(identity), index + 1)


@given(st.sets(st.integers(2, 14)))
def test_a_free_address_is_the_lowest_guest_address(numbers: set[int]) -> None:
    taken = {f"10.87.3.{number}" for number in numbers}
    free = sorted(set(range(2, 15)) - numbers)
    if not free:
        with pytest.raises(Conflict):
            free_address("10.87.3.0/28", taken)
    else:
        assert free_address("10.87.3.0/28", taken) == f"10.87.3.{free[0]}"


def test_a_new_subnet_holds_a_thousand_guests() -> None:
    found = free_addresses(free_subnet([]), [], 1000)
    assert len(set(found)) == 1000
    assert found[:2] == ["10.87.0.2", "10.87.0.3"]
    assert found[255] == "10.87.1.1"


@given(st.sets(st.integers(2, 14)), st.integers(0, 15))
def test_many_free_addresses_are_the_lowest_or_none(numbers: set[int], count: int) -> None:
    taken = [f"10.87.3.{number}" for number in numbers]
    free = [f"10.87.3.{number}" for number in range(2, 15) if number not in numbers]
    if count <= len(free):
        assert free_addresses("10.87.3.0/28", taken, count) == free[:count]
    else:
        with pytest.raises(Conflict) as caught:
            free_addresses("10.87.3.0/28", taken, count)
        assert caught.value.field == "networks"


def test_too_few_addresses_say_how_many_there_are() -> None:
    with pytest.raises(Conflict, match="only 13 of the 14 addresses needed are free"):
        free_addresses("10.87.3.0/28", [], 14)
