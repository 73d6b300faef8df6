"""What tests in a Dom0 look at: domains, their device models, and what is left of them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from hanok.hypervisors.xen.domain import LOGS
from hanok.hypervisors.xen.parse import parse_domains


@dataclass(frozen=True)
class DeviceModel:
    """The process in Dom0 that has a domain's devices."""

    domid: int
    pid: int


def printed(*argv: str) -> str:
    """Run a program and return what it printed."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def device_model(uuid: str) -> DeviceModel:
    """Return the device model of the domain of the VM with this uuid."""
    (domid,) = [one.domid for one in parse_domains(printed("xl", "list", "-v")) if one.uuid == uuid]
    pid = printed("xenstore-read", f"/local/domain/{domid}/image/device-model-pid")
    return DeviceModel(domid, int(pid))


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status by its names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: value.strip() for name, _, value in pairs}


def traces() -> tuple[list[str], list[str], list[str]]:
    """Return what a guest could leave: domains, interfaces and logs."""
    domains = [line.split()[0] for line in printed("xl", "list").splitlines()[1:]]
    links = [line.split()[0] for line in printed("ip", "-br", "link").splitlines()]
    return domains, links, [path.name for path in LOGS.glob("*") if "store" not in path.name]
