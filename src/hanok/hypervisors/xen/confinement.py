"""How far device models are kept from the rest of Dom0, as far as Xen 4.17 and QEMU 7.2 allow it.

All are started without capabilities but the one by which root opens files, and cannot get new
rights. Mode full: once it has opened what it needs, it becomes the VM's own user, and has none. PV
and PVH: the back ends of disks and channels open handles on Xen whenever a guest connects, which
only root may, so that they stay root.

Not used: libxl's ``dm_restrict``, by which handles on Xen would be good for one domain alone. With
QEMU 7.2 it was tried: the device model then asks /dev/null for events for ever, a whole CPU for
each guest (docs/design/0005-xen.md). A filter of system calls (``-sandbox``) is not in Debian's
build of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("files") / "device-model"


@dataclass(frozen=True)
class Confinement:
    """What can be had on this host: ``launcher`` starts device models, None: it cannot be run."""

    launcher: Path | None = None

    @property
    def summary(self) -> str:
        """How device models run here, for people."""
        if self.launcher is None:
            return f"as root with all capabilities, since {_LAUNCHER} cannot be run"
        return "mode full: as the VM's own user; para, hybrid: as root without capabilities"


def find_confinement(launcher: Path = _LAUNCHER) -> Confinement:
    """Return what this host has."""
    return Confinement(launcher if os.access(launcher, os.X_OK) else None)
