"""Which disks and network cards of a server count, by name: each byte once.

A byte that goes through a file system on LVM on RAID on a disk is counted by the kernel at every
level; what counts is the lowest, which a VM would have as its disk. Of the network only what leaves
the machine counts. Names are those of the Linux kernel's drivers
(https://www.kernel.org/doc/html/latest/admin-guide/devices.html) and of systemd
(https://www.freedesktop.org/software/systemd/man/latest/systemd.net-naming-scheme.html).
"""

from __future__ import annotations

import re
from collections.abc import Collection

_STACKED = re.compile(r"(loop|ram|zram|dm-|md|drbd|bcache|sr|fd)\d|device-mapper|.*[/:]")
_PARTITION = re.compile(r"(?P<disk>(?:(?:nvme|mmcblk|nbd)\d.*(?=p\d)|[a-z]+(?=\d)))p?\d+")
_VIRTUAL = re.compile(
    r"(lo|dummy|bond|team|br|virbr|docker|veth|vnet|tap|tun|wg|vif|cali|cni|flannel|ifb|lxc|lxdbr"
    r"|ovs|sit|gre|ipip|vxlan|macvtap|kube|nodelocal|fwbr|fwln|fwpr|vmbr)(\d|-|$|_|ipvs)"
    r"|(veth|cali|lxc|flannel|cilium_|hanok)|.*[.@]"
)


def counted_disks(names: Collection[str]) -> list[str]:
    """Return those of ``names`` that are whole disks, or partitions of none that is there."""
    real = {name for name in names if not _STACKED.match(name)}
    return sorted(name for name in real if _disk_of(name) not in real)


def _disk_of(name: str) -> str | None:
    match = _PARTITION.fullmatch(name)
    return None if match is None else match["disk"]


def is_counted_card(name: str) -> bool:
    """Return whether traffic of the network card ``name`` leaves the machine, and is counted once.

    Bonds, bridges, VLANs, tunnels and the cards of VMs and containers are carried by others.
    """
    return _VIRTUAL.match(name) is None
