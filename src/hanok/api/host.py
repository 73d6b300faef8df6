"""Routes of the host, its capacity, events and operations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from hanok import __version__
from hanok.api.common import CurrentServices, body_of, describes, ndjson
from hanok.api.roles import administrator, operator, viewer
from hanok.model.base import Frozen, Name, Size
from hanok.model.host import Fit
from hanok.model.operation import Event, Operation
from hanok.model.views import HostView
from hanok.units import GIB, MIB

router = APIRouter()


class Version(TypedDict):
    """Who answers."""

    name: str
    version: str
    pid: int
    home: str


class Shape(Frozen):
    """The shape of a VM whose room is asked for: said, or that of a template's clones."""

    cpus: int = Field(default=1, ge=1, le=256)
    memory: Size = Field(default=512 * MIB, ge=64 * MIB)
    disk: Size = Field(default=4 * GIB, ge=64 * MIB)
    template: Name | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.template is not None and self.model_fields_set > {"template"}:
            raise ValueError("expected a template or a shape, not both")
        return self


@router.get("/version", tags=["Host"])
@viewer
async def version(services: CurrentServices) -> Version:
    """Return who answers."""
    home = str(services.parts.settings.home)
    return Version(name="hanok", version=__version__, pid=os.getpid(), home=home)


@router.get("/host", tags=["Host"])
@viewer
async def host(services: CurrentServices) -> HostView:
    """Return what the host has, what is given away and what is left."""
    return await services.views.host()


@router.post("/host/probe", status_code=202, tags=["Host"])
@administrator
async def probe(services: CurrentServices) -> Operation:
    """Measure again what the hypervisor can do here."""
    return await services.operations.begin("probe", "host")


@router.post("/fit", tags=["Host"], openapi_extra=describes(Shape))
@viewer
async def fit(services: CurrentServices, shape: Annotated[Shape, Depends(body_of(Shape))]) -> Fit:
    """Return how many more VMs of a shape fit, and what stops the next one."""
    if shape.template is not None:
        return await services.capacity.fit_clones(shape.template)
    return await services.capacity.fit(shape.cpus, shape.memory, shape.disk)


@router.get("/events", tags=["Events"])
@viewer
async def events(
    services: CurrentServices, follow: bool = False, since: Annotated[int, Query(ge=0)] = 0
) -> StreamingResponse:
    """Return what happened, one JSON document a line."""
    log = services.parts.events
    if follow:
        return ndjson(log.follow(since))

    async def kept() -> AsyncIterator[Event]:
        for event in await log.recent(since):
            yield event

    return ndjson(kept())


@router.get("/operations", tags=["Operations"])
@viewer
async def operations(services: CurrentServices) -> list[Operation]:
    """Return the operations kept, the newest first."""
    return await services.operations.list()


@router.get("/operations/{ident}", tags=["Operations"])
@viewer
async def operation(services: CurrentServices, ident: str) -> Operation:
    """Return one operation."""
    return await services.operations.find(ident)


@router.get("/operations/{ident}/follow", tags=["Operations"])
@viewer
async def follow(services: CurrentServices, ident: str) -> StreamingResponse:
    """Return the operation whenever it changes, one JSON document a line, until it is final."""
    await services.operations.find(ident)
    return ndjson(services.operations.follow(ident))


@router.post("/operations/{ident}/cancel", tags=["Operations"])
@operator
async def cancel(services: CurrentServices, ident: str) -> Operation:
    """Cancel an operation and undo what it did."""
    return await asyncio.shield(services.operations.cancel(ident))
