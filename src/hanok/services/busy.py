"""Whether anyone is at a VM: operations that must find it as they knew it."""

from __future__ import annotations

from hanok.errors import Conflict
from hanok.model.vm import VmRecord
from hanok.services.parts import Parts

# What a later stop or delete replaces: nobody needs to wait for a guest that is to go.
BRINGS_UP = ("run", "start", "restart", "resume", "revive", "heal")
EXPORT = "export"
_ON_VMS = (*BRINGS_UP, "stop", "pause", "delete", "set", EXPORT)


async def check_idle(parts: Parts, record: VmRecord, verb: str) -> None:
    """Raise Conflict while an operation on the VM waits or runs: it cannot be ``verb`` now."""
    for operation in await parts.store.operations(unfinished=True):
        on_it = operation.kind in _ON_VMS and operation.target == record.spec.name
        if on_it or record.uuid in operation.arguments.get("vms", ()):
            raise Conflict(
                f"{record.spec.name} cannot be {verb} just now: a {operation.kind} of it is"
                " under way",
                hint=f"'hanok operations follow {operation.id}' waits for its end",
            )


async def check_not_exported(parts: Parts, record: VmRecord) -> None:
    """Raise Conflict while the VM's disk is being exported: it must not change meanwhile."""
    for operation in await parts.store.operations(unfinished=True):
        if operation.kind == EXPORT and record.uuid in operation.arguments.get("vms", ()):
            raise Conflict(
                f"{record.spec.name} is held: its disk is being exported",
                hint=f"'hanok operations follow {operation.id}' waits for its end,"
                f" 'hanok operations cancel {operation.id}' ends it",
            )
