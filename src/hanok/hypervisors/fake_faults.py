"""What goes wrong with the fake hypervisor, as tests wish it."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field

from hanok.errors import HypervisorError
from hanok.model.vm import Mode


class Fault(BaseModel):
    """What happens to a method: first a delay in seconds, then an error, at most ``times`` times.

    Without ``error`` the method goes on after the delay; ``times`` None means always.
    """

    error: str | None = None
    delay: float = 0.0
    times: int | None = None


class FakeFaults(BaseModel):
    """What goes wrong, by the name of the method of the contract (``start``, ``kill``, ...).

    Tests may change it at any time. A daemon in another process is reached by the file
    ``faults.json`` in the fake's folder, which has these fields too and replaces them.
    """

    methods: dict[str, Fault] = Field(default_factory=dict)
    ignore_power_button: bool = False
    silent_agent: bool = False
    fingerprint: str = "fake 1"
    identity: str | None = Field(default=None, description="why guests take no identity")
    shown_mode: Mode | None = Field(default=None, description="what guests show, whatever they run")

    def fail(self, method: str, error: str, *, times: int | None = None, delay: float = 0) -> None:
        """Let ``method`` raise HypervisorError with the text ``error``."""
        self.methods[method] = Fault(error=error, delay=delay, times=times)

    def delay(self, method: str, seconds: float, *, times: int | None = None) -> None:
        """Let ``method`` take ``seconds`` longer."""
        self.methods[method] = Fault(delay=seconds, times=times)

    async def hit(self, method: str) -> None:
        """Do what is to happen to ``method`` now. Raises HypervisorError."""
        fault = self.methods.get(method)
        if fault is None or fault.times == 0:
            return
        if fault.times is not None:
            fault.times -= 1
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.error is not None:
            raise HypervisorError(fault.error, hint="this fault was injected")
