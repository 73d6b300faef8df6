"""Routes of disks as files: written by an operation, fetched, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse

from hanok.api.common import CurrentServices, body_of, describes
from hanok.api.roles import operator
from hanok.model.image import ExportRequest
from hanok.model.operation import Operation
from hanok.units import MIB

router = APIRouter()
_FILE = "application/octet-stream"


@router.post(
    "/vms/{vm}/export", status_code=202, tags=["VMs"], openapi_extra=describes(ExportRequest)
)
@operator
async def export_vm(
    services: CurrentServices,
    vm: str,
    wanted: Annotated[ExportRequest, Depends(body_of(ExportRequest))],
) -> Operation:
    """Write the system disk of a stopped VM to one file; the result names what to fetch."""
    return await services.exports.export(vm, wanted)


@router.post(
    "/images/{image}/export",
    status_code=202,
    tags=["Images"],
    openapi_extra=describes(ExportRequest),
)
@operator
async def export_image(
    services: CurrentServices,
    image: str,
    wanted: Annotated[ExportRequest, Depends(body_of(ExportRequest))],
) -> Operation:
    """Write the disk of an image to one file; the result names what to fetch."""
    return await services.exports.export_image(image, wanted)


@router.get(
    "/exports/{export}",
    tags=["VMs"],
    response_class=Response,
    responses={200: {"content": {_FILE: {}}}},
)
@operator
async def fetch_export(services: CurrentServices, export: str) -> StreamingResponse:
    """Return a disk that was exported; it is kept for an hour, or until it is deleted."""
    found = services.exports.open(export)

    async def content() -> AsyncIterator[bytes]:
        with found.file:
            while piece := await asyncio.to_thread(found.file.read, MIB):
                yield piece

    headers = {"Content-Length": str(found.size), "Cache-Control": "no-store"}
    return StreamingResponse(content(), media_type=_FILE, headers=headers)


@router.delete("/exports/{export}", status_code=204, tags=["VMs"])
@operator
async def forget_export(services: CurrentServices, export: str) -> Response:
    """Remove a disk that was exported, once it is fetched; nothing happens when it is gone."""
    services.exports.remove(export)
    return Response(status_code=204)
