"""What is asked of QEMU around a migration, on a monitor that is played."""

from __future__ import annotations

from collections.abc import Mapping

from hanok.hypervisors.qemu.migration import Migration


class Played:
    """A monitor that tells of the completion before the run state is what it will be."""

    def __init__(self, states: list[str]) -> None:
        self.migration = Migration(self)
        self.asked: list[str] = []
        self._states = states

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Answer as QEMU does."""
        self.asked.append(command)
        if command == "migrate":
            self.migration.on_status("completed")
        if command == "query-status":
            return {"status": self._states.pop(0)}
        return {}


async def test_a_migration_has_ended_when_the_run_state_says_so() -> None:
    """Else a ``cont`` may come before QEMU stops the machine's state for good."""
    monitor = Played(["paused", "finish-migrate", "postmigrate"])
    await monitor.migration.send("fd:x")
    assert monitor.asked == ["migrate", *["query-status"] * 3]
