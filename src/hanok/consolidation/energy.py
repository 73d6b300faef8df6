"""Watts, kilowatt-hours and money of servers as they are, and of hosts as planned.

Idle power decides what consolidation saves, and of many servers nobody knows it. Where it is not
given, all is shown twice: with the idle power of old servers, 0.62 of that at peak, and with that
of new ones, 0.21 (medians of published SPECpower_ssj2008 results of 2007 and 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hanok.consolidation.request import Series
from hanok.consolidation.vectors import Floats
from hanok.model.fleet import POINTS, Costs, HostKindEntry, Power

OLD_IDLE, NEW_IDLE = 0.62, 0.21
SERVER_PEAK = 250.0
"""Watts of a server that says nothing: median of SPECpower results of 2007 to 2013 (233 to 278)."""
HOST_PEAK_CORE = 8.0
"""Watts a core of a host that says nothing: the upper end of medians of 2021 to 2024 (5 to 8)."""
HOURS = 8_760.0


@dataclass(frozen=True, eq=False)
class Machine:
    """A physical machine: its power, what is assumed as its peak, and its CPU share over time."""

    power: Power | None
    assumed_peak: float
    share: Series | Floats
    rack_units: int
    price: float | None = None


@dataclass(frozen=True)
class Energy:
    """Mean watts of the machines, kWh a year with cooling, and what those cost."""

    watts: float
    kwh_year: float
    money_year: float


def curve(power: Power | None, peak: float, idle_share: float) -> tuple[float, ...]:
    """Return watts at 0, 10, ... 100 %; the others count where ``power`` says nothing."""
    if power is not None and power.curve is not None:
        return tuple(power.curve)
    top = power.peak if power is not None and power.peak is not None else peak
    idle = power.idle if power is not None and power.idle is not None else idle_share * top
    return tuple(float(watts) for watts in np.linspace(idle, top, POINTS))


def kind_curve(entry: HostKindEntry) -> tuple[float, ...]:
    """Return the watts of a kind of host, which is taken as new where it does not say."""
    return curve(entry.watts, HOST_PEAK_CORE * entry.cores, NEW_IDLE)


def mean_watts(machine: Machine, idle_share: float) -> float:
    """Return the watts of one machine, on average over its time."""
    points = curve(machine.power, machine.assumed_peak, idle_share)
    shares = np.clip(np.asarray(machine.share, np.float64), 0.0, 1.0)
    return float(np.interp(shares, np.linspace(0.0, 1.0, POINTS), points).mean())


def energy_of(machines: Iterable[Machine], idle_share: float, costs: Costs) -> Energy:
    """Return what ``machines`` take with the idle power ``idle_share`` where it is not given."""
    watts = sum(mean_watts(machine, idle_share) for machine in machines)
    kwh = watts * HOURS / 1_000 * costs.pue
    return Energy(watts, kwh, kwh * costs.kwh)
