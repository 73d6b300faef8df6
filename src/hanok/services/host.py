"""Work on the host itself, as operations."""

from __future__ import annotations

from typing import Any

from hanok.errors import Unsupported
from hanok.hypervisors.optional import CanReprobe
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts


class HostService:
    """Measures again what the hypervisor can do here."""

    def __init__(self, parts: Parts, operations: Operations) -> None:
        self._parts = parts
        operations.register("probe", self._probe, cancellable=True)

    async def _probe(self, work: Work) -> dict[str, Any]:
        hypervisor = self._parts.hypervisor
        if not isinstance(hypervisor, CanReprobe):
            raise Unsupported(f"{hypervisor.name} has nothing to measure")
        work.report("booting a small guest to see which acceleration works", None)
        facts = await hypervisor.probe_again()
        return facts.model_dump(mode="json")
