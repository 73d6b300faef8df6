"""What the restart policy makes of a VM that has ended: pure, but for the clock at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Protocol

from tenacity import AsyncRetrying, RetryCallState, wait_exponential

from hanok.model.keeping import Restart, RestartsSeen, RestartWhen
from hanok.model.vm import VmRecord

# How a hypervisor calls an end that the guest itself asked for.
_BY_GUEST = ("guest-shutdown", "")


@dataclass(frozen=True)
class End:
    """How a VM has ended, not by its user: ``why`` in words, ``failed`` unless its guest wished it.

    ``reason``: what is kept of it when it stays ended; None: that it is stopped says all.
    """

    failed: bool
    why: str
    reason: str | None = None


def crashed(why: str) -> End:
    """Return the end of a VM that failed."""
    return End(True, why, why)


def ended(detail: str) -> End:
    """Return the end of a VM whose process ended in order; ``detail`` as the hypervisor calls it.

    A process that was told to end by somebody on the host has not ended by its guest's wish.
    """
    if detail in _BY_GUEST:
        return End(False, "its guest powered itself off")
    return End(True, f"its process was ended ({detail})")


def plan_restart(record: VmRecord, end: End, now: float) -> RestartsSeen | None:
    """Return the restart to come, None when the VM stays ended; ``now`` is by the epoch."""
    policy = record.spec.restart
    if not applies(record, end):
        return None
    streak = 0 if ran_well(record, now) else record.restarts.streak
    if policy.retries is not None and streak >= policy.retries:
        return None
    due = now + pause_before(policy, streak + 1)
    return record.restarts.model_copy(update={"streak": streak, "next": due, "reason": end.why})


def applies(record: VmRecord, end: End) -> bool:
    """Return whether the VM's policy is to start it again after such an end, limits aside."""
    when = record.spec.restart.policy
    if record.internal or when is RestartWhen.NO:
        return False
    return end.failed or when is RestartWhen.ALWAYS


def ran_well(record: VmRecord, now: float) -> bool:
    """Return whether the VM was ready for long enough to begin to count anew."""
    if record.started is None or record.ready_seconds is None:
        return False
    return now - (record.started + record.ready_seconds) >= record.spec.restart.reset_after


def pause_before(policy: Restart, number: int) -> float:
    """Return the seconds before the restart with this number in a row, counted from 1."""
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = number
    return wait_exponential(multiplier=policy.delay, max=policy.longest)(state)


def counted(policy: Restart, number: int) -> str:
    """Return how a restart is called: ``restart 2 of 5``."""
    return f"restart {number}" + ("" if policy.retries is None else f" of {policy.retries}")


class Clock(Protocol):
    """The time, which tests set."""

    def now(self) -> float:
        """Return seconds since the epoch: what is kept must hold for the next daemon too."""
        ...

    async def pause(self, seconds: float, woken: asyncio.Event) -> None:
        """Return after ``seconds``, or as soon as ``woken`` is set."""
        ...


class SystemClock:
    """The host's clock."""

    def now(self) -> float:
        """See Clock.now."""
        return time.time()

    async def pause(self, seconds: float, woken: asyncio.Event) -> None:
        """See Clock.pause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await woken.wait()
