"""The application: all routes under /v1, one error format."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from hanok import __version__
from hanok.api import exports, guests, host, resources, screens, templates, tokens, vms
from hanok.api.common import problem_response
from hanok.api.document import completed
from hanok.api.roles import WEBSOCKETS_KEY, Access, take_roles, viewer
from hanok.errors import HanokError, InvalidInput, NotFound
from hanok.services.bundle import Services

_log = logging.getLogger(__name__)


class Activity:
    """Tells for how long nothing has been asked of the daemon."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = 0
        self._last = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting it."""
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
            self._last = time.monotonic()

    def idle_seconds(self) -> float:
        """Return the seconds since the last request ended; 0 while one is open."""
        return 0.0 if self._open else time.monotonic() - self._last


document = APIRouter(tags=["Host"])
_PREFIX = "/v1"
_ROUTERS = (
    vms.router,
    guests.router,
    screens.router,
    templates.router,
    exports.router,
    host.router,
    resources.router,
    tokens.router,
    document,
)


@document.get("/openapi.json")
@viewer
async def openapi(request: Request) -> dict[str, Any]:
    """Return this document; beside the routes it tells of the WebSockets, and of every role."""
    return document_of(request.app)


def document_of(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document."""
    return {
        **completed(app.openapi()),
        "security": [{"token": []}, {}],  # none on the unix socket
        WEBSOCKETS_KEY: access_of(app).websockets(),
    }


def access_of(app: FastAPI) -> Access:
    """Return which role each route of the application needs."""
    return cast(Access, app.state.access)


def create_app(services: Services) -> FastAPI:
    """Return the application on ``services``. Raises RuntimeError when a route names no role."""
    app = FastAPI(
        title="Hanok",
        version=__version__,
        description="Turns physical servers into virtual machines.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.state.access = take_roles(_ROUTERS, _PREFIX)
    for router in _ROUTERS:
        app.include_router(router, prefix=_PREFIX)
    app.add_exception_handler(HanokError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_parameter)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)
    return app


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    return problem_response(error)


async def _answer_parameter(request: Request, error: Exception) -> JSONResponse:
    """A parameter of the path or the query is wrong; bodies are validated by body_of."""
    if not isinstance(error, RequestValidationError):
        return problem_response(error)
    first = error.errors()[0]
    return problem_response(
        InvalidInput(f"{first['loc'][-1]}: {first['msg']}", field=str(first["loc"][-1]))
    )


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    told = NotFound(f"there is no {request.method} {request.url.path}", hint="see /v1/openapi.json")
    answer = problem_response(told)
    answer.status_code = status
    return answer


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response(error)
