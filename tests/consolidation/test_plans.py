"""Whole plans: of the best kinds, within the rules, never above their bound, and what if."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanok.consolidation.checker import check_plan
from hanok.consolidation.fleet import Fleet
from hanok.consolidation.handmade import by_hand, check_file
from hanok.consolidation.offers import Choice, Effort, Judge, choose
from hanok.consolidation.outcome import digest_of, make_plan_file
from hanok.consolidation.planner import Impossible
from hanok.consolidation.request import Host, HostKind, Plan, PlanRequest
from hanok.consolidation.whatif import Tried, parse_case, solve, try_case
from hanok.errors import InvalidInput
from hanok.model.fleet import Costs
from hanok.model.plan import HandMade, Inputs, Objective, PlanFile, Search
from hanok.units import MIB
from tests.consolidation.fleets import fleet, hosts_file, usage
from tests.consolidation.test_planner import BIG, SMALL, requests

FEW = Effort(20_000)
MIDDLE = HostKind("middle", {"cpu": 12.0, "memory": 48.0}, price=10.0)


def mixed_fleet(count: int = 12, **rules: object) -> Fleet:
    """Return servers that are busy by day or by night."""
    random = np.random.default_rng(4)
    usages = []
    for number in range(count):
        hours = np.arange(48) % 24
        busy = (hours >= 8) & (hours < 20) if number % 2 else (hours < 8) | (hours >= 20)
        cpu = np.where(busy, 6.0, 0.5) * random.uniform(0.7, 1.1)
        usages.append(usage(f"s{number}", cpu.tolist(), [4e9 + number * 1e8] * 48))
    return fleet(usages, rules=rules)


def plan_file(found: Fleet, choice: Choice) -> PlanFile:
    return make_plan_file(found, choice, Inputs(servers="servers.yaml"), Search(effort=1))


@settings(max_examples=60, deadline=None)
@given(requests(), st.sampled_from(["hosts", "money", "watts"]))
def test_of_several_kinds_no_plan_breaks_a_rule_or_is_below_its_bound(
    request: PlanRequest, objective: Objective
) -> None:
    offers = (BIG, MIDDLE, SMALL) if request.offer else ()
    judge = Judge(request, Costs(), objective)
    shown: list[Plan] = []
    try:
        found = choose(request, offers, judge, FEW, show=shown.append)
    except Impossible:
        return
    assert check_plan(found.request, found.plan) == ()
    least = len(found.plan.hosts)
    for one in (*shown, found.plan):
        assert one.bound.bins <= len(one.hosts)
        assert found.plan.bound.bins <= len(one.hosts)
        assert one.bound.bins <= least or objective != "hosts"
    assert judge.key(found.plan) <= min(judge.key(one) for one in shown)


@settings(max_examples=40, deadline=None)
@given(requests())
def test_with_a_host_more_the_choice_is_never_worse(request: PlanRequest) -> None:
    offers = (MIDDLE, SMALL) if request.offer else ()
    judge = Judge(request, Costs(), "hosts")
    try:
        before = choose(request, offers, judge, FEW)
    except Impossible:
        return
    more = replace(request, hosts=(*request.hosts, Host("more", SMALL, "r1")))
    after = choose(more, offers, Judge(more, Costs(), "hosts"), FEW, known=[before.plan])
    assert len(after.plan.hosts) <= len(before.plan.hosts)
    assert check_plan(after.request, after.plan) == ()


def test_the_same_effort_and_seed_give_the_same_file() -> None:
    found = mixed_fleet()
    first, second = (plan_file(found, solve(found, FEW, "hosts", 3)) for _ in range(2))
    assert first == second


def test_day_and_night_share_hosts() -> None:
    found = mixed_fleet(8)
    choice = solve(found, FEW, "hosts")
    assert len(choice.plan.hosts) == 1
    assert choice.plan.gap == 0.0
    file = plan_file(found, choice)
    assert check_file(found, file) == ()
    host = file.hosts[0]
    assert host.forecast is not None
    assert max(value for value in host.forecast.high if value is not None) <= host.forecast.room
    for vm in file.vms:
        assert "peaks at" in vm.why_here
        assert "used at the 99th percentile" in vm.why_size


def traffic_plan() -> tuple[Fleet, PlanFile]:
    """Return a plan of servers that read from disks by day or by night, on slow disks."""
    hours = np.arange(48) % 24
    usages = []
    for n in range(4):
        busy = (hours < 12) if n % 2 else (hours >= 12)
        reads = np.where(busy, 40.0, 4.0) * MIB
        usages.append(usage(f"s{n}", [0.5] * 48, [1e9] * 48, disk_read=reads.tolist()))
    kind = {"cores": 32, "memory": "128G", "disk_io": "50M", "overhead": {"cores": 0}}
    found = fleet(usages, hosts=hosts_file(kinds={"k": kind}, offers=["k"]))
    return found, plan_file(found, solve(found, FEW, "hosts"))


def test_disk_traffic_limits_hosts_and_is_forecast_and_explained() -> None:
    found, file = traffic_plan()
    assert len(file.used) == 2
    assert check_file(found, file) == ()
    host = file.used[0]
    assert host.shares["disk_io"] == pytest.approx(0.88)
    assert "disk traffic 88% of 50 MiB/s" in host.limit
    day = host.traffic["disk_io"]
    assert day.capacity == 50 * MIB
    assert {value for value in day.high if value} == {44.0 * MIB}
    assert day.risk > 0  # an hour later both are busy at once
    assert "disk traffic of up to 40 MiB/s" in file.vms[0].why_here
    assert any(text.startswith("Traffic is limited on k") for text in file.assumptions)
    assert check_file(
        found, _faulty(file, vms=[{**vm.model_dump(), "host": host.name} for vm in file.vms])
    )
    doubled = try_case(
        parse_case("load=1.2"), found, solve(found, FEW, "hosts").plan, FEW, "hosts", 0
    )
    assert doubled.choice is not None
    assert len(doubled.choice.plan.hosts) == 4
    assert digest_of(found) != digest_of(doubled.fleet)


def test_the_cheapest_kinds_are_bought_and_the_last_host_is_small() -> None:
    cpu = [5.0] * 48
    found = fleet([usage(f"s{n}", cpu, [1e9] * 48) for n in range(8)])
    by_hosts = solve(found, FEW, "hosts").plan
    assert sorted(host.kind.name for host in by_hosts.hosts) == ["large", "small"]
    by_money = solve(found, FEW, "money").plan
    assert {host.kind.name for host in by_money.hosts} == {"small"}


def test_before_and_after_add_up() -> None:
    servers = {
        "a": {"watts": {"idle": 100, "peak": 100}, "rack_units": 2},
        "b": {"watts": {"peak": 200}},
        "c": {"watts": {"idle": 50, "peak": 50}, "stays": True},
    }
    found = fleet([usage(name, [0.0] * 48) for name in servers], servers=servers)
    file = plan_file(found, solve(found, FEW, "money"))
    assert (file.before.hosts, file.before.rack_units) == (3, 4)
    assert file.before.old_idle.watts == pytest.approx(100 + 50 + 0.62 * 200)
    assert file.before.new_idle.watts == pytest.approx(100 + 50 + 0.21 * 200)
    assert (file.after.hosts, file.after.rack_units) == (2, 2)
    assert file.after.purchase == 5_000
    assert any("do not say what they take idle" in text for text in file.assumptions)


def _faulty(file: PlanFile, **changes: object) -> PlanFile:
    return PlanFile.model_validate({**file.model_dump(), **changes})


def test_planted_faults_are_found() -> None:
    found = mixed_fleet(12, failures=1, apart=[["s0", "s1"]])
    file = plan_file(found, solve(found, FEW, "hosts"))
    assert check_file(found, file) == ()
    first, second = (host.name for host in file.used[:2])
    vms = [vm.model_dump() for vm in file.vms]
    place = {vm["name"]: vm["host"] for vm in vms}

    def broken(**changed: object) -> set[str]:
        return {fault.rule for fault in check_file(found, _faulty(file, **changed))}

    crowded = [{**vm, "host": first} for vm in vms]
    assert {"headroom", "apart", "claims"} <= broken(vms=crowded)
    assert "complete" in broken(vms=vms[1:])
    assert "complete" in broken(vms=[*vms, vms[0]])
    small = [{**vm, "memory": 2**28} if vm["name"] == "s3" else vm for vm in vms]
    assert broken(vms=small) == {"size"}
    slow = [{**vm, "vcpus": 1} if vm["name"] == "s3" else vm for vm in vms]
    assert broken(vms=slow) == {"size"}
    moved = second if place["s0"] == first else first
    other = [{**vm, "host": moved} if vm["name"] == "s0" else vm for vm in vms]
    assert "claims" in broken(vms=other)
    unspared = [host.model_dump() for host in file.hosts if not host.spare]
    assert broken(hosts=unspared) == {"failures"}
    bound = {"hosts": 99, "reason": "none", "gap": 0.0}
    assert broken(bound=bound) == {"claims"}
    fat = [{**vm, "memory": 10 * 2**40} if vm["name"] == "s3" else vm for vm in vms]
    assert "capacity" in broken(vms=fat)


def test_hand_made_plans_are_judged_and_names_in_them_checked() -> None:
    found = mixed_fleet(2)
    good = {"assignment": {"s0": "small-1", "s1": "small-1"}, "buy": {"small-1": {"kind": "small"}}}
    assert check_file(found, HandMade.model_validate(good)) == ()
    for changes, field in (
        ({"assignment": {"s0": "nowhere"}}, "assignment.s0.host"),
        ({"spares": ["nowhere"]}, "spares.0"),
        ({"buy": {"small-1": {"kind": "smal"}}}, "buy.small-1.kind"),
    ):
        with pytest.raises(InvalidInput) as caught:
            check_file(found, HandMade.model_validate({**good, **changes}))
        assert caught.value.field == field
    file = plan_file(found, solve(found, FEW, "hosts"))
    assert check_file(found, by_hand(file)) == ()


def test_a_kind_that_is_not_on_offer_is_a_fault() -> None:
    found = mixed_fleet(2)
    only_small = replace(found, offers=found.offers[:1])
    hand = {"assignment": {"s0": "x", "s1": "x"}, "buy": {"x": {"kind": "large"}}}
    faults = check_file(only_small, HandMade.model_validate(hand))
    assert {fault.rule for fault in faults} == {"hosts"}


@pytest.mark.parametrize(
    "text", ["load", "load=0", "hosts=0", "hosts=x", "failures=-1", "headroom=99:1.5", "size=3"]
)
def test_cases_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_case(text)
    assert caught.value.field == "--case"


def test_what_if() -> None:
    hosts = hosts_file(at_hand={"own": "small"})
    cpu = [5.0] * 48
    found = fleet([usage(f"s{n}", cpu, [1e9] * 48) for n in range(5)], hosts=hosts)
    base = solve(found, FEW, "hosts").plan

    def case(text: str) -> Tried:
        return try_case(parse_case(text), found, base, FEW, "hosts", 0)

    assert len(base.hosts) == 2
    doubled = case("load=2").choice
    assert doubled is not None
    assert len(doubled.plan.hosts) > 2
    assert check_plan(doubled.request, doubled.plan) == ()
    spared = case("failures=1").choice
    assert spared is not None
    assert len(spared.plan.spares) == 1
    roomy = case("headroom=100:0.5").choice
    assert roomy is not None
    assert len(roomy.plan.hosts) >= 2
    fatter = case("memory=20")
    assert fatter.choice is not None
    more = case("hosts=+1")
    assert more.choice is not None
    assert "of CPU free" in more.note
    less = case("hosts=-1")
    assert less.choice is None
    assert "all servers need" in less.note
    without = case("without=own").choice
    assert without is not None
    assert "own" not in {host.name for host in without.plan.hosts}
    with pytest.raises(InvalidInput, match="no host at hand called 'x'"):
        case("without=x")
    assert case("load=100").choice is None
