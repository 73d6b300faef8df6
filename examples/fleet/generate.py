"""Makes this folder's example: ``python examples/fleet/generate.py [FOLDER]``.

Forty dedicated servers of a company, bought over ten years, measured for a week at 15 minutes. Each
has a role, and a role has an hour at which it is busy: shops in the evening, the office by day,
reports and backups at night. On top come a slow drift, noise and rare bursts, so that no two are
alike. Nothing is measured anywhere: the numbers are drawn by Python's own generator with a fixed
seed, so that the folder is the same whoever makes it.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

SEED = 20
START = "2026-03-02T00:00:00Z"  # a Monday
INTERVAL = 900
PER_DAY = 86_400 // INTERVAL
DAYS = 7
GIB = 2**30


@dataclass(frozen=True)
class Role:
    """What servers of a kind do: how many, their sizes, and their load as a share of their CPU.

    ``peak`` is the hour of the highest load, ``width`` how many hours it lasts.
    """

    name: str
    count: int
    cores: int
    memory: int
    disk: int
    idle: float
    busy: float
    peak: float
    width: float
    weekend: float
    used_memory: float
    watts: tuple[int, int]


ROLES = (
    Role("shop", 6, 8, 32, 200, 0.04, 0.42, 20, 3.5, 1.3, 0.45, (118, 236)),
    Role("db", 4, 16, 96, 800, 0.08, 0.45, 19, 4.0, 1.1, 0.70, (165, 340)),
    Role("office", 8, 4, 16, 250, 0.02, 0.38, 11, 3.0, 0.1, 0.50, (96, 172)),
    Role("mail", 2, 8, 24, 900, 0.06, 0.30, 9, 4.0, 0.3, 0.55, (118, 236)),
    Role("report", 4, 16, 64, 400, 0.02, 0.85, 3, 1.6, 0.6, 0.40, (165, 340)),
    Role("backup", 2, 8, 16, 2000, 0.02, 0.70, 1, 1.5, 1.0, 0.35, (124, 228)),
    Role("build", 4, 16, 64, 500, 0.03, 0.55, 15, 4.0, 0.05, 0.50, (165, 340)),
    Role("legacy", 10, 4, 8, 120, 0.02, 0.09, 12, 6.0, 0.8, 0.40, (142, 226)),
)


def main() -> None:
    """Write the servers file, the hosts file and the usage files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    usage = folder / "usage"
    usage.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    for role in ROLES:
        for number in range(1, role.count + 1):
            write_usage(usage, role, f"{role.name}-{number}", draw)
    (folder / "servers.yaml").write_text(servers_file())
    (folder / "hosts.yaml").write_text(HOSTS)


def write_usage(folder: Path, role: Role, name: str, draw: random.Random) -> None:
    """Write the usage file of one server; without a time in it, so that it stays the same."""
    cpu, memory = samples(role, draw)
    content = {
        "format": 1,
        "server": name,
        "start": START,
        "interval": INTERVAL,
        "samples": {"cpu": cpu, "memory": memory},
        "sizes": {
            "cores": role.cores,
            "memory": role.memory * GIB,
            "disk": role.disk * GIB,
        },
        "source": "examples/fleet/generate.py",
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    (folder / f"{name}.usage.json.gz").write_bytes(gzip.compress(text, mtime=0))


def samples(role: Role, draw: random.Random) -> tuple[list[float | None], list[int | None]]:
    """Return cores in use and bytes in use at each interval of the week."""
    peak = role.peak + draw.gauss(0, 0.7)
    height = role.busy * draw.uniform(0.7, 1.15)
    base_memory = role.used_memory * draw.uniform(0.75, 1.1)
    drift = 0.0
    cpu: list[float | None] = []
    memory: list[int | None] = []
    gap = draw.randrange(DAYS * PER_DAY) if draw.random() < 0.2 else -10
    for at in range(DAYS * PER_DAY):
        hour = (at % PER_DAY) / PER_DAY * 24
        weekend = role.weekend if at // PER_DAY >= 5 else 1.0
        distance = abs((hour - peak + 12) % 24 - 12)
        wave = math.exp(-((distance / role.width) ** 2)) * weekend
        drift = 0.95 * drift + draw.gauss(0, 0.012)
        burst = draw.uniform(0.1, 0.35) if draw.random() < 0.004 else 0.0
        share = role.idle + height * wave + drift * (0.3 + wave) + burst
        share = min(0.97, max(0.004, share))
        used = min(0.94, base_memory * (0.92 + 0.08 * wave) + draw.gauss(0, 0.004))
        missing = gap <= at < gap + 3
        cpu.append(None if missing else round(share * role.cores, 2))
        memory.append(None if missing else round(used * role.memory * 1024) * 2**20)
    return cpu, memory


def servers_file() -> str:
    """Return the servers file: power as on the labels, groups, and the rules."""
    lines = [SERVERS]
    for role in ROLES:
        for number in range(1, role.count + 1):
            idle, peak = role.watts
            parts = [f"group: {role.name}"]
            if role.name != "legacy":  # nobody knows what those take at rest
                parts.append(f"watts: {{idle: {idle}, peak: {peak}}}")
            else:
                parts.append(f"watts: {{peak: {peak}}}")
            if role.name in ("db", "report", "build"):
                parts.append("rack_units: 2")
            if role.name == "backup" and number == 2:
                parts.append("stays: true")
            if role.name == "legacy" and number == 1:  # what it works with is plugged in there
                parts.append("pins: [old-1]")
            lines.append(f"  {role.name}-{number}: {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n" + RULES


SERVERS = """\
# Forty dedicated servers, made by generate.py. Cores, memory and disks are in their usage files.
servers:"""

RULES = """\
rules:
  headroom: {percentile: 99, reserve: 0.15}   # 15 % of a host's CPU stay free, 99 % of the time
  failures: 1                                 # one host may fail
  apart:
    - [db]                                    # no two databases on one host
    - [mail]
  together:
    - [shop-1, shop-2]                        # these two talk all the time
"""

HOSTS = """\
# What the servers may go to: two hosts that are there, and two kinds on offer.
kinds:
  older:                                      # two of these are left from another project
    cores: 24
    memory: 192G
    disk: 4T
    speed: 0.9
    watts: {idle: 95, peak: 380}
    rack_units: 2
    hypervisor: 2
  small:
    cores: 32
    memory: 256G
    disk: 8T
    speed: 1.3
    watts: [62, 98, 121, 142, 163, 184, 207, 233, 262, 292, 322]   # at 0, 10, ... 100 %
    rack_units: 1
    price: 7900
    hypervisor: 1
  large:
    cores: 64
    memory: 512G
    disk: 16T
    speed: 1.3
    watts: [118, 190, 236, 279, 321, 364, 411, 463, 521, 582, 640]
    rack_units: 2
    price: 14500
    hypervisor: 1
at_hand:
  old-1: {kind: older, rack: a}
  old-2: {kind: older, rack: b}
offers: [small, large]
costs: {currency: EUR, kwh: 0.28, rack_unit_year: 240, years: 4, pue: 1.5}
"""


if __name__ == "__main__":
    main()
