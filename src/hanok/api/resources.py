"""Routes of images, networks and stacks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from hanok.api.common import CurrentServices, body_of, describes, describes_file, read_json
from hanok.api.roles import operator, viewer
from hanok.errors import InvalidInput
from hanok.model.base import Frozen
from hanok.model.image import Image, ImportRequest, PullRequest
from hanok.model.kernel import ImageKernels, Paravirtualization
from hanok.model.network import NetworkSpec
from hanok.model.operation import Operation
from hanok.model.stack import Stack
from hanok.model.validation import validated
from hanok.model.views import CatalogView, ImageView, NetworkView, StackView
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


@router.get("/catalog", tags=["Images"])
@viewer
async def list_catalog(services: CurrentServices) -> list[CatalogView]:
    """Return the images that can be pulled."""
    return await services.pulls.list()


@router.post("/images/pull", status_code=202, tags=["Images"], openapi_extra=describes(PullRequest))
@operator
async def pull_image(
    services: CurrentServices, wanted: Annotated[PullRequest, Depends(body_of(PullRequest))]
) -> Operation:
    """Download an image of the catalog, unless it is there already."""
    return await services.pulls.pull(wanted)


@router.post(
    "/images/import", status_code=202, tags=["Images"], openapi_extra=describes_file(ImportRequest)
)
@operator
async def import_image(services: CurrentServices, request: Request) -> Operation:
    """Make an image of a disk that others made: the body is the file, the query tells of it."""
    wanted = validated(ImportRequest, dict(request.query_params))
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() else None
    return await services.images.import_disk(wanted, request.stream(), announced)


@router.get("/images/{image}", tags=["Images"])
@viewer
async def show_image(services: CurrentServices, image: str) -> Image:
    """Return an image by id or by what users call it."""
    return await services.images.find(image)


@router.get("/images/{image}/kernels", tags=["Images"])
@viewer
async def show_kernels(services: CurrentServices, image: str) -> ImageKernels:
    """Return what an image's kernels can do: the modes that they can run in, and why not."""
    return await services.kernels.inspect(image)


@router.delete("/images/{image}", status_code=204, tags=["Images"])
@operator
async def delete_image(services: CurrentServices, image: str) -> Response:
    """Remove an image that no VM uses."""
    await services.images.delete(image)
    return Response(status_code=204)


@router.post(
    "/images/{image}/paravirtualize",
    status_code=202,
    tags=["Images"],
    openapi_extra=describes(Paravirtualization),
)
@operator
async def paravirtualize_image(
    services: CurrentServices,
    image: str,
    wanted: Annotated[Paravirtualization, Depends(body_of(Paravirtualization))],
) -> Operation:
    """Make a new image of this one, with a kernel that suits paravirtualization."""
    return await services.kernels.paravirtualize(image, wanted)


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
