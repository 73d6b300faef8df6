"""What tests know of the machine that they run on, by their environment.

``HANOK_TEST_PATIENCE``: how many times longer than on an ordinary machine things may take.
``HANOK_TEST_ACCELERATION``: the file where a daemon on this very host keeps which accelerator it
measured; the tests' own daemons and drivers then need not measure it again, and use it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_FACTOR = float(os.environ.get("HANOK_TEST_PATIENCE", "1"))
_VERDICT = os.environ.get("HANOK_TEST_ACCELERATION")


def patient(seconds: float) -> float:
    """Return a limit for this machine. Only for limits that a passing test never reaches."""
    return seconds * _FACTOR


def is_outermost() -> bool:
    """Whether processes have the numbers here that the kernel's log tells of them.

    They have not in a process namespace, as a container or a run of CI has one. The number of the
    outermost is fixed: PROC_PID_INIT_INO in include/linux/proc_ns.h of Linux.
    """
    return Path("/proc/self/ns/pid").readlink() == Path(f"pid:[{0xEFFFFFFC}]")


def put_verdict(home: Path) -> None:
    """Put what was measured on this host into a new data directory."""
    if _VERDICT is not None:
        shutil.copy(_VERDICT, home / "acceleration.json")
