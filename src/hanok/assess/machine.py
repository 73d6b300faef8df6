"""What this machine uses at this moment, by psutil, as an ordinary user."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import psutil

from hanok.assess.devices import counted_disks, is_counted_card
from hanok.model.usage import Metric, Sizes

Counters = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Reading:
    """The counters of a machine at one moment.

    ``busy``: seconds since it started that its cores worked, together; ``memory``: bytes in use;
    ``disks``: bytes read and written by disk, ``cards``: bytes received and sent by network card.
    """

    busy: float
    memory: float
    disks: Counters
    cards: Counters


class Machine(Protocol):
    """A machine that can be measured."""

    def read(self) -> Reading:
        """Return its counters now."""
        ...

    def sizes(self) -> Sizes:
        """Return what it has now."""
        ...


class ThisMachine:
    """The machine that this runs on."""

    def read(self) -> Reading:
        """Return its counters now.

        Waiting for disks is no work, and time that a hypervisor gave to others (steal) is not this
        machine's. User time has guests' time in it (proc_stat(5)).
        """
        times = psutil.cpu_times()
        busy = times.user + times.nice + times.system + times.irq + times.softirq
        memory = psutil.virtual_memory()
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False)
        cards = psutil.net_io_counters(pernic=True, nowrap=False)
        return Reading(
            busy,
            float(memory.total - memory.available),
            {
                name: (disks[name].read_bytes, disks[name].write_bytes)
                for name in counted_disks(disks)
            },
            {
                name: (found.bytes_recv, found.bytes_sent)
                for name, found in cards.items()
                if is_counted_card(name)
            },
        )

    def sizes(self) -> Sizes:
        """Return what it has now; its disk is the file systems on devices of its own."""
        return Sizes(
            cores=psutil.cpu_count(),
            memory=psutil.virtual_memory().total,
            disk=_file_systems() or None,
        )


def _file_systems() -> int:
    """Return the bytes of all mounted file systems that are on devices, each once."""
    found: dict[str, int] = {}
    for partition in psutil.disk_partitions(all=False):
        if partition.device.startswith("/dev/loop"):
            continue
        try:
            status = os.statvfs(partition.mountpoint)
        except OSError:
            continue  # an ordinary user may not look there
        found[partition.device] = status.f_blocks * status.f_frsize
    return sum(found.values())


def host_name() -> str:
    """Return the first part of this machine's name."""
    return socket.gethostname().partition(".")[0] or "localhost"


def rates(
    before: Reading, after: Reading, seconds: float, cores: int | None
) -> tuple[float | None, ...]:
    """Return what was used in the ``seconds`` between two readings, by ``Metric``.

    CPU in cores, memory in bytes (as it is at the end), the others in bytes a second. A counter
    that went back has started anew: what it lost is not known, so the value is None.
    """
    busy = (after.busy - before.busy) / seconds
    if cores is not None:
        busy = min(busy, float(cores))  # the kernel counts in ticks of 10 ms
    values: dict[Metric, float | None] = {
        Metric.CPU: round(busy, 4) if busy >= 0 else None,
        Metric.MEMORY: after.memory,
    }
    for metric, old, new, at in (
        (Metric.DISK_READ, before.disks, after.disks, 0),
        (Metric.DISK_WRITE, before.disks, after.disks, 1),
        (Metric.NETWORK_RECEIVE, before.cards, after.cards, 0),
        (Metric.NETWORK_SEND, before.cards, after.cards, 1),
    ):
        values[metric] = _rate(old, new, at, seconds)
    return tuple(_bounded(metric, values[metric]) for metric in Metric)


def _rate(old: Counters, new: Counters, at: int, seconds: float) -> float | None:
    """Return the sum over the devices that were there all the time."""
    steps = [new[name][at] - old[name][at] for name in new.keys() & old.keys()]
    return round(sum(steps) / seconds) if min(steps, default=0) >= 0 else None


def _bounded(metric: Metric, value: float | None) -> float | None:
    return value if value is not None and value <= metric.limit else None
