"""What the network hands to nft, dnsmasq and pasta, and what it reads from the kernel."""

from __future__ import annotations

import os
import re
import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import Conflict, HanokError, InvalidInput
from hanok.network.keeper import dnsmasq, filters, routes
from hanok.network.keeper.config import Config, Port, parse_port
from hanok.network.keeper.ports import MOST_PORTS, Ports
from hanok.network.outward import pasta_argv
from tests.network.frames import dhcp, dhcp_options

CONFIG = Config(
    name="n",
    subnet="10.87.0.0/22",
    dnsmasq="/usr/sbin/dnsmasq",
    mark=("HANOK_OWNER", "dnsmasq:n:/h"),
    uid=7,
    socket=3,
    routes=4,
)
UUID = "7b0e92a4-6a4f-4d0b-9c55-0c2f7d1a9e01"
GOOD = {"vm": UUID, "host_name": "web", "mac": "52:54:00:00:00:01", "address": "10.87.0.5"}


def make_uuid(number: int) -> str:
    return f"{UUID[:24]}{number:012x}"


def test_the_configuration_survives_the_command_line() -> None:
    assert Config.parse(CONFIG.dump()) == CONFIG
    assert CONFIG.gateway == "10.87.0.1"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vm", '" . 1; }; flush ruleset; #-00000000000000'),
        ("vm", UUID.upper()),
        ("host_name", "web\n10.0.0.1 evil"),
        ("host_name", "web,evil"),
        ("host_name", "Web"),
        ("mac", "52:54:00:00:00:01 }; flush ruleset"),
        ("mac", "53:54:00:00:00:01"),
        ("mac", "02:68:61:6e:6f:6b"),
        ("address", "10.87.0.1"),
        ("address", "10.87.0.0"),
        ("address", "10.87.3.255"),
        ("address", "10.88.0.5"),
    ],
)
def test_a_port_that_may_not_become_a_rule_is_refused(field: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_port({**GOOD, field: value}, CONFIG)
    assert caught.value.field == field


@given(st.fixed_dictionaries({name: st.text(max_size=30) for name in GOOD}))
def test_no_text_at_all_breaks_out_of_a_rule(body: dict[str, str]) -> None:
    try:
        port = parse_port(body, CONFIG)
    except (HanokError, ValueError):
        return
    assert re.fullmatch(r"[\w .:,{}\"\n]*", filters.change_rules([port], [port]), re.A)


def test_two_ports_may_not_share_anything() -> None:
    one = parse_port(GOOD, CONFIG)
    other = parse_port(
        {**GOOD, "vm": make_uuid(2), "address": "10.87.0.6", "host_name": "db"}, CONFIG
    )
    with pytest.raises(Conflict, match=f"mac 52:54:00:00:00:01 is taken by VM {UUID}"):
        Ports([one, other])


def test_a_port_is_found_by_all_that_is_its_own_until_it_is_gone() -> None:
    one = parse_port(GOOD, CONFIG)
    other = parse_port({**GOOD, "vm": make_uuid(2)}, CONFIG)
    moved = parse_port({**GOOD, "address": "10.87.0.6"}, CONFIG)
    ports = Ports([one])
    ports.put(moved)
    assert ports.find("10.87.0.5") is None
    assert ports.find("10.87.0.6") is ports.get(UUID) is moved
    with pytest.raises(Conflict, match="host_name web is taken"):
        ports.put(parse_port({**GOOD, "vm": make_uuid(2), "mac": "52:54:00:00:00:02"}, CONFIG))
    assert list(ports) == [moved]
    ports.remove(UUID)
    ports.remove(UUID)
    ports.put(other)
    assert list(ports) == [other]


def test_a_bridge_takes_no_more_ports_than_linux_gives_it() -> None:
    ports = Ports()
    for number in range(1024):
        last = f"{number >> 8:02x}:{number & 255:02x}"
        address = f"10.87.{number >> 8}.{number & 255}"
        port = Port(make_uuid(number), f"v{number}", f"52:54:00:00:{last}", address)
        if number < MOST_PORTS:
            ports.put(port)
    with pytest.raises(Conflict, match="the network is full"):
        ports.check(port)
    ports.remove(make_uuid(0))
    ports.check(port)


def test_tap_names_fit_and_differ() -> None:
    names_found = {
        Port(vm=make_uuid(n), host_name="a", mac="", address="").tap for n in range(1000)
    }
    assert len(names_found) == 1000
    assert all(len(name) <= 15 for name in names_found)


def test_nft_takes_the_rules() -> None:
    ports = [
        parse_port({**GOOD, "vm": make_uuid(n), "address": f"10.87.0.{n + 2}"}, CONFIG)
        for n in range(3)
    ]
    text = (
        filters.base_rules(CONFIG)
        + filters.change_rules(ports[:1], ports)
        + filters.never_rules(["9.9.9.9"])
    )
    if os.geteuid() != 0:
        pytest.skip("nft --check needs root")
    done = subprocess.run(
        ["unshare", "-n", "nft", "--check", "-f", "-"], input=text, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_dnsmasq_serves_static_leases_on_the_bridge_only() -> None:
    argv = dnsmasq.options(CONFIG, "H", "N", "S")
    assert "--dhcp-range=10.87.0.0,static,255.255.252.0,infinite" in argv
    assert {"--interface=br0", "--bind-interfaces", "--no-resolv", "--dhcp-ignore-names"} < set(
        argv
    )
    port = parse_port(GOOD, CONFIG)
    assert dnsmasq.hosts_text([port]) == "52:54:00:00:00:01,10.87.0.5,web,infinite\n"
    assert dnsmasq.names_text([port], 258).splitlines() == [
        "127.0.1.2 _generation.hanok",
        "10.87.0.5 web web.hanok",
    ]


def test_a_lease_is_given_back_as_its_guest_would() -> None:
    message = dnsmasq.release_message(parse_port(GOOD, CONFIG), "10.87.0.1")
    by_hand = dhcp(GOOD["mac"], 7, options=bytes((54, 4, 10, 87, 0, 1)))
    assert len(message) == len(by_hand)
    assert message[12:16] == bytes((10, 87, 0, 5))
    assert message[28:44] == by_hand[28:44]
    assert dhcp_options(message) == dhcp_options(by_hand) == {53: b"\7", 54: bytes((10, 87, 0, 1))}


def test_pasta_forwards_nothing_and_maps_nothing() -> None:
    argv = pasta_argv(42, 1_700_060_001)
    text = " ".join(argv)
    assert "-t none -u none -T none -U none" in text
    assert "--no-map-gw" in argv
    assert "setpriv --reuid 1700060001 --regid 1700060001 --clear-groups" in text
    assert "--userns /proc/42/ns/user --netns /proc/42/ns/net" in text
    assert pasta_argv(42, None)[0] == "pasta"


def test_the_kernel_tells_the_addresses_of_the_host() -> None:
    with routes.open_routes() as sock:
        sock.setblocking(True)
        sock.settimeout(5)
        sock.send(routes.address_request())
        found: set[str] = set()
        while True:
            heard = routes.parse_addresses(sock.recv(65536))
            found |= heard.there
            if heard.done:
                break
    assert "127.0.0.1" in found
    assert all(socket.inet_aton(address) for address in found)


@given(st.binary(max_size=300))
def test_any_bytes_from_netlink_are_survived(data: bytes) -> None:
    routes.parse_addresses(data)
