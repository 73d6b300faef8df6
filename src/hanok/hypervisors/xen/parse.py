"""What Xen's own programs print, as records: pure, no I/O.

Tested on output recorded from Xen 4.17 (tests/hypervisors/xen/data). Everything that is not
understood raises HypervisorError with the line, so that a new version's output is noticed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import IntEnum

from hanok.errors import HypervisorError
from hanok.units import MIB


class ShutdownReason(IntEnum):
    """Why a domain is shut down: SHUTDOWN_* in Xen's public/sched.h."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


@dataclass(frozen=True)
class DomainState:
    """One domain of ``xl list -v``: ``memory`` in bytes, ``cpu_seconds`` since its start.

    ``reason`` is None while it is not shut down, and for a reason that is not known.
    """

    name: str
    domid: int
    memory: int
    cpus: int
    cpu_seconds: float
    uuid: str
    paused: bool
    shutdown: bool
    dying: bool
    reason: ShutdownReason | None


@dataclass(frozen=True)
class DomainConfig:
    """One domain of ``xl list -l``: ``type`` is pv, pvh or hvm; no uuid for Dom0."""

    domid: int
    name: str
    uuid: str | None
    type: str


@dataclass(frozen=True)
class XenInfo:
    """What ``xl info`` tells: sizes in bytes, ``capabilities`` as pv, hvm, hap, ..."""

    version: str
    cpus: int
    memory: int
    free: int
    scheduler: str
    capabilities: tuple[str, ...]
    command_line: str


# xl_list.c: the name is padded and may hold anything, so that a line is read from its end. The
# fifth flag is a letter for the reason of a shutdown ("-rscwS"); a later column has its number.
_ROW = re.compile(
    r"^(?P<name>.*?) +(?P<domid>\d+) +(?P<memory>\d+) +(?P<cpus>\d+) +"
    r"(?P<flags>[r-][b-][p-][s-][a-zA-Z-][d-]) +(?P<seconds>\d+\.\d) "
    r"(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) +(?P<reason>-|[0-9a-f]+)(?: +\S+)?$"
)
_OCTAL = re.compile(r"\\([tnr\\]|[0-7]{1,3})")
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_NODE = re.compile(r'^(?P<path>/\S*) = "(?P<value>.*)"$')
_HEAD = re.compile(r"^\(XEN\) (?:\[[^\]]*\] )?")


def parse_domains(text: str) -> list[DomainState]:
    """Return the domains of ``xl list -v``, Dom0 among them. Raises HypervisorError."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("Name "):
        raise HypervisorError(f"'xl list -v' printed no table: {text[:200]!r}")
    return [_parse_row(line) for line in lines[1:] if not line.startswith("(null) ")]


def _parse_row(line: str) -> DomainState:
    row = _ROW.match(line.rstrip())
    if row is None:
        raise HypervisorError(f"a line of 'xl list -v' is not understood: {line!r}")
    flags = row["flags"]
    return DomainState(
        name=row["name"],
        domid=int(row["domid"]),
        memory=int(row["memory"]) * MIB,
        cpus=int(row["cpus"]),
        cpu_seconds=float(row["seconds"]),
        uuid=row["uuid"],
        paused=flags[2] == "p",
        shutdown=flags[3] == "s",
        dying=flags[5] == "d",
        reason=_reason(row["reason"]),
    )


def _reason(text: str) -> ShutdownReason | None:
    try:
        return ShutdownReason(int(text, 16)) if text != "-" else None
    except ValueError:
        return None


def parse_configs(text: str) -> list[DomainConfig]:
    """Return the domains of ``xl list -l`` (JSON), Dom0 among them. Raises HypervisorError."""
    try:
        found = json.loads(text)
        if isinstance(found, dict):  # of one domain, as it is asked for by its number
            found = [found]
        return [_config_of(entry) for entry in found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HypervisorError(f"'xl list -l' is not understood: {error!r}") from error


def _config_of(entry: dict[str, object]) -> DomainConfig:
    config = entry["config"]
    about = config["c_info"]  # type: ignore[index]
    return DomainConfig(
        domid=int(entry["domid"]),  # type: ignore[call-overload]
        name=str(about.get("name", "")),
        uuid=about.get("uuid"),
        type=str(about["type"]),
    )


def parse_info(text: str) -> XenInfo:
    """Return what ``xl info`` tells. Raises HypervisorError when something of it is missing."""
    fields = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields[key.strip()] = value.strip()
    try:
        return XenInfo(
            version=fields["xen_version"],
            cpus=int(fields["nr_cpus"]),
            memory=int(fields["total_memory"]) * MIB,
            free=int(fields["free_memory"]) * MIB,
            scheduler=fields["xen_scheduler"],
            capabilities=tuple(fields["virt_caps"].split()),
            command_line=fields.get("xen_commandline", ""),
        )
    except (KeyError, ValueError) as error:
        raise HypervisorError(f"'xl info' is not understood: {error}") from error


def parse_store(text: str) -> dict[str, str]:
    """Return the nodes of ``xenstore-ls -f`` by path.

    Guests write nodes of their own: what is not understood is passed over, not an error.
    """
    found = {}
    for line in text.splitlines():
        node = _NODE.match(line)
        if node is not None:
            found[node["path"]] = _OCTAL.sub(_unescape, node["value"])
    return found


def _unescape(escape: re.Match[str]) -> str:
    code = escape[1]
    return _ESCAPES[code] if code in _ESCAPES else chr(int(code, 8))


def find_crash(log: str, domid: int) -> str:
    """Return the last that ``xl dmesg`` says about the end of domain ``domid``, in one line.

    Empty when it says nothing. Domain numbers come again after a restart of the host only.
    """
    about = re.compile(
        rf"\bd{domid}v\d+ (?:Triple fault|Unhandled|Fatal)|\b[Dd]omain {domid}\b.*"
        rf"(?:crash|shutdown|shutting)|\bd{domid}\b.*crash"
    )
    lines = [_HEAD.sub("", line) for line in log.splitlines()]
    return "; ".join([line.strip() for line in lines if about.search(line)][-3:])
