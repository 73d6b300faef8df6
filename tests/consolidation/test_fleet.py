"""Files become requests: sizes with reasons, rules with names, and errors that say where."""

from __future__ import annotations

import numpy as np
import pytest

from hanok.consolidation.energy import Machine, curve, energy_of, mean_watts
from hanok.consolidation.fleet import make_fleet
from hanok.consolidation.forecast import forecast
from hanok.consolidation.traces import Grid
from hanok.errors import InvalidInput
from hanok.model.fleet import (
    Costs,
    HostKindEntry,
    Power,
    ServersFile,
    default_overhead,
    default_overhead_vm,
)
from hanok.units import GIB, MIB
from tests.consolidation.fleets import fleet, hosts_file, usage


def test_sizes_follow_what_was_used() -> None:
    memory = [3.0 * GIB] * 47 + [5.0 * GIB]
    found = fleet([usage("a", [0.5] * 48, memory)])
    sizing = found.sizings["a"]
    assert sizing.vcpus == 1
    assert sizing.memory == 6 * GIB
    assert "0.50 of 8 cores used at the 99th percentile, 20% more" in sizing.reason
    assert "5 GiB of 16 GiB used at most" in sizing.reason
    assert found.request.servers[0].size == {"memory": 6.0, "vcpus": 1.0}


def test_a_server_at_its_limit_keeps_its_size() -> None:
    found = fleet([usage("a", [8.0] * 48, [15.9 * GIB] * 48)])
    assert (found.sizings["a"].vcpus, found.sizings["a"].memory) == (8, 16 * GIB)
    assert any("at the limit" in finding for finding in found.findings)


def test_what_the_servers_file_says_counts() -> None:
    entry = {"vm": {"vcpus": 3, "memory": "2G"}}
    found = fleet([usage("a", [8.0] * 48)], servers={"a": entry})
    assert (found.sizings["a"].vcpus, found.sizings["a"].memory) == (3, 2 * GIB)
    assert "as the servers file says" in found.sizings["a"].reason


def test_faster_cores_need_fewer_vcpus_and_load_counts_in_speed() -> None:
    kind = {"cores": 16, "memory": "64G", "speed": 2.0}
    hosts = hosts_file(kinds={"fast": kind}, offers=["fast"])
    found = fleet([usage("a", [4.0] * 48)], hosts=hosts, servers={"a": {"speed": 1.0}})
    assert found.sizings["a"].vcpus == 3
    assert found.offers[0].capacity["cpu"] == 32.0
    slow = fleet([usage("a", [4.0] * 48)], hosts=hosts, servers={"a": {"speed": 0.5}})
    assert float(slow.loads["a"].max()) == 2.0


def test_a_server_that_was_not_measured_counts_whole_and_is_named() -> None:
    found = fleet([usage("a", [1.0] * 48)], servers={"a": {}, "b": {"cores": 4, "memory": "8G"}})
    assert set(found.loads["b"].tolist()) == {4.0}
    assert found.sizings["b"].memory == 8 * GIB
    assert any(finding.startswith("b: no CPU was measured") for finding in found.findings)


def test_usages_of_others_are_left_out_and_named() -> None:
    found = fleet([usage("a", [1.0] * 48), usage("x", [1.0] * 48)], servers={"a": {}})
    assert any(finding.startswith("x: measured") for finding in found.findings)


def test_traffic_is_planned_where_a_host_says_what_it_can_move() -> None:
    many = [20.0 * MIB] * 48
    usages = [
        usage("a", [1.0] * 48, disk_read=many, disk_write=many, network_send=many),
        usage("b", [1.0] * 48, network_receive=many),
    ]
    kind = {"cores": 16, "memory": "64G", "disk_io": "100M", "network": "1G"}
    hosts = hosts_file(kinds={"k": kind}, offers=["k"])
    found = fleet(usages, hosts=hosts)
    a, b = found.request.servers
    assert {name: float(load.max()) for name, load in a.load.items()} == {
        "cpu": 1.0,
        "disk_io": 40.0,
        "network_out": 20.0,
    }
    assert set(b.load) == {"cpu", "network_in"}
    capacity = found.offers[0].capacity
    names = ("disk_io", "network_in", "network_out")
    assert [capacity[name] for name in names] == [100.0, 1024.0, 1024.0]
    assert "b: no disk traffic was measured; counted as none" in found.findings
    other = fleet(usages)
    assert set(other.request.servers[0].load) == {"cpu"}
    assert not any("traffic" in finding for finding in other.findings)


def test_groups_stand_for_their_servers_and_staying_ones_do_not_move() -> None:
    servers = {
        "a": {"group": "db"},
        "b": {"group": "db"},
        "c": {"group": "db", "stays": True},
        "d": {},
    }
    found = fleet(
        [usage(name, [1.0] * 48) for name in servers],
        servers=servers,
        rules={"apart": [["db", "d"]]},
    )
    assert found.request.rules.apart == (frozenset("abd"),)
    assert [server.name for server in found.request.servers] == ["a", "b", "d"]
    assert found.stays == ("c",)


@pytest.mark.parametrize(
    ("servers", "rules", "field", "message"),
    [
        ({"a": {}}, {"apart": [["a", "db"]]}, "rules.apart.0", "no server and no group 'db'"),
        ({"a": {"pins": "nowhere"}}, {}, "servers.a.pins", "no host 'nowhere'"),
        ({"a": {}, "b": {}}, {}, "servers.b.cores", "nothing says what cores b has"),
        ({"a": {}, "b": {"cores": 1}}, {}, "servers.b.memory", "nothing says what memory b has"),
        ({"a": {"stays": True}}, {"together": [["a"]]}, "rules.together.0", "a stays"),
    ],
)
def test_names_that_are_wrong_are_told_with_their_field(
    servers: dict[str, object], rules: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        fleet([usage("a", [1.0] * 48)], servers=servers, rules=rules)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"offers": ["big"]}, "offers.0"),
        ({"at_hand": {"h": "smal"}}, "at_hand.h.kind"),
        ({"at_hand": {"small-1": "small"}}, "at_hand.small-1"),
    ],
)
def test_hosts_that_are_wrong_are_told_with_their_field(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        fleet([usage("a", [1.0] * 48)], hosts=hosts_file(**changes))
    assert caught.value.field == field


def test_two_usages_of_a_server_are_refused() -> None:
    with pytest.raises(InvalidInput, match="two usages"):
        fleet([usage("a", [1.0] * 48), usage("a", [1.0] * 48)], servers={"a": {}})


def test_usages_of_other_names_are_found() -> None:
    file = ServersFile.model_validate({"servers": {"a": {"usage": "a.example.org"}}})
    found = make_fleet(file, hosts_file(), [usage("a.example.org", [2.0])])
    assert float(found.loads["a"].max()) == 2.0


def test_overheads_by_type_of_hypervisor() -> None:
    type1 = HostKindEntry(cores=32, memory=256 * GIB, hypervisor=1)
    type2 = HostKindEntry(cores=32, memory=256 * GIB)
    assert default_overhead(type1).memory == 8 * GIB
    assert default_overhead(type2).memory == 2 * GIB
    assert default_overhead_vm(type1) < default_overhead_vm(type2)
    small = HostKindEntry(cores=4, memory=8 * GIB, hypervisor=1)
    assert default_overhead(small).memory == GIB
    assert default_overhead_vm(small) == 64 * MIB


def test_energy_is_what_a_hand_adds_up() -> None:
    given = Machine(Power(idle=100.0, peak=200.0), 0.0, np.array([0.0, 0.5, 1.0]), 1)
    assert mean_watts(given, 0.9) == pytest.approx(150.0)
    unknown = Machine(None, 250.0, np.zeros(4), 1)
    assert mean_watts(unknown, 0.62) == pytest.approx(155.0)
    found = energy_of([given, unknown], 0.62, Costs(kwh=0.2, pue=2.0))
    assert found.watts == pytest.approx(305.0)
    assert found.kwh_year == pytest.approx(305.0 * 8.76 * 2.0)
    assert found.money_year == pytest.approx(found.kwh_year * 0.2)
    assert curve(Power(curve=tuple(range(11))), 0.0, 0.0) == tuple(range(11))


def test_the_risk_sees_peaks_that_only_just_miss_each_other() -> None:
    grid = Grid(0.0, 900.0, 96)
    early, late = np.zeros(96), np.zeros(96)
    early[40:44], late[44:48] = 6.0, 6.0
    calm = forecast([early, late], grid, 12.0)
    assert (calm.overload, calm.risk) == (0.0, 0.0)
    near = forecast([early, late], grid, 10.0)
    assert near.overload == 0.0
    assert near.risk > 0.0
    assert near.risk == forecast([early, late], grid, 10.0).risk
    assert forecast([early], grid, 5.0).overload == pytest.approx(4 / 96)
    assert np.nanmax(near.high) == 6.0
