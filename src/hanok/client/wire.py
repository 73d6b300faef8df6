"""What the API answers with beside ``hanok.model.views``, as plain typed dictionaries.

The models of ``hanok.model`` say the same with validation; the client trusts its own daemon and
does not pay 70 ms a command to load them. A test compares these shapes with the models.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

FINAL_STATES = frozenset({"done", "failed", "cancelled"})


class ProblemWire(TypedDict):
    """An error, by RFC 9457 with Hanok's members; see hanok.model.operation.Problem."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None
    expected: str | None
    hint: str | None


class OperationWire(TypedDict):
    """A piece of long work; see hanok.model.operation.Operation."""

    id: str
    kind: str
    target: str
    state: str
    message: str
    fraction: float | None
    error: ProblemWire | None
    result: dict[str, Any] | None
    arguments: dict[str, Any]
    created: float
    finished: float | None


class EventWire(TypedDict):
    """Something that happened; see hanok.model.operation.Event."""

    number: int
    time: float
    kind: str
    target: str
    name: str
    message: str


class RoomWire(TypedDict):
    """How much is left of one resource; see hanok.model.host.Room."""

    resource: str
    capacity: float
    used: float
    free: float


class FitWire(TypedDict):
    """How many more VMs of a shape fit; see hanok.model.host.Fit.

    ``cost_now`` is what one more clone of a template costs, measured or else estimated,
    ``cost_most`` what it can come to cost; both are bytes of memory.
    """

    count: int
    limit: str
    missing: int
    by_resource: dict[str, int]
    rooms: list[RoomWire]
    policy: NotRequired[str]
    cost_now: NotRequired[int | None]
    cost_most: NotRequired[int | None]
    measured: NotRequired[bool]


class VersionWire(TypedDict):
    """Who answers at the socket."""

    name: str
    version: str
    pid: int
    home: str


class ModeVerdictWire(TypedDict):
    """Whether a guest can run in one mode of one hypervisor."""

    hypervisor: str
    mode: str
    can: str
    lacks: list[str]
    notes: list[str]


class KernelReportWire(TypedDict):
    """Everything about one kernel with its initrd."""

    name: str
    kernel: dict[str, Any]
    initrd: dict[str, Any] | None
    drivers: list[dict[str, Any]]
    modes: list[ModeVerdictWire]


class KernelFailureWire(TypedDict):
    """A kernel that could not be read, and why."""

    name: str
    why: str


class ImageKernelsWire(TypedDict):
    """What was read from all kernels of an image."""

    image: str
    kernels: list[KernelReportWire]
    failures: list[KernelFailureWire]
