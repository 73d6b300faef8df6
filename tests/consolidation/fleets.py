"""Small fleets for tests: usages with given samples, files as models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from hanok.consolidation.fleet import Fleet, make_fleet
from hanok.model.fleet import HostsFile, ServersFile
from hanok.model.usage import Usage
from hanok.units import GIB

START = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = 3_600.0


def usage(
    server: str,
    cpu: Sequence[float | None],
    memory: Sequence[float | None] = (),
    *,
    interval: float = HOUR,
    later: float = 0.0,
    cores: int = 8,
    size: int = 16,
    **traffic: Sequence[float | None],
) -> Usage:
    """Return a usage that starts ``later`` seconds after all others; ``size`` in GiB.

    ``traffic`` has other metrics by name.
    """
    samples = {"cpu": tuple(cpu), **{name: tuple(values) for name, values in traffic.items()}}
    if memory:
        samples["memory"] = tuple(memory)
    return Usage.model_validate(
        {
            "server": server,
            "start": START + timedelta(seconds=later),
            "interval": interval,
            "samples": samples,
            "sizes": {"cores": cores, "memory": size * GIB},
        }
    )


def hosts_file(**changes: object) -> HostsFile:
    """Return two kinds on offer: small (16 cores, 64 GiB) and large (twice that)."""
    kind = {"overhead": {"cores": 0}, "overhead_vm": "1M"}
    content: dict[str, object] = {
        "kinds": {
            "small": {**kind, "cores": 16, "memory": "64G", "price": 5000},
            "large": {**kind, "cores": 32, "memory": "128G", "price": 12000},
        },
        "offers": ["small", "large"],
    }
    return HostsFile.model_validate({**content, **changes})


def fleet(
    usages: Sequence[Usage],
    *,
    hosts: HostsFile | None = None,
    servers: Mapping[str, object] | None = None,
    rules: Mapping[str, object] | None = None,
) -> Fleet:
    """Return a fleet of the servers of ``usages`` under ``rules``, by default with no reserve."""
    entries = servers if servers is not None else {one.server: {} for one in usages}
    file = ServersFile.model_validate(
        {"servers": entries, "rules": {"headroom": {"reserve": 0}, **(rules or {})}}
    )
    return make_fleet(file, hosts or hosts_file(), usages)
