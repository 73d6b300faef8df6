"""Why systemd tells the daemon to end: that it go on later, or that guests go down too."""

from __future__ import annotations

from enum import StrEnum

from hanok.errors import HanokError
from hanok.proc import Runner
from hanok.systemd.names import job_in
from hanok.systemd.scopes import own_unit

_LIMIT = 20.0


class Ending(StrEnum):
    """Why the daemon ends: it is back soon, its unit is stopped, or the whole host is."""

    RESTART = "restart"
    STOP = "stop"
    HOST = "host"


async def why_ending(runner: Runner) -> Ending:
    """Return why this daemon was told to end. One that is no unit's main process: RESTART."""
    unit = own_unit()
    if unit is None:
        return Ending.RESTART
    try:
        state = await runner.run(["systemctl", "is-system-running"], timeout=_LIMIT, check=False)
        if state.stdout.decode().strip() == "stopping":
            return Ending.HOST
        jobs = await runner.run(["systemctl", "list-jobs", "--no-legend", "--plain", unit])
    except HanokError:
        return Ending.RESTART
    return Ending.STOP if job_in(jobs.stdout.decode(), unit) == "stop" else Ending.RESTART
