"""What VMs really take of memory, measured now and then and kept.

A measurement walks the page tables of a process: up to some milliseconds each. So admission never
waits for one: it takes what was last measured and has it measured again meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hanok.errors import HanokError
from hanok.hypervisors.base import Hypervisor
from hanok.model.vm import CloneKind, VmRecord, VmState

_SAMPLE = 8
_CLONES_AGE = 10.0
_TOTALS_AGE = 5.0
_RUNS = (VmState.RUNNING, VmState.READY, VmState.PAUSED)


@dataclass(frozen=True)
class Totals:
    """Bytes that the processes of all VMs take, each page counted once, and save by sharing."""

    used: int
    shared: int


class Footprints:
    """Measures VMs through the hypervisor. One event loop."""

    def __init__(self, hypervisor: Hypervisor, clock: Callable[[], float] = time.monotonic) -> None:
        self._hypervisor = hypervisor
        self._clock = clock
        self._clones: dict[str, tuple[float, tuple[int, ...]]] = {}
        self._totals: tuple[float, frozenset[str], Totals] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def of_clones(self, template: str) -> tuple[int, ...]:
        """Return the proportional memory of some instant clones, as last measured; () if never."""
        return self._clones.get(template, (0.0, ()))[1]

    async def measure_clones(self, template: str, everyone: Iterable[VmRecord]) -> tuple[int, ...]:
        """Return the same, measured within the last seconds, where clones run."""
        await self._measure(template, _instant_clones(everyone).get(template, []))
        return self.of_clones(template)

    def refresh_soon(self, everyone: Iterable[VmRecord]) -> None:
        """Measure clones in the background where what is known is old; at most one at a time."""
        if self._refreshing is not None and not self._refreshing.done():
            return
        old = {
            template: clones
            for template, clones in _instant_clones(everyone).items()
            if self._is_old(template)
        }
        if old:
            self._refreshing = asyncio.create_task(self._refresh(old))

    async def totals(self, up: Sequence[VmRecord]) -> Totals:
        """Return what all of ``up`` take together, measured within the last seconds."""
        uuids = frozenset(record.uuid for record in up)
        async with self._lock:
            if self._totals is not None:
                measured, measured_of, totals = self._totals
                if measured_of == uuids and self._clock() - measured < _TOTALS_AGE:
                    return totals
            used = shared = 0
            for record in up:
                resident, proportional = await self._one(record)
                used += proportional
                shared += max(0, resident - proportional)
            totals = Totals(used, shared)
            self._totals = self._clock(), uuids, totals
            return totals

    async def _refresh(self, templates: dict[str, list[VmRecord]]) -> None:
        for template, clones in templates.items():
            await self._measure(template, clones)

    def _is_old(self, template: str) -> bool:
        known = self._clones.get(template)
        return known is None or self._clock() - known[0] >= _CLONES_AGE

    async def _measure(self, template: str, clones: list[VmRecord]) -> None:
        """Measure some of ``clones``, the old and the new; keep what was known without any."""
        if not clones or not self._is_old(template):
            return
        ordered = sorted(clones, key=lambda record: record.started or 0)
        step = max(1, len(ordered) / _SAMPLE)
        chosen = [ordered[int(index * step)] for index in range(min(_SAMPLE, len(ordered)))]
        found = [(await self._one(record))[1] for record in chosen]
        measured = tuple(size for size in found if size > 0)
        if measured:
            self._clones[template] = self._clock(), measured

    async def _one(self, record: VmRecord) -> tuple[int, int]:
        """Return resident and proportional bytes; zero when the VM has just stopped."""
        try:
            found = await self._hypervisor.statistics(record.uuid)
        except HanokError:
            return 0, 0
        proportional = found.resident if found.proportional is None else found.proportional
        return found.resident, proportional


def _instant_clones(everyone: Iterable[VmRecord]) -> dict[str, list[VmRecord]]:
    """Return the instant clones that run, by template."""
    found: defaultdict[str, list[VmRecord]] = defaultdict(list)
    for record in everyone:
        instant = record.clone is not None and record.clone.kind is CloneKind.INSTANT
        if instant and record.clone is not None and record.state in _RUNS:
            found[record.clone.template].append(record)
    return dict(found)
