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
    nested: bool
    health: NotRequired[str | None]


class LimitsView(TypedDict):
    """The limits of a VM's cgroup: bytes, threads, share of CPU time; ``reason`` why not all."""

    unit: str | None
    memory: int | None
    tasks: int | None
    cpu_weight: int | None
    reason: str | None


class RestartsView(TypedDict):
    """What the restart policy has done: in a row, in all, when the next one is due, and why."""

    streak: int
    total: int
    next: float | None
    last: float | None
    reason: str | None


class HealthView(TypedDict):
    """What the health check said last that was new, since when, and what it saw."""

    state: str
    since: float
    message: str


class DataDiskView(TypedDict):
    """A disk that was added to a VM; one that is not attached is only kept."""

    name: str
    size: int
    attached: bool


class PendingView(TypedDict):
    """What a VM was asked to be and is not yet: for people, and what it takes."""

    field: str
    now: str
    wanted: str
    needs: str


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
    backend_seconds: float | None
    backend_memory: int | None
    boot: str | None
    firmware: str | None
    display: NotRequired[str]
    ready: dict[str, Any]
    packages: list[str]
    user_data: str | None
    pid: int | None
    limits: LimitsView | None
    restart: NotRequired[dict[str, Any]]
    restarts: NotRequired[RestartsView]
    health_check: NotRequired[dict[str, Any] | None]
    health_seen: NotRequired[HealthView | None]
    autostart: NotRequired[dict[str, Any]]
    watchdog: NotRequired[dict[str, Any]]
    network_limits: NotRequired[list[str]]
    generation: NotRequired[int]
    data_disks: NotRequired[list[DataDiskView]]
    pending: NotRequired[list[PendingView]]


class ExecView(TypedDict):
    """What a command in a guest gave; streams in base64, each cut at 16 MiB."""

    exit_status: int
    stdout: str
    stderr: str
    truncated: bool


class VncView(TypedDict):
    """The password by which a VM's screen is open to whoever connects within ``seconds``."""

    password: str
    seconds: int


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


class CatalogView(TypedDict):
    """An image that can be pulled; ``here`` is what it is called on this host, if it is here."""

    ref: str
    os: str
    url: str
    digest: str
    memory: int
    here: str | None


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


class FileSystemView(TypedDict):
    """A file system of the host that holds data of Hanok.

    ``level``: ok, ``warning`` from 80 % on, ``critical`` from 90 % on.
    """

    mount: str
    holds: list[str]
    size: int
    free: int
    percent: int
    level: str


class NetworkingView(TypedDict):
    """What networks are made of on a host (namespace, user, none), why, and what they lack."""

    kind: str
    reason: str
    limits: list[str]


class HostView(TypedDict):
    """What ``hanok host show`` sums up.

    ``sold``: memory of the VMs that are up, overhead included. ``used``: the proportional memory
    of their processes; ``shared``: what they save by sharing. Older daemons do not say these.
    ``listen``: the TCP address where it answers with TLS; ``fingerprint``: hexadecimal SHA-256 of
    the certificate there. ``memory_percent``: how much of the host's memory is used, by whatever;
    none under a hypervisor of Type 1. Its level is as that of file systems.
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
    filesystems: NotRequired[list[FileSystemView]]
    memory_percent: NotRequired[int | None]
    memory_level: NotRequired[str | None]
    networking: NotRequired[NetworkingView]


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
