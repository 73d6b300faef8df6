"""QEMU's migration of one process: how RAM and devices get out of it and into it.

Source: QEMU's qapi/migration.json and docs/devel/migration.rst.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from hanok.errors import HypervisorError

# Statuses of MigrationStatus at which nothing goes on any more.
_OVER = ("none", "completed", "failed", "cancelled")
# QEMU sends 128 MiB/s unless told otherwise, so as not to fill a network.
_BANDWIDTH = 1 << 40
_SETTLE_LIMIT = 5.0
_CANCEL_LIMIT = 10.0
# An event tells of a change; should it be lost with its connection, asking finds out.
_ASK_AFTER = 0.5


class Monitor(Protocol):
    """What takes QMP commands."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object: ...


class Migration:
    """The migration that a process sends or takes; one at a time."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._status = "none"
        self._changed = asyncio.Event()

    def on_status(self, status: str) -> None:
        """Take the status that a MIGRATION event tells."""
        self._status = status
        self._changed.set()

    async def prepare(self, *, devices_only: bool) -> None:
        """Set how the next migration is done; ``devices_only`` leaves out RAM that is a shared
        file (x-ignore-shared), and must be the same on both sides.

        Nothing is announced: each clone would tell its network the template's address.
        """
        ignored = {"capability": "x-ignore-shared", "state": devices_only}
        told = {"capability": "events", "state": True}
        await asyncio.gather(
            self._monitor.execute("migrate-set-capabilities", {"capabilities": [ignored, told]}),
            self._monitor.execute(
                "migrate-set-parameters", {"max-bandwidth": _BANDWIDTH, "announce-rounds": 0}
            ),
        )

    async def send(self, uri: str) -> None:
        """Send all to ``uri`` and return when it is sent. Raises HypervisorError."""
        self._status = "none"
        await self._monitor.execute("migrate", {"uri": uri})
        await self.completed()
        await self._wait_settled()

    async def _wait_settled(self) -> None:
        """Wait until the sender's run state is what it is after a migration.

        QEMU tells of the completion before it sets that (migration_iteration_finish): a ``cont`` in
        between would be forgotten, and a machine that runs be called stopped ever after.
        """
        await AsyncRetrying(
            stop=stop_after_delay(_SETTLE_LIMIT),
            wait=wait_fixed(0.002),
            retry=retry_if_result(lambda settled: not settled),
            retry_error_callback=lambda _: None,  # a QEMU that has no such state
        )(self._is_settled)

    async def _is_settled(self) -> bool:
        answer = await self._monitor.execute("query-status")
        return isinstance(answer, Mapping) and answer.get("status") == "postmigrate"

    async def take(self, uri: str) -> None:
        """Begin to take what comes from ``uri``; ``completed`` waits for its end."""
        self._status = "none"
        await self._monitor.execute("migrate-incoming", {"uri": uri})

    async def completed(self) -> None:
        """Wait until the migration is complete. Raises HypervisorError when it failed.

        A process that cannot take what it is sent ends itself: the caller waits for that too.
        """
        while self._status not in _OVER[1:]:
            self._changed.clear()
            try:
                async with asyncio.timeout(_ASK_AFTER):
                    await self._changed.wait()
            except TimeoutError:
                self._status = (await self._ask())[0]
        if self._status != "completed":
            status, cause = await self._ask()
            raise HypervisorError(f"QEMU could not move the machine's state: {cause or status}")

    async def end(self) -> None:
        """Cancel what still goes on, and return when nothing does. Raises HypervisorError."""
        if await self._is_over():
            return
        await self._monitor.execute("migrate_cancel")
        await AsyncRetrying(
            stop=stop_after_delay(_CANCEL_LIMIT),
            wait=wait_fixed(0.01),
            retry=retry_if_result(lambda over: not over),
            retry_error_callback=lambda _: None,
        )(self._is_over)

    async def _is_over(self) -> bool:
        return (await self._ask())[0] in _OVER

    async def _ask(self) -> tuple[str, str]:
        """Return the status, and why when it is ``failed``."""
        answer = await self._monitor.execute("query-migrate")
        if not isinstance(answer, Mapping):
            return "none", ""
        return str(answer.get("status", "none")), str(answer.get("error-desc", ""))
