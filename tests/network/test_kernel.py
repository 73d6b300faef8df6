"""What the kernel says to changes of links and filters that it cannot make."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hanok.errors import CommandFailed
from hanok.network.keeper import rtnetlink
from hanok.network.keeper.nftables import Nftables
from hanok.network.keeper.rtnetlink import Rtnetlink
from tests.network.namespaces import Namespace

pytestmark = pytest.mark.vm

MAC = "02:00:00:00:00:01"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Namespace()
    yield made
    made.close()


def test_the_first_refusal_is_told_and_the_socket_stays_good(namespace: Namespace) -> None:
    netlink = namespace.run(Rtnetlink)
    netlink.run(rtnetlink.add_bridge("br0", MAC, 1400))
    with pytest.raises(CommandFailed, match="EEXIST, File exists"):
        netlink.run(
            rtnetlink.add_bridge("br1", MAC, 1400),
            rtnetlink.add_bridge("br0", MAC, 1400),
            rtnetlink.set_up(9999),
        )
    with pytest.raises(CommandFailed, match="ENODEV, No such device"):
        netlink.run(rtnetlink.set_up(9999))
    with pytest.raises(CommandFailed, match=r"EINVAL, .*\(.*[a-z]{3}.*\)"):
        netlink.run(rtnetlink.pin(1, MAC))  # the loopback is in no bridge
    shown = namespace.command("ip", "-brief", "link")
    assert MAC in shown
    assert "br1" in shown


def test_rules_are_applied_all_or_none(namespace: Namespace) -> None:
    filters = namespace.run(Nftables)
    filters.run("table inet t { set s { type ipv4_addr; }; }")
    with pytest.raises(CommandFailed, match="nftables failed"):
        filters.run("add element inet t s { 10.0.0.1 }\nadd element inet t none { 10.0.0.1 }\n")
    with pytest.raises(CommandFailed, match="syntax error"):
        filters.run("add element inet t s { 10.0.0.2 }\nno such rule\n")
    filters.run("add element inet t s { 10.0.0.3 }")
    shown = namespace.command("nft", "list", "ruleset")
    assert "10.0.0.3" in shown
    assert "10.0.0.1" not in shown
    assert "10.0.0.2" not in shown
