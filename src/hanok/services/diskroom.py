"""Room on the file systems that hold Hanok's data, and VMs that met a full one."""

from __future__ import annotations

from pathlib import Path

from hanok.config import Settings
from hanok.filesystems import FileSystem, disk_full, file_system_of
from hanok.model.views import FileSystemView
from hanok.model.vm import VmRecord
from hanok.services.machines import files_of
from hanok.units import GIB, MIB, format_size

# What must be free before a VM that met a full file system goes on: it would else only meet it
# again, a few writes later.
ROOM_TO_GO_ON = 64 * MIB
# What stays free in any case of what a file of its user's choice may take.
KEPT_FREE = 1 * GIB


def find_file_systems(settings: Settings) -> list[FileSystemView]:
    """Return the file systems that hold data of Hanok, each with what is on it."""
    places = {
        "database": settings.database,
        "disks of VMs": settings.vms,
        "templates": settings.templates,
        "images": settings.images,
        "uploads": settings.uploads,
        "exports": settings.exports,
    }
    found: dict[int, tuple[FileSystem, list[str]]] = {}
    for name, path in places.items():
        here = file_system_of(path)
        found.setdefault(here.device, (here, []))[1].append(name)
    return [
        FileSystemView(
            mount=str(one.mount),
            holds=names,
            size=one.size,
            free=one.free,
            percent=one.percent,
            level=one.level,
        )
        for one, names in found.values()
    ]


def check_room_for(folder: Path, what: str, needed: int) -> int:
    """Return the bytes that a new file in ``folder`` may take. Raises DiskFull below ``needed``."""
    room = file_system_of(folder).free - KEPT_FREE
    if room < needed:
        raise disk_full(folder, what, needed + KEPT_FREE)
    return room


def check_room_to_go_on(settings: Settings, record: VmRecord) -> None:
    """Raise DiskFull when a VM that met a full file system would only meet it again."""
    disk = files_of(settings, record.uuid).disk
    if record.starved and file_system_of(disk).free < ROOM_TO_GO_ON:
        raise disk_full(disk, f"{record.spec.name} to go on", ROOM_TO_GO_ON)


def why_starved(settings: Settings, record: VmRecord, detail: str) -> str:
    """Return why a VM is paused whose disk met a full file system, and what would let it go on."""
    files = files_of(settings, record.uuid)
    here = file_system_of(files.disk)
    try:
        taken = files.disk.stat().st_blocks * 512
    except OSError:
        taken = 0
    left = max(0, record.spec.disk - taken)
    return (
        f"it is paused, and nothing is lost: {detail}; the file system {here.mount} has"
        f" {format_size(here.free)} left, and its disk may still grow by {format_size(left)};"
        f" it goes on by itself once {format_size(ROOM_TO_GO_ON)} are free there"
    )
