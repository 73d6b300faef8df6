"""What every route shares: the services, bodies that are validated, streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from hanok.api.document import PROBLEM
from hanok.errors import InvalidInput
from hanok.model.validation import validated
from hanok.services.bundle import Services
from hanok.services.problems import problem_of

T = TypeVar("T", bound=BaseModel)
_MAX_BODY = 1024 * 1024
NDJSON = "application/x-ndjson"


def services_of(connection: HTTPConnection) -> Services:
    """Return the services that the application was made with."""
    return cast(Services, connection.app.state.services)


CurrentServices = Annotated[Services, Depends(services_of)]


async def read_json(request: Request) -> Any:
    """Return the request's body, at most 1 MiB, as JSON. Raises InvalidInput."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise InvalidInput("the request's body is too large", expected="at most 1 MiB of JSON")
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the request's body is no JSON: {error}", expected="JSON") from error


def body_of(model: type[T]) -> Callable[[Request], Awaitable[T]]:
    """Return a dependency that reads the body as ``model``, with Hanok's own error texts."""

    async def read(request: Request) -> T:
        return validated(model, await read_json(request))

    return read


def describes(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI is told of a route whose body is ``model``; see api/document.py."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describes_file(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI is told of a route whose body is a file, described by the query."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    needed = schema.get("required", ())
    file = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "requestBody": {"required": True, "content": file},
        "parameters": [
            {"name": name, "in": "query", "required": name in needed, "schema": {"type": "string"}}
            for name in schema["properties"]
        ],
    }


def ndjson(items: AsyncIterator[BaseModel]) -> StreamingResponse:
    """Return a stream of one JSON document a line."""

    async def lines() -> AsyncIterator[str]:
        async for item in items:
            yield item.model_dump_json() + "\n"

    return StreamingResponse(lines(), media_type=NDJSON)


def problem_response(error: BaseException) -> JSONResponse:
    """Return the answer that tells of ``error``."""
    problem = problem_of(error)
    return JSONResponse(
        problem.model_dump(exclude_none=True), status_code=problem.status, media_type=PROBLEM
    )
