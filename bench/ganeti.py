"""VMs that find room, against Ganeti's hspace: ``python -m bench.ganeti DIR``.

DIR holds cluster files in the text format of Ganeti's htools (.data); ``hspace`` and ``hcheck`` are
those of Debian's ganeti-htools. hspace names the shape of a VM (its standard allocation) and counts
how many it places so that any node may fail. We place VMs of the same shape under the same rules;
hcheck then judges the cluster with our VMs in it, besides our own arithmetic. Only shapes on one
node are ours to place (diskless, plain); of replicated ones (drbd) we place none, and say so.

"at most" is a number that nobody exceeds under these rules, by whatever method (see
``most_redundant``): where hspace has it, more cannot be placed, and that is counted at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hanok.placement.redundant import Filling, Resident, Shelter, fill_redundantly

DEFAULT_RATIO = 4.0
NODE_CPUS = 1
ON_DISK = frozenset({"plain", "drbd"})


@dataclass(frozen=True)
class Shape:
    """The VM that hspace places: MiB, MiB, vCPUs, spindles."""

    memory: int
    disk: int
    cpus: int
    spindles: int
    template: str


@dataclass(frozen=True)
class Outcome:
    """What came of one cluster; ``placed`` is None where the shape is not ours to place."""

    file: str
    hspace: int
    placed: int | None
    bound: int | None
    template: str
    accepted: bool
    remark: str = ""


@dataclass(frozen=True)
class Policy:
    """Of a group: vCPUs a CPU, VMs a spindle, and the least and most of each kind of VM."""

    cpu_ratio: float
    spindle_ratio: float
    ranges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether a VM of these MiB, vCPUs and (if it is on a disk) MiB may be in the group."""
        return not self.ranges or any(
            all(low <= size <= high for low, size, high in zip(least, shape, most, strict=False))
            for least, most in self.ranges
        )


@dataclass
class Cluster:
    """A cluster file, as rows of fields."""

    groups: list[list[str]]
    nodes: list[list[str]]
    instances: list[list[str]]
    rest: list[list[list[str]]]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench.ganeti", description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if missing := [name for name in ("hspace", "hcheck") if shutil.which(name) is None]:
        parser.error(f"there is no {missing[0]} here: apt-get install ganeti-htools")
    outcomes = []
    for path in sorted(options.dir.glob("*.data")):
        told = ask_hspace(path) if options.only in path.name else None
        if told is not None:
            outcomes.append(run(path, told))
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        _show(outcomes)


def ask_hspace(path: Path) -> dict[str, str] | None:
    """Return what hspace says of a cluster, None when it does not accept it."""
    done = subprocess.run(
        ["hspace", "-t", str(path), "--machine-readable=yes"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return told if done.returncode == 0 and told.get("HTS_OK") == "1" else None


def run(path: Path, told: dict[str, str]) -> Outcome:
    """Place as many as possible on one cluster, and have hcheck judge it."""
    count, template = int(told["HTS_ALLOC_INSTANCES"]), told["HTS_SPEC_DISK_TEMPLATE"].strip("'")
    shape = Shape(
        *(int(told[f"HTS_SPEC_{name}"]) for name in ("MEM", "DSK", "CPU", "SPN")), template
    )
    cluster = read_cluster(path.read_text())
    before = judge(cluster)
    if told["HTS_SPEC_RQN"] != "1":
        bound = 0 if before.get("N1_FAIL") else pairs_bound(cluster, shape)
        remark = "needs two nodes a VM: not modelled"
        return Outcome(path.name, count, None, bound, template, True, remark)
    filling = place(cluster, shape)
    if before.get("N1_FAIL") or before.get(
        "GN1_FAIL"
    ):  # as hspace: nothing is added to such a cluster
        remark = "a node may not fail even before"
        return Outcome(path.name, count, 0, 0, template, True, remark)
    after = judge(with_vms(cluster, shape, filling))
    wrong = ", ".join(f"{name} {number}" for name, number in after.items() if number)
    remark = ("" if before else "hcheck fails") if after == before else f"hcheck: {wrong}"
    return Outcome(
        path.name, count, filling.total, filling.bound, template, after == before, remark
    )


def read_cluster(text: str) -> Cluster:
    """Return the sections of a cluster file."""
    sections: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line:
            sections[-1].append(line.split("|"))
        else:  # each empty line ends a section, an empty one too
            sections.append([])
    sections += [[]] * (3 - len(sections))
    return Cluster(*sections[:3], sections[3:])


def place(cluster: Cluster, shape: Shape) -> Filling:
    """Return how many VMs each node of the cluster gets."""
    policies = _policies(cluster)
    sizes = (shape.memory, shape.cpus, shape.disk)[: 3 if shape.template in ON_DISK else 2]
    place_of = {
        node[0]: number for number, node in enumerate(cluster.nodes) if not _is_offline(node)
    }
    shelters = [
        _shelter(cluster, number, place_of, policies, sizes) for number in range(len(cluster.nodes))
    ]
    needs = (shape.memory, _disk(shape.template, shape.disk), shape.cpus, shape.spindles)
    if shape.template not in ON_DISK:
        needs = (*needs[:3], 0)
    exclusive = any(len(node) > 11 and node[11] == "Y" for node in cluster.nodes)
    return fill_redundantly(shelters, needs, (0, 1, 3) if exclusive else (0, 1))


def pairs_bound(cluster: Cluster, shape: Shape) -> int:
    """Return how many VMs that are on two nodes each have disk and spindles at most."""
    policies = _policies(cluster)
    slots = []
    for node in cluster.nodes:
        shelter = _shelter(cluster, len(slots), {}, policies, ())
        there = sum(_spindles(one) for one in cluster.instances if one[7] == node[0])
        disk, spindles = shelter.free[1] // shape.disk, shelter.free[3] - there
        slots.append(max(0, min(disk, spindles // shape.spindles)))
    return min(sum(slots) // 2, sum(slots) - max(slots, default=0))


def _ranges(text: str) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    specs = [tuple(int(word) for word in spec.split(",")[:3]) for spec in text.split(";") if spec]
    return tuple(zip(specs[::2], specs[1::2], strict=True))


def _policies(cluster: Cluster) -> dict[str, Policy]:
    """Return the policies by group name; "" is the cluster's."""
    found = {"": Policy(DEFAULT_RATIO, 32.0, ())}
    for section in cluster.rest:
        for fields in section:
            if len(fields) >= 6:
                found[fields[0]] = Policy(float(fields[4]), float(fields[5]), _ranges(fields[2]))
    return found


def _disk(template: str, disk: int) -> int:
    return disk if template in ON_DISK else 0


def _shelter(
    cluster: Cluster,
    number: int,
    place_of: dict[str, int],
    policies: dict[str, Policy],
    sizes: tuple[int, ...],
) -> Shelter:
    node = cluster.nodes[number]
    group = next((g[0] for g in cluster.groups if g[1] == node[8]), "")
    if _is_offline(node):
        return _offline(cluster, node, place_of)
    policy = policies.get(group, policies[""])
    mine = [one for one in cluster.instances if one[6] == node[0]]
    exclusive = len(node) > 11 and node[11] == "Y"
    spindles = (
        int(node[12])
        if exclusive
        else int(float(node[9] if len(node) > 9 else 1) * policy.spindle_ratio)
        - sum(_spindles(one) for one in mine)
    )
    residents = tuple(
        Resident(
            (int(one[1]), 0 if one[7] else _disk(one[8], int(one[2])), int(one[3]), _spindles(one)),
            place_of.get(one[7]) if one[7] else None,
        )
        for one in mine
        if one[4] != "ADMIN_down"
    )
    free = (  # Ganeti wants at least 1 MiB left
        int(node[3]) - 1,
        int(node[5]) - 1,
        int(float(node[6]) * policy.cpu_ratio)
        - _node_cpus(node)
        - sum(int(one[3]) for one in mine),
        spindles,
    )
    if not policy.allows(sizes):
        residents_only = (*free[:2], 0, free[3])
        return Shelter(tuple(max(0, amount) for amount in residents_only), residents, node[8])
    return Shelter(tuple(max(0, amount) for amount in free), residents, node[8])


def _node_cpus(node: list[str]) -> int:
    return int(node[13]) if len(node) > 13 and node[13].isdigit() else NODE_CPUS


def _is_offline(node: list[str]) -> bool:
    return node[7] == "Y" or "?" in node[1:7]


def _offline(cluster: Cluster, node: list[str], place_of: dict[str, int]) -> Shelter:
    """Return a node that takes nothing; its replicated VMs may restart on their other node."""
    residents = tuple(
        Resident((int(one[1]), 0, 0, 0), place_of.get(one[7]))
        for one in cluster.instances
        if one[6] == node[0] and one[7]
    )
    return Shelter((0, 0, 0, 0), residents, node[8])


def _spindles(instance: list[str]) -> int:
    return int(instance[10]) if len(instance) > 10 and instance[10].isdigit() else 1


def with_vms(cluster: Cluster, shape: Shape, filling: Filling) -> Cluster:
    """Return the cluster with our VMs in it, what is free on the nodes counted down."""
    nodes = [list(node) for node in cluster.nodes]
    instances = [list(one) for one in cluster.instances]
    for at, count in enumerate(filling.counts):
        node = nodes[at]
        node[3] = str(int(node[3]) - count * shape.memory)
        node[5] = str(int(node[5]) - count * _disk(shape.template, shape.disk))
        if len(node) > 12 and node[11] == "Y":
            node[12] = str(int(node[12]) - count * shape.spindles)
        for index in range(count):
            sizes = (str(shape.memory), str(shape.disk), str(shape.cpus))
            name = f"hanok-{at}-{index}"
            spindles = str(shape.spindles)
            rest = ("running", "Y", node[0], "", shape.template, "", spindles, spindles, "N")
            instances.append([name, *sizes, *rest])
    return Cluster(cluster.groups, nodes, instances, cluster.rest)


def judge(cluster: Cluster) -> dict[str, int]:
    """Return hcheck's counts of what is wrong with a cluster, nothing when it gives none."""
    with tempfile.NamedTemporaryFile("w", suffix=".data") as file:
        file.write(_text(cluster))
        file.flush()
        done = subprocess.run(
            ["hcheck", "-t", file.name, "--machine-readable", "--no-simulation"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if done.returncode != 0 and "HCHECK_INIT_CLUSTER_GN1_FAIL" not in told:
        return {}  # it ends with an internal error on VMs across groups
    wanted = ("N1_FAIL", "GN1_FAIL", "CONFLICT_TAGS")
    return {name: int(told[f"HCHECK_INIT_CLUSTER_{name}"]) for name in wanted}


def _text(cluster: Cluster) -> str:
    sections = [cluster.groups, cluster.nodes, cluster.instances, *cluster.rest]
    return "\n".join("".join("|".join(row) + "\n" for row in rows) for rows in sections)


def _show(outcomes: list[Outcome]) -> None:
    table = Table("cluster", "hspace", "placed", "at most", "shape", "hcheck", "remark")
    for one in outcomes:
        placed = "-" if one.placed is None else str(one.placed)
        table.add_row(
            one.file,
            str(one.hspace),
            placed,
            "" if one.bound is None else str(one.bound),
            one.template,
            "accepts" if one.accepted else "REFUSES",
            one.remark,
        )
    Console(width=140).print(table)
    ours = [one for one in outcomes if one.placed is not None]
    fewer = sum((one.placed or 0) < one.hspace for one in ours)
    more = sum((one.placed or 0) > one.hspace for one in ours)
    print(f"{len(ours)} of {len(outcomes)} clusters: fewer on {fewer}, more on {more}")
    known = [one for one in outcomes if one.bound is not None]
    no_more = sum(one.hspace >= (one.bound or 0) for one in known)
    below = sum((one.placed or 0) < (one.bound or 0) for one in ours)
    print(f"on {no_more} hspace places as many as anybody can; ours are below the bound on {below}")


if __name__ == "__main__":
    main()
