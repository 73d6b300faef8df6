"""Routes of images, networks and stacks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from hanok.api.common import CurrentServices, body_of, describes, read_json
from hanok.api.roles import operator, viewer
from hanok.errors import InvalidInput
from hanok.model.base import Frozen
from hanok.model.image import Image
from hanok.model.network import NetworkSpec
from hanok.model.operation import Operation
from hanok.model.stack import Stack
from hanok.model.views import ImageView, NetworkView, StackView
from hanok.model.vm import ImageRef, Package

router = APIRouter()


class BuildRequest(Frozen):
    """An image to build."""

    image: ImageRef
    packages: tuple[Package, ...] = Field(default=(), max_length=256)


@router.get("/images", tags=["Images"])
@viewer
async def list_images(services: CurrentServices) -> list[ImageView]:
    """Return the images on this host."""
    return await services.images.list()


@router.post(
    "/images/build", status_code=202, tags=["Images"], openapi_extra=describes(BuildRequest)
)
@operator
async def build_image(
    services: CurrentServices, wanted: Annotated[BuildRequest, Depends(body_of(BuildRequest))]
) -> Operation:
    """Build an image unless it is there already."""
    return await services.images.build(wanted.image, wanted.packages)


@router.get("/images/{image}", tags=["Images"])
@viewer
async def show_image(services: CurrentServices, image: str) -> Image:
    """Return an image by id or by what users call it."""
    return await services.images.find(image)


@router.delete("/images/{image}", status_code=204, tags=["Images"])
@operator
async def delete_image(services: CurrentServices, image: str) -> Response:
    """Remove an image that no VM uses."""
    await services.images.delete(image)
    return Response(status_code=204)


@router.get("/networks", tags=["Networks"])
@viewer
async def list_networks(services: CurrentServices) -> list[NetworkView]:
    """Return the networks."""
    return await services.networks.list()


@router.post("/networks", status_code=201, tags=["Networks"], openapi_extra=describes(NetworkSpec))
@operator
async def create_network(
    services: CurrentServices, spec: Annotated[NetworkSpec, Depends(body_of(NetworkSpec))]
) -> NetworkView:
    """Make a network."""
    async with services.parts.locks.admission:
        record = await services.networks.create(spec)
    return await services.networks.view(record)


@router.get("/networks/{name}", tags=["Networks"])
@viewer
async def show_network(services: CurrentServices, name: str) -> NetworkView:
    """Return a network."""
    return await services.networks.view(await services.parts.network(name))


@router.delete("/networks/{name}", status_code=204, tags=["Networks"])
@operator
async def delete_network(services: CurrentServices, name: str) -> Response:
    """Remove a network that no VM uses."""
    async with services.parts.locks.admission:
        await services.networks.delete(name)
    return Response(status_code=204)


@router.get("/stacks", tags=["Stacks"])
@viewer
async def list_stacks(services: CurrentServices) -> list[StackView]:
    """Return the stacks that are up."""
    return await services.stacks.list()


@router.put("/stacks/{name}", status_code=202, tags=["Stacks"], openapi_extra=describes(Stack))
@operator
async def up(
    services: CurrentServices, name: str, data: Annotated[Any, Depends(read_json)]
) -> Operation:
    """Bring up what a stack file describes; what is up already stays."""
    if not isinstance(data, dict):
        raise InvalidInput("a stack is a mapping", expected="name, networks and vms")
    return await services.stacks.up(name, data)


@router.get("/stacks/{name}", tags=["Stacks"])
@viewer
async def show_stack(services: CurrentServices, name: str) -> StackView:
    """Return a stack that is up."""
    return await services.stacks.find(name)


@router.delete("/stacks/{name}", status_code=202, tags=["Stacks"])
@operator
async def down(services: CurrentServices, name: str) -> Operation:
    """Stop and delete everything of a stack."""
    return await services.stacks.down(name)
