"""What a VM has, what it is to have at its next start, and what the host keeps for both: pure."""

from __future__ import annotations

from hanok.model.hardware import DataDisk, NicRecord, Pending
from hanok.model.vm import VmRecord, VmSpec

NO_PENDING = Pending()


def pending_of(record: VmRecord) -> Pending:
    """Return what is pending of a VM; nothing of it when nothing is."""
    return record.pending or NO_PENDING


def with_pending(record: VmRecord, pending: Pending) -> VmRecord:
    """Return ``record`` with ``pending``, of which only reasons that are still true are kept."""
    why = {name: text for name, text in pending.why.items() if name in pending.fields}
    kept = pending.model_copy(update={"why": why}) if pending.fields else None
    return record.model_copy(update={"pending": kept})


def folded(record: VmRecord) -> VmRecord:
    """Return a VM that does not run as it will be when it starts: nothing is pending then."""
    pending = record.pending
    if record.cpus_changed:
        record = record.model_copy(update={"cpus_changed": False})
    if pending is None:
        return record
    nics = record.nics if pending.nics is None else pending.nics
    return record.model_copy(
        update={
            "spec": record.spec.model_copy(
                update={
                    "cpus": pending.cpus or record.spec.cpus,
                    "memory": pending.memory or record.spec.memory,
                    "disk": pending.disk or record.spec.disk,
                    "networks": tuple(nic.network for nic in nics),
                }
            ),
            "nics": nics,
            "disks": record.disks if pending.disks is None else pending.disks,
            "pending": None,
        }
    )


def wanted_of(record: VmRecord) -> VmRecord:
    """Return a VM as it was last asked to be, whatever it is yet."""
    return folded(record)


def claimed(record: VmRecord) -> VmSpec:
    """Return the definition that the host keeps room for: the larger of what is and what comes.

    So a change that waits for a restart finds its room then.
    """
    pending = record.pending
    if pending is None:
        return record.spec
    spec = record.spec
    return spec.model_copy(
        update={
            "cpus": max(spec.cpus, pending.cpus or 0),
            "memory": max(spec.memory, pending.memory or 0),
            "disk": max(spec.disk, pending.disk or 0),
        }
    )


def claimed_nics(record: VmRecord) -> tuple[NicRecord, ...]:
    """Return the cards whose addresses are a VM's: those that it has and those that come."""
    coming = pending_of(record).nics or ()
    has = {nic.network for nic in record.nics}
    return (*record.nics, *(nic for nic in coming if nic.network not in has))


def claimed_disks(record: VmRecord) -> tuple[DataDisk, ...]:
    """Return the data disks that take room: those that it has and those that come."""
    coming = pending_of(record).disks or ()
    has = {disk.name for disk in record.disks}
    return (*record.disks, *(disk for disk in coming if disk.name not in has))


def free_port(record: VmRecord, ports: int) -> int | None:
    """Return the lowest hot-plug port that nothing of a VM is in, None when all are taken."""
    taken = {nic.port for nic in claimed_nics(record)}
    taken |= {disk.port for disk in claimed_disks(record) if disk.attached}
    return next((port for port in range(ports) if port not in taken), None)


def changed_shape(record: VmRecord) -> str | None:
    """Return why clones of a VM could not have its shape, None when they could."""
    if any(disk.attached for disk in record.disks):
        return "it has data disks, which clones would share; detach them ('hanok disk detach')"
    if any(nic.port is not None for nic in record.nics):
        return "it has network cards that were plugged in while it ran, which clones have not"
    if record.cpus_changed:
        # Its disks have a queue for each vCPU that it was started with; a clone's would have more.
        return "its vCPUs were changed while it ran; restart it first"
    if record.pending is not None:
        return f"changes of it are pending ({', '.join(record.pending.fields)}); restart it first"
    return None
