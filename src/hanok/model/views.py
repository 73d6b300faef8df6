"""What the API shows: plain typed dictionaries, so that the command line needs no model library.

Sizes are bytes, times seconds since the epoch, durations seconds.
"""

from __future__ import annotations

import sys
from typing import Any, NotRequired

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic cannot look into the older one
    from typing_extensions import TypedDict


class PortView(TypedDict):
    """A published port: where on the host, which in the guest."""

    address: str
    host_port: int
    guest_port: int


class NicView(TypedDict):
    """A VM's address on a network."""

    network: str
    mac: str
    address: str


class VmView(TypedDict):
    """A VM in lists."""

    name: str
    uuid: str
    state: str
    reason: str | None
    image: str
    hypervisor: str
    accelerator: str
    mode: str
    cpus: int
    memory: int
    disk: int
    addresses: list[str]
    ports: list[PortView]
    ready_seconds: float | None
    created: float
    stack: str | None
    template: str | None
    clone: str | None


class LimitsView(TypedDict):
    """The limits of a VM's cgroup: bytes, threads, share of CPU time; ``reason`` why not all."""

    unit: str | None
    memory: int | None
    tasks: int | None
    cpu_weight: int | None
    reason: str | None


class VmDetail(VmView):
    """A VM with everything that ``hanok show`` tells."""

    wanted: str
    networks: list[NicView]
    image_id: str | None
    machine_type: str | None
    isolation: str
    started: float | None
    evidence: dict[str, Any] | None
    overhead: int
    cpu_seconds: float | None
    resident: int | None
    proportional: int | None
    boot: str | None
    ready: dict[str, Any]
    packages: list[str]
    user_data: str | None
    pid: int | None
    limits: LimitsView | None


class ExecView(TypedDict):
    """What a command in a guest gave; streams in base64, each cut at 16 MiB."""

    exit_status: int
    stdout: str
    stderr: str
    truncated: bool


class ImageView(TypedDict):
    """An image in lists."""

    id: str
    ref: str
    os: str
    packages: list[str]
    disk_size: int
    size: int
    modes: list[str]
    created: float
    used_by: list[str]


class TemplateView(TypedDict):
    """A template in lists; ``reason`` says why it cannot be cloned instantly, if it cannot."""

    id: str
    name: str
    owner: str
    stack: str | None
    state: str
    image: str
    cpus: int
    memory: int
    disk: int
    mode: str
    created: float
    used: float
    memory_used: int
    size: int
    clones: list[str]
    reason: str | None


class NetworkView(TypedDict):
    """A network in lists."""

    name: str
    subnet: str
    gateway: str
    outward: bool
    running: bool
    reason: str | None
    vms: list[str]


class SshView(TypedDict):
    """How to reach a guest by SSH: the key's path is on the daemon's host."""

    user: str
    port: int
    key: str
    host_keys: list[str]


class RoomView(TypedDict):
    """One resource of a host: bytes, or CPUs."""

    resource: str
    capacity: float
    used: float
    reserved: float
    free: float


class HostView(TypedDict):
    """What ``hanok host show`` sums up.

    ``sold``: memory of the VMs that are up, overhead included. ``used``: the proportional memory
    of their processes; ``shared``: what they save by sharing. Older daemons do not say these.
    ``listen``: the TCP address where it answers with TLS; ``fingerprint``: hexadecimal SHA-256 of
    the certificate there.
    """

    name: str
    version: str
    kernel: str
    home: str
    user: str
    hypervisors: list[dict[str, Any]]
    isolation: str
    cpus: int
    cpu_ratio: float
    memory: int
    overhead: int
    vms: int
    running: int
    rooms: list[RoomView]
    notes: list[str]
    memory_policy: NotRequired[str]
    memory_factor: NotRequired[float]
    shared_reserve: NotRequired[int]
    sold: NotRequired[int]
    used: NotRequired[int]
    shared: NotRequired[int]
    listen: NotRequired[str | None]
    fingerprint: NotRequired[str | None]


class TokenView(TypedDict):
    """A token, without what is secret of it; ``used`` is its last use, to the minute."""

    id: str
    name: str
    role: str
    created: float
    expires: float | None
    used: float | None


class NewTokenView(TokenView):
    """A token that was just made: the only time that it is shown.

    ``host``, ``listen`` and ``fingerprint`` say where it is good; see HostView.
    """

    token: str
    host: str
    listen: str | None
    fingerprint: str | None


class StackView(TypedDict):
    """A stack that is up: its name and its VMs."""

    name: str
    vms: list[VmView]
    networks: list[str]
    created: list[str]
