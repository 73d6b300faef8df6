"""Routes of templates and of the clones made of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from hanok.api.common import CurrentServices, body_of, describes
from hanok.api.roles import operator, viewer
from hanok.model.operation import Operation
from hanok.model.template import CloneRequest, TemplateRequest
from hanok.model.views import TemplateView

router = APIRouter(tags=["Templates"])


@router.get("/templates")
@viewer
async def list_templates(services: CurrentServices) -> list[TemplateView]:
    """Return the templates."""
    return await services.templates.views()


@router.post("/templates", status_code=202, openapi_extra=describes(TemplateRequest))
@operator
async def create_template(
    services: CurrentServices,
    wanted: Annotated[TemplateRequest, Depends(body_of(TemplateRequest))],
) -> Operation:
    """Freeze a VM that is ready, with its memory, while it goes on."""
    return await services.templates.create(wanted)


@router.get("/templates/{template}")
@viewer
async def show_template(services: CurrentServices, template: str) -> TemplateView:
    """Return a template by name or id."""
    return await services.templates.view(await services.templates.find(template))


@router.delete("/templates/{template}", status_code=204)
@operator
async def delete_template(services: CurrentServices, template: str) -> Response:
    """Remove a template that no clone stands on."""
    await services.templates.delete(template)
    return Response(status_code=204)


@router.post("/clones", status_code=202, openapi_extra=describes(CloneRequest))
@operator
async def clone(
    services: CurrentServices, wanted: Annotated[CloneRequest, Depends(body_of(CloneRequest))]
) -> Operation:
    """Make VMs of a template: all of them, or none when one fails."""
    return await services.clones.create(wanted)
