"""Each byte is counted once: at the disk below all layers, at the card that leaves the machine."""

from __future__ import annotations

import pytest

from hanok.assess.devices import counted_disks, is_counted_card


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        ("sda sda1 sda2 sdb dm-0 dm-1 md0 loop0 sr0", "sda sdb"),
        ("nvme0n1 nvme0n1p1 nvme0n1p2 nvme10n1", "nvme0n1 nvme10n1"),
        ("mmcblk0 mmcblk0p1 zram0 ram0", "mmcblk0"),
        ("vda vda1 vdb", "vda vdb"),
        ("xvda1 xvda2", "xvda1 xvda2"),  # Xen can give partitions without their disk
        ("sdaa sdaa1 sda", "sda sdaa"),
        ("", ""),
    ],
)
def test_disks(names: str, counted: str) -> None:
    assert counted_disks(names.split()) == counted.split()


@pytest.mark.parametrize(
    "name",
    ["eth0", "eno1", "enp3s0f0", "ens192", "wlan0", "wlp2s0", "enx001122334455", "ib0"],
)
def test_cards_that_count(name: str) -> None:
    assert is_counted_card(name)


CARRIED = """
lo bond0 team0 br0 br-1a2b virbr0 docker0 veth12ab@if3 veth0 vnet3 tap0 tun0 wg0 eth0.100 ifb0
cali12 flannel.1 vmbr0 dummy0 kube-ipvs0 fwbr100i0 hanok0
"""


@pytest.mark.parametrize("name", CARRIED.split())
def test_cards_that_others_carry(name: str) -> None:
    assert not is_counted_card(name)
