"""What is pending of a VM, in words."""

from __future__ import annotations

from hanok.model.hardware import DataDisk
from hanok.model.views import PendingView
from hanok.model.vm import VmRecord
from hanok.services.shape import pending_of, wanted_of
from hanok.units import format_size

_NAMES = {"nics": "networks", "disks": "data disks", "cpus": "vCPUs"}
_AT_WORK = "it is being done"


def pending_views(record: VmRecord) -> list[PendingView]:
    """Return what a VM was asked to be and is not yet, with what it takes."""
    pending, wanted = pending_of(record), wanted_of(record)
    return [
        PendingView(
            field=_NAMES.get(name, name),
            now=_text(name, record),
            wanted=_text(name, wanted),
            needs=pending.why.get(name, _AT_WORK),
        )
        for name in pending.fields
    ]


def _text(name: str, record: VmRecord) -> str:
    match name:
        case "cpus":
            return str(record.spec.cpus)
        case "memory":
            return format_size(record.spec.memory)
        case "disk":
            return format_size(record.spec.disk)
        case "nics":
            return ", ".join(nic.network for nic in record.nics) or "none"
    return ", ".join(_disk(disk) for disk in record.disks if disk.attached) or "none"


def _disk(disk: DataDisk) -> str:
    return f"{disk.name} ({format_size(disk.size)})"
