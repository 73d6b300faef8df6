"""The role that each route needs. A route that names none is refused when the daemon starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import compile_path
from starlette.types import Scope

from hanok.model.token import Role

F = TypeVar("F", bound=Callable[..., Any])
ROLE_KEY = "x-hanok-role"
WEBSOCKETS_KEY = "x-hanok-websockets"
_ATTRIBUTE = "__hanok_role__"


def role(needed: Role) -> Callable[[F], F]:
    """Return a decorator that says which role a route needs; it stands below the route's own."""

    def mark(function: F) -> F:
        setattr(function, _ATTRIBUTE, needed)
        return function

    return mark


viewer = role(Role.VIEWER)
operator = role(Role.OPERATOR)
administrator = role(Role.ADMINISTRATOR)


@dataclass(frozen=True)
class Door:
    """A route: where it is, by which methods (none: a WebSocket), and the role it needs."""

    path: str
    pattern: re.Pattern[str]
    methods: frozenset[str]
    role: Role


class Access:
    """Which role each route needs, in the order in which the application tries them."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self._doors = tuple(doors)

    def needed(self, scope: Scope) -> Role | None:
        """Return the role that a request needs, or None when no route is for it."""
        method = scope["method"] if scope["type"] == "http" else None
        for door in self._doors:
            is_for = not door.methods if method is None else method in door.methods
            if is_for and door.pattern.match(scope["path"]):
                return door.role
        return None

    def websockets(self) -> dict[str, dict[str, str]]:
        """Return what the OpenAPI document tells of WebSocket routes, which it has no words for."""
        return {door.path: {ROLE_KEY: str(door.role)} for door in self._doors if not door.methods}


def take_roles(routers: Iterable[APIRouter], prefix: str) -> Access:
    """Put the role of each route into its OpenAPI entry and return all of them.

    Raises RuntimeError, naming it, for a route that says none: an error in Hanok, not of a user.
    """
    doors = []
    for router in routers:
        for route in router.routes:
            if not isinstance(route, APIRoute | APIWebSocketRoute):
                raise RuntimeError(f"{route} is no route whose role can be told")
            needed = getattr(route.endpoint, _ATTRIBUTE, None)
            if not isinstance(needed, Role):
                raise RuntimeError(f"the route {route.path} ({route.name}) names no role")
            methods: frozenset[str] = frozenset()
            if isinstance(route, APIRoute):
                methods = frozenset(route.methods or ())
                route.openapi_extra = {**(route.openapi_extra or {}), ROLE_KEY: str(needed)}
            pattern, _, _ = compile_path(prefix + route.path)
            doors.append(Door(prefix + route.path, pattern, methods, needed))
    return Access(doors)
