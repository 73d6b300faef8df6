"""Failpoints: the daemon kills itself at a named step, so that tests see what a crash there leaves.

Only a daemon started with HANOK_FAILPOINT has one.
"""

from __future__ import annotations

import os
import signal

# Every step of run, stop and delete, in the order in which they happen.
START_STEPS = (
    "start.begin",
    "start.image",
    "start.networks",
    "start.folder",
    "start.disk",
    "start.seed",
    "start.attach",
    "start.process",
    "start.publish",
    "start.guest",
    "start.ready",
)
STOP_STEPS = ("stop.begin", "stop.asked", "stop.gone", "stop.detached", "stop.end")
DELETE_STEPS = ("delete.begin", "delete.stopped", "delete.folder", "delete.end")
# Every step of a clone that goes on from memory, after its operation was accepted.
CLONE_STEPS = (
    "clone.accepted",
    "clone.files",
    "clone.process",
    "clone.connected",
    "clone.resumed",
    "clone.identity",
    "start.ready",
)
# Every step of the restart of a VM that has failed, besides those of a start.
RESTART_STEPS = ("restart.waiting", "revive.accepted", "restart.counted")
HEAL_STEPS = ("heal.accepted",)
IMPORT_STEPS = ("import.accepted", "import.begin", "import.taken")
EXPORT_STEPS = (
    "export.accepted",
    "export.begin",
    "export.jail",
    "export.written",
    "export.made",
)
TEMPLATE_STEPS = ("template.accepted", "template.frozen", "template.saved", "template.end")
# Every step of a change, after its operation was accepted, of a VM that is up.
SET_STEPS = (
    "set.accepted",
    "set.begin",
    "set.name",
    "set.publish",
    "set.nics",
    "set.disks",
    "set.memory",
    "set.disk",
    "set.cpus",
    "set.end",
)
ALL_STEPS = (
    "run.accepted",
    *START_STEPS,
    *STOP_STEPS,
    *DELETE_STEPS,
    *CLONE_STEPS,
    *RESTART_STEPS,
    *HEAL_STEPS,
    *TEMPLATE_STEPS,
    *IMPORT_STEPS,
    *EXPORT_STEPS,
    *SET_STEPS,
)


class Failpoints:
    """Kills this process when the chosen step is reached."""

    def __init__(self, chosen: str | None) -> None:
        self._chosen = chosen

    def hit(self, step: str) -> None:
        """Die, as by ``kill -9``, if ``step`` is the chosen one."""
        if self._chosen == step:
            os.kill(os.getpid(), signal.SIGKILL)
