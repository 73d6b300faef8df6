"""What ``hanok plan`` answers: plan.json, and plans that people write."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, model_validator

from hanok.model.base import Frozen, Size
from hanok.model.fleet import MOST_SERVERS, Label

Traffic = Literal["disk_io", "network_in", "network_out"]
Objective = Literal["hosts", "money", "watts"]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MOST_HOSTS = 200_000


class Inputs(Frozen):
    """What was planned from; paths are relative to the plan's folder. ``digest`` is of the content.

    ``hosts`` is None for the usual hosts that are taken without a hosts file.
    """

    servers: str
    usage: str | None = None
    hosts: str | None = None
    fold: bool = False
    digest: str = ""


class Search(Frozen):
    """How the plan was searched for; ``steps`` are moves tried.

    ``reproducible``: the same input, effort and seed give this plan again, on any machine.
    """

    effort: int = Field(ge=0)
    seed: int = 0
    objective: Objective = "hosts"
    time_limit: float | None = None
    steps: Count = 0
    stopped: bool = False
    reproducible: bool = True


class Bound(Frozen):
    """No plan has fewer hosts in use than ``hosts``, for this reason; ``gap`` is above it."""

    hosts: Count
    reason: str
    gap: Amount


class Grid(Frozen):
    """The intervals that were planned on; ``folded``: times of day of days that differ."""

    start: AwareDatetime
    interval: float = Field(gt=0)
    intervals: int = Field(ge=1)
    folded: bool = False


class Forecast(Frozen):
    """A host's CPU over a day, in its own cores: mean and highest by time of day (UTC).

    Or its traffic, in bytes a second.

    ``room`` is what VMs may use, ``capacity`` what they can; None: that time was not measured.
    ``risk`` is the share of time in which they would want more than there is, if each did what it
    did an hour earlier or later, or on another of the measured days.
    """

    step: float = Field(gt=0)
    mean: tuple[float | None, ...] = Field(max_length=1440)
    high: tuple[float | None, ...] = Field(max_length=1440)
    room: Amount
    capacity: Amount
    risk: float = Field(ge=0, le=1)
    overload: float = Field(ge=0, le=1)


class PlanHost(Frozen):
    """A host of the plan. ``bought``: it is not there yet; ``spare``: it is kept for a failure.

    ``shares`` of what may be used, by resource; ``limit`` says what stops one more VM. ``traffic``
    is forecast where the host says what its disks and network can move.
    """

    name: Label
    kind: Label
    rack: str = ""
    bought: bool = False
    spare: bool = False
    vms: Count = 0
    shares: dict[str, float] = Field(default_factory=dict)
    limit: str = ""
    watts: Amount = 0.0
    forecast: Forecast | None = None
    traffic: dict[Traffic, Forecast] = Field(default_factory=dict)


class PlanVm(Frozen):
    """A VM of the plan: where it goes, how large it is (bytes), why, and what its server had."""

    name: Label
    host: Label
    vcpus: int = Field(ge=1)
    memory: int = Field(ge=1)
    disk: int | None = None
    cores_before: int = Field(ge=1)
    memory_before: int = Field(ge=1)
    why_here: str = ""
    why_size: str = ""


class Energy(Frozen):
    """Mean watts, kWh a year with cooling, and money a year for energy and rack units.

    ``idle_share``: the idle power, as a share of that at peak, where it is not known.
    """

    idle_share: float
    watts: Amount
    kwh_year: Amount
    money_year: Amount


class Side(Frozen):
    """Before, or after: machines, rack units, energy with old and new idle power, hosts to buy.

    ``purchase`` is None where a price is not known.
    """

    hosts: Count
    rack_units: Count
    old_idle: Energy
    new_idle: Energy
    purchase: Amount | None = None


class PlanFile(Frozen):
    """plan.json."""

    format: Literal[1] = 1
    inputs: Inputs
    search: Search
    grid: Grid
    vms: tuple[PlanVm, ...] = Field(max_length=MOST_SERVERS)
    hosts: tuple[PlanHost, ...] = Field(max_length=MOST_HOSTS)
    stays: tuple[Label, ...] = Field(default=(), max_length=MOST_SERVERS)
    bound: Bound
    before: Side
    after: Side
    currency: str = "EUR"
    assumptions: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[PlanHost, ...]:
        """The hosts that have VMs."""
        return tuple(host for host in self.hosts if not host.spare)

    @property
    def spares(self) -> tuple[PlanHost, ...]:
        """The hosts that are kept for failures."""
        return tuple(host for host in self.hosts if host.spare)


class HandHost(Frozen):
    """A host to be bought, in a plan made by hand."""

    kind: Label
    rack: str = Field(default="", max_length=100)


class HandVm(Frozen):
    """Where a VM goes, and its size where it is not that of rightsizing."""

    host: Label
    vcpus: int | None = Field(default=None, ge=1, le=1024)
    memory: Size | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_host(cls, value: Any) -> Any:
        """Accept the host alone."""
        return {"host": value} if isinstance(value, str) else value


class HandMade(Frozen):
    """A plan that a person wrote, to be checked: VMs by name, hosts to buy, spare hosts.

    assignment: {web-1: host-a, db-1: {host: r650-1, memory: 16G}}
    buy: {r650-1: {kind: r650, rack: new-1}}
    spares: [host-b]
    """

    format: Literal[1] = 1
    assignment: dict[Label, HandVm] = Field(max_length=MOST_SERVERS)
    buy: dict[Label, HandHost] = Field(default_factory=dict, max_length=MOST_HOSTS)
    spares: tuple[Label, ...] = Field(default=(), max_length=MOST_HOSTS)
