"""The disk files of a VM that does not run: as large as its definition says, and all it has."""

from __future__ import annotations

from hanok.model.vm import VmRecord
from hanok.services.machines import VmFiles, account_of, files_of
from hanok.services.parts import Parts
from hanok.storage.volumes import create_empty, grow


async def make_added(parts: Parts, record: VmRecord) -> None:
    """Make the files of data disks that are not there yet, and remove those that it has no more.

    The VM does not run.
    """
    files, account = files_of(parts.settings, record.uuid), account_of(record.uid)
    for disk in record.disks:
        path = files.attached_disk(disk.name)
        if not path.exists() and path.parent.exists():
            await create_empty(parts.runner, path=path, size=disk.size, account=account)
    _forget_others(files, record)


async def grow_root(parts: Parts, record: VmRecord) -> None:
    """Grow the root disk to what it is to be, if it is there. The VM does not run."""
    files, account = files_of(parts.settings, record.uuid), account_of(record.uid)
    await grow(parts.runner, files.disk, record.spec.disk, account)


def _forget_others(files: VmFiles, record: VmRecord) -> None:
    known = {files.attached_disk(disk.name) for disk in record.disks}
    for path in files.machine.glob(files.attached_disk("*").name):
        if path not in known:
            path.unlink(missing_ok=True)
