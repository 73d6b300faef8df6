"""Options of QEMU that both its own driver and Xen's device model are given: pure, no I/O.

Each text that comes from outside ends as one value: in options of the form ``key=value,key=value``
a comma in a value is doubled (QEMU's QemuOpts), and block nodes are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hanok.errors import InvalidInput
from hanok.hypervisors.base import Disk
from hanok.model.image import DiskFormat
from hanok.units import MIB

# Bytes of a qcow2 image's tables kept in memory: all of 32 GiB of disk. QEMU's own limit, 32 MiB,
# is more than is counted for a machine.
_QCOW2_TABLES = 4 * MIB


def options(fields: Mapping[str, str], head: str | None = None) -> str:
    """Return ``head,key=value,...``, each comma in a value doubled."""
    pairs = [f"{key}={escape(value)}" for key, value in fields.items()]
    return ",".join(pairs if head is None else [escape(head), *pairs])


def escape(value: str) -> str:
    """Return ``value`` as QEMU's options take it: each comma doubled."""
    return value.replace(",", ",,")


def block_nodes(name: str, disk: Disk) -> list[str]:
    """Return the arguments that make the nodes of ``disk``, the uppermost named ``name``.

    Raises InvalidInput for an overlay in a format that has none.
    """
    argv: list[str] = []
    for node in node_options(name, disk):
        argv += ["-blockdev", json.dumps(node, ensure_ascii=False)]
    return argv


def node_options(name: str, disk: Disk) -> list[dict[str, object]]:
    """Return the options of the nodes of ``disk`` (BlockdevOptions), in the order to make them.

    Raises InvalidInput as ``block_nodes`` does.
    """
    nodes: list[dict[str, object]] = []
    below: str | None = None
    for depth, base in reversed(list(enumerate(disk.bases))):
        node = f"{name}-base{depth or ''}"
        nodes += _nodes(node, base.path, base.format, read_only=True, backing=below)
        below = node
    return nodes + _nodes(name, disk.path, disk.format, read_only=disk.read_only, backing=below)


def _nodes(
    name: str, path: Path, format: DiskFormat, *, read_only: bool, backing: str | None
) -> list[dict[str, object]]:
    """Return the two nodes of an image file: the file, and its format on top.

    The backing node is always said, ``null`` when there is none: what the header of a qcow2 file
    names is never opened. JSON, because only JSON has a null.
    """
    shared = {
        "read-only": read_only,
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": False},
    }
    file = {"driver": "file", "node-name": f"{name}-file", "filename": str(path), **shared}
    node = {"driver": str(format), "node-name": name, "file": f"{name}-file", **shared}
    if format is DiskFormat.QCOW2:
        node["backing"] = backing
        node["l2-cache-size"] = _QCOW2_TABLES
    elif backing is not None:
        raise InvalidInput(f"a {format} disk has no base", field="disks", expected="qcow2")
    return [file, node]
