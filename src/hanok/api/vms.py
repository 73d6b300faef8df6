"""Routes of VMs: their life."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from hanok.api.common import CurrentServices, body_of, describes
from hanok.api.roles import operator, viewer
from hanok.model.base import Frozen
from hanok.model.change import DiskRequest, VmChange
from hanok.model.operation import Operation
from hanok.model.views import VmDetail, VmView
from hanok.model.vm import VmSpec

router = APIRouter(prefix="/vms", tags=["VMs"])


class StopRequest(Frozen):
    """How to stop a VM."""

    force: bool = False
    timeout: float | None = Field(default=None, ge=0, le=3600, description="seconds")


@router.get("")
@viewer
async def list_vms(services: CurrentServices) -> list[VmView]:
    """Return all VMs."""
    return await services.views.vms()


@router.post("", status_code=202, openapi_extra=describes(VmSpec))
@operator
async def run_vm(
    services: CurrentServices, spec: Annotated[VmSpec, Depends(body_of(VmSpec))]
) -> Operation:
    """Create a VM and bring it up."""
    return await services.vms.run(spec)


@router.get("/{vm}")
@viewer
async def show_vm(services: CurrentServices, vm: str) -> VmDetail:
    """Return everything about one VM."""
    return await services.views.vm(vm)


@router.patch("/{vm}", status_code=202, openapi_extra=describes(VmChange))
@operator
async def change_vm(
    services: CurrentServices, vm: str, wanted: Annotated[VmChange, Depends(body_of(VmChange))]
) -> Operation:
    """Change a VM: at once where that can be, else at its next start."""
    return await services.changes.change(vm, wanted)


@router.post("/{vm}/disks", status_code=202, openapi_extra=describes(DiskRequest))
@operator
async def attach_disk(
    services: CurrentServices,
    vm: str,
    wanted: Annotated[DiskRequest, Depends(body_of(DiskRequest))],
) -> Operation:
    """Add a data disk to a VM, or attach one again that was detached."""
    return await services.changes.attach_disk(vm, wanted)


@router.delete("/{vm}/disks/{disk}", status_code=202)
@operator
async def detach_disk(
    services: CurrentServices, vm: str, disk: str, delete: Annotated[bool, Query()] = False
) -> Operation:
    """Detach a data disk of a VM; with delete, remove it with all that is on it."""
    return await services.changes.detach_disk(vm, disk, delete=delete)


@router.post("/{vm}/start", status_code=202)
@operator
async def start_vm(services: CurrentServices, vm: str) -> Operation:
    """Bring a stopped VM up."""
    return await services.vms.start(vm)


@router.post("/{vm}/stop", status_code=202, openapi_extra=describes(StopRequest))
@operator
async def stop_vm(
    services: CurrentServices,
    vm: str,
    how: Annotated[StopRequest, Depends(body_of(StopRequest))],
) -> Operation:
    """Ask the guest to power off; end it after the timeout, or at once with force."""
    return await services.vms.stop(vm, force=how.force, timeout=how.timeout)


@router.post("/{vm}/restart", status_code=202)
@operator
async def restart_vm(services: CurrentServices, vm: str) -> Operation:
    """Stop a VM and bring it up again."""
    return await services.vms.restart(vm)


@router.post("/{vm}/pause", status_code=202)
@operator
async def pause_vm(services: CurrentServices, vm: str) -> Operation:
    """Stop a VM's vCPUs."""
    return await services.vms.pause(vm)


@router.post("/{vm}/resume", status_code=202)
@operator
async def resume_vm(services: CurrentServices, vm: str) -> Operation:
    """Let a paused VM go on."""
    return await services.vms.resume(vm)


@router.delete("/{vm}", status_code=202)
@operator
async def delete_vm(
    services: CurrentServices, vm: str, force: Annotated[bool, Query()] = False
) -> Operation:
    """Remove a VM with its disk; one that runs needs force."""
    return await services.vms.delete(vm, force=force)
