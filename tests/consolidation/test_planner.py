"""Plans keep every rule, bounds are below them, more hosts never make them worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.consolidation.checker import check_plan
from hanok.consolidation.diagnose import find_causes
from hanok.consolidation.meter import Meter
from hanok.consolidation.planner import Impossible, plan
from hanok.consolidation.request import (
    Headroom,
    Host,
    HostKind,
    Plan,
    PlanRequest,
    Rules,
    Server,
    Spread,
    bought,
)
from hanok.consolidation.vectors import Bound
from hanok.errors import InvalidInput

BIG = HostKind(
    "big",
    {"cpu": 16.0, "memory": 64.0},
    overhead={"memory": 2.0},
    overhead_vm={"memory": 0.25},
    most_vms=6,
)
SMALL = HostKind("small", {"cpu": 8.0, "memory": 32.0})
BUSY = HostKind("busy", {"cpu": 16.0, "memory": 64.0, "disk_io": 100.0, "network_in": 40.0})


def _effort() -> Meter:
    return Meter(steps=20_000)


@st.composite
def requests(draw: st.DrawFn) -> PlanRequest:
    """Draw a few servers, hosts and rules; many of them are impossible."""
    count = draw(st.integers(1, 9))
    intervals = draw(st.sampled_from([1, 4, 10]))
    series = st.lists(st.floats(0, 9), min_size=intervals, max_size=intervals)
    traffic = draw(st.sampled_from([(), ("disk_io",), ("disk_io", "network_in")]))
    servers = tuple(
        Server(
            f"s{n}",
            {"cpu": np.array(draw(series))}
            | {name: 5 * np.array(draw(series)) for name in traffic if draw(st.booleans())},
            {"memory": draw(st.integers(0, 20))},
        )
        for n in range(count)
    )
    hosts = tuple(
        Host(
            f"h{n}", draw(st.sampled_from([BIG, SMALL, BUSY])), draw(st.sampled_from(["r1", "r2"]))
        )
        for n in range(draw(st.integers(0, 4)))
    )
    names = [server.name for server in servers]
    some = st.frozensets(st.sampled_from(names), min_size=1, max_size=3)
    pinned = draw(st.sets(st.sampled_from(names), max_size=4)) if hosts else set()
    rules = Rules(
        headroom=draw(st.sampled_from([Headroom(), Headroom(90, 0.1), Headroom(50)])),
        failures=draw(st.integers(0, 1)),
        together=tuple(draw(st.lists(some, max_size=1))),
        apart=tuple(draw(st.lists(some, max_size=2))),
        spread=tuple(
            Spread(one, draw(st.integers(1, 2))) for one in draw(st.lists(some, max_size=2))
        ),
        pins={
            name: frozenset(draw(st.sets(st.sampled_from([h.name for h in hosts]), min_size=1)))
            for name in pinned
        },
        memory_factor=draw(st.sampled_from([1.0, 1.5])),
    )
    offer = draw(st.sampled_from([None, BIG, SMALL, BUSY]))
    return PlanRequest(servers, hosts, offer, rules)


@settings(max_examples=150, deadline=None)
@given(requests())
def test_no_plan_breaks_a_rule_and_no_bound_is_above_it(request: PlanRequest) -> None:
    shown: list[Plan] = []
    try:
        answer = plan(request, _effort(), show=shown.append)
    except Impossible:
        return
    for one in shown:
        assert check_plan(request, one) == ()
        assert one.bound.bins <= len(one.hosts)
    assert check_plan(request, answer) == ()
    assert set(answer.placement.values()) == {host.name for host in answer.hosts}


@settings(max_examples=60, deadline=None)
@given(requests(), st.sampled_from([BIG, SMALL]))
def test_with_a_host_more_it_is_never_worse(request: PlanRequest, kind: HostKind) -> None:
    try:
        before = plan(request, _effort())
    except Impossible:
        return
    more = replace(request, hosts=(*request.hosts, Host("more", kind, "r1")))
    try:
        after = plan(more, _effort(), known=[before])
    except Impossible as error:
        pytest.fail(f"a host more made it impossible: {error}")
    assert len(after.hosts) <= len(before.hosts)
    assert check_plan(more, after) == ()


def test_the_same_effort_gives_the_same_plan() -> None:
    random = np.random.default_rng(3)
    servers = tuple(Server(f"s{n}", {"cpu": random.gamma(1.0, 1.0, 24)}) for n in range(60))
    request = PlanRequest(servers, offer=HostKind("k", {"cpu": 12.0}))
    first, second = (plan(request, Meter(steps=200_000), seed=5) for _ in range(2))
    assert first.placement == second.placement
    assert first.steps == second.steps


def test_loads_that_do_not_peak_together_share_a_host() -> None:
    day, night = np.array([4.0, 4.0, 0.5, 0.5]), np.array([0.5, 0.5, 4.0, 4.0])
    servers = tuple(
        Server(f"{name}{n}", {"cpu": load})
        for name, load in (("day", day), ("night", night))
        for n in range(4)
    )
    request = PlanRequest(servers, offer=HostKind("k", {"cpu": 9.0}))
    answer = plan(request, Meter(steps=100_000))
    assert len(answer.hosts) == 2
    assert answer.gap == 0.0


def test_traffic_that_does_not_coincide_shares_a_host_and_limits_it() -> None:
    early, late = np.array([80.0, 10.0]), np.array([10.0, 80.0])
    servers = tuple(
        Server(f"{name}{n}", {"cpu": np.ones(2), "disk_io": load})
        for name, load in (("early", early), ("late", late))
        for n in range(3)
    )
    kind = HostKind("k", {"cpu": 64.0, "disk_io": 100.0})
    request = PlanRequest(servers, offer=kind)
    answer = plan(request, Meter(steps=50_000))
    assert len(answer.hosts) == 3
    assert answer.bound.bins == 3
    assert "disk_io" in answer.bound.reason
    free = replace(request, offer=HostKind("k", {"cpu": 64.0}))
    assert len(plan(free, Meter(steps=50_000)).hosts) == 1
    crowded = _by_hand(request, {s.name: "k-1" for s in servers}, bought(kind, 0))
    assert {fault.rule for fault in check_plan(request, crowded)} == {"headroom"}
    spared = replace(request, rules=Rules(Headroom(100.0, 0.15)))
    assert len(plan(spared, Meter(steps=50_000)).hosts) == 6


SIX = tuple(Server(f"s{n}", size={"memory": m}) for n, m in enumerate((12, 12, 10, 10, 10, 10)))
"""Largest first they need three hosts of 32, and two when they are moved again."""
RACKED = tuple(Host(f"h{n}", SMALL, f"r{n % 2}") for n in range(3))


@pytest.mark.parametrize(
    "rules",
    [
        Rules(pins={server.name: frozenset(["h0", "h1", "h2"]) for server in SIX}),
        Rules(pins={"s0": frozenset(["h2"]), "s2": frozenset(["h0", "h2"])}),
        Rules(spread=(Spread(frozenset(server.name for server in SIX), 3),)),
        Rules(spread=(Spread(frozenset(["s0", "s1"]), 1), Spread(frozenset(["s2", "s3"]), 1))),
        Rules(together=(frozenset(["s2", "s3"]),), pins={"s3": frozenset(["h1", "h2"])}),
    ],
)
def test_servers_under_rules_of_place_are_moved_too(rules: Rules) -> None:
    request = PlanRequest(SIX, RACKED, rules=rules)
    answer = plan(request, Meter(steps=50_000))
    assert check_plan(request, answer) == ()
    assert len(answer.hosts) == 2


def test_where_pins_leave_little_room_it_is_searched_for() -> None:
    pins = {server.name: frozenset(["h0", "h1"]) for server in SIX}
    request = PlanRequest(SIX, RACKED[:2], rules=Rules(pins=pins))
    answer = plan(request, Meter(steps=50_000))
    assert check_plan(request, answer) == ()
    full = replace(request, servers=(*SIX, Server("more", size={"memory": 1.0})))
    with pytest.raises(Impossible, match="all servers need"):
        plan(full, Meter(steps=50_000))
    odd = tuple(Server(f"s{n}", size={"memory": 20.0}) for n in range(3))
    few = {server.name: frozenset(["h0", "h1"]) for server in odd}
    crowded = PlanRequest(odd, RACKED, rules=Rules(pins=few))
    with pytest.raises(Impossible, match="no host was found for"):
        plan(crowded, Meter(steps=50_000))


def test_a_percentile_lets_rare_peaks_pass() -> None:
    calm = np.full(100, 1.0)
    servers = tuple(Server(f"s{n}", {"cpu": calm + 5.0 * (np.arange(100) == n)}) for n in range(4))
    request = PlanRequest(servers, offer=HostKind("k", {"cpu": 7.0}))
    assert len(plan(request, Meter(steps=10_000)).hosts) == 2
    relaxed = replace(request, rules=Rules(headroom=Headroom(95.0)))
    answer = plan(relaxed, Meter(steps=10_000))
    assert len(answer.hosts) == 1
    assert check_plan(relaxed, answer) == ()


def test_spares_take_what_any_host_holds() -> None:
    servers = tuple(Server(f"s{n}", size={"memory": 20.0}) for n in range(4))
    hosts = (Host("a", SMALL), Host("b", BIG), Host("c", BIG))
    request = PlanRequest(servers, hosts, BIG, Rules(failures=1))
    answer = plan(request, Meter(steps=10_000))
    assert [spare.kind for spare in answer.spares] == [BIG]
    assert check_plan(request, answer) == ()


def test_bought_hosts_stand_in_as_many_racks_as_rules_spread_over() -> None:
    servers = tuple(Server(f"s{n}", size={"memory": 10.0}) for n in range(8))
    rule = Spread(frozenset(f"s{n}" for n in range(6)), 2)
    request = PlanRequest(servers, (Host("own", SMALL, "r1"),), SMALL, Rules(spread=(rule,)))
    answer = plan(request, Meter(steps=20_000))
    assert check_plan(request, answer) == ()
    assert [bought(SMALL, n, 3).rack for n in (0, 1, 2, 3, 126)] == [
        *("new-1", "new-2", "new-3"),
        *("new-1", "new-4"),
    ]


def _by_hand(request: PlanRequest, placement: dict[str, str], *hosts: Host) -> Plan:
    return Plan(placement, hosts, (), Bound(0, ""), 0)


def test_the_checker_judges_plans_made_by_hand() -> None:
    h1, h2 = Host("h1", SMALL, "r1"), Host("h2", SMALL, "r1")
    load = {"cpu": np.array([5.0, 1.0])}
    servers = tuple(Server(name, load, {"memory": 10.0}) for name in ("a", "b", "c"))
    request = PlanRequest(servers, (h1, h2))

    def rules_broken(placement: dict[str, str], rules: Rules = Rules()) -> set[str]:  # noqa: B008
        asked = replace(request, rules=rules)
        return {fault.rule for fault in check_plan(asked, _by_hand(asked, placement, h1, h2))}

    both = {"a": "h1", "b": "h1", "c": "h2"}
    assert rules_broken(both) == {"headroom"}
    assert rules_broken(both, Rules(headroom=Headroom(50.0))) == set()
    half = Headroom(50.0)
    assert rules_broken({"a": "h1", "b": "h1"}, Rules(headroom=half)) == {"complete"}
    assert rules_broken({**both, "c": "h9"}, Rules(headroom=half)) == {"complete"}
    assert rules_broken({**both, "x": "h1"}, Rules(headroom=half)) == {"complete"}
    everyone = frozenset("abc")
    for rules, rule in (
        (Rules(half, together=(everyone,)), "together"),
        (Rules(half, apart=(frozenset("ab"),)), "apart"),
        (Rules(half, spread=(Spread(everyone, 2),)), "spread"),
        (Rules(half, pins={"a": frozenset(["h2"])}), "pins"),
        (Rules(half, failures=1), "failures"),
        (Rules(half, memory_factor=0.5), "capacity"),
    ):
        assert rules_broken(both, rules) == {rule}
    twice = _by_hand(request, both, h1, h2, h2)
    assert "hosts" in {fault.rule for fault in check_plan(request, twice)}
    crowded = HostKind("crowded", {}, most_vms=1)
    asked = replace(request, hosts=(Host("h1", crowded), Host("h2", crowded)))
    found = check_plan(asked, _by_hand(asked, both, *asked.hosts))
    assert {fault.rule for fault in found} == {"most_vms"}


def _server(name: str, memory: float) -> Server:
    return Server(name, size={"memory": memory})


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        (PlanRequest((_server("a", 99), _server("b", 1)), offer=SMALL), ["servers.a"]),
        (
            PlanRequest(
                tuple(_server(name, 1) for name in "abcd"),
                offer=SMALL,
                rules=Rules(
                    together=(frozenset("ab"), frozenset("bc"), frozenset("cd")),
                    apart=(frozenset("ac"),),
                ),
            ),
            ["rules.together.0", "rules.together.1", "rules.apart.0"],
        ),
        (
            PlanRequest(
                (_server("a", 20), _server("b", 2), _server("c", 20)),
                offer=SMALL,
                rules=Rules(together=(frozenset("abc"),)),
            ),
            ["servers.a", "servers.c"],
        ),
        (
            PlanRequest(
                tuple(_server(name, 1) for name in "abc"),
                (Host("h1", SMALL), Host("h2", SMALL)),
                rules=Rules(
                    together=(frozenset("abc"),),
                    pins={"a": frozenset(["h1"]), "c": frozenset(["h2"])},
                ),
            ),
            ["rules.pins.a", "rules.pins.c"],
        ),
        (PlanRequest(tuple(_server(name, 20) for name in "ab"), (Host("h", SMALL),)), ["hosts"]),
        (
            PlanRequest((_server("a", 1),), (Host("h", SMALL),), rules=Rules(failures=1)),
            ["hosts", "rules.failures"],
        ),
        (
            PlanRequest(
                tuple(_server(name, 1) for name in "ab"),
                (Host("h", SMALL), Host("i", SMALL)),
                rules=Rules(spread=(Spread(frozenset("ab"), 1),)),
            ),
            ["rules.spread.0", "hosts"],
        ),
        (
            PlanRequest(
                tuple(_server(name, 1) for name in "ab"),
                (Host("h", SMALL),),
                rules=Rules(apart=(frozenset("ab"),)),
            ),
            ["rules.apart.0", "hosts"],
        ),
        (
            PlanRequest((_server("a", 1),), offer=SMALL, rules=Rules(apart=(frozenset("ax"),))),
            ["rules.apart.0"],
        ),
        (PlanRequest((_server("a", 1), _server("a", 1)), offer=SMALL), ["a"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_impossible_requests_get_the_smallest_causes(
    request_: PlanRequest, parts: list[str]
) -> None:
    causes = find_causes(request_)
    assert [part for cause in causes for part in cause.parts] == parts
    with pytest.raises(Impossible, match="no plan is possible"):
        plan(request_, _effort())


def test_series_of_unlike_length_are_refused() -> None:
    servers = (Server("a", {"cpu": np.zeros(3)}), Server("b", {"cpu": np.zeros(4)}))
    with pytest.raises(InvalidInput, match="3, 4 intervals"):
        plan(PlanRequest(servers, offer=SMALL), _effort())


def test_nothing_to_plan_is_a_plan() -> None:
    answer = plan(PlanRequest((), offer=SMALL), _effort())
    assert answer.hosts == ()
    assert answer.gap == 0.0
