"""The OpenAPI document as programs can use it: whole, and with the errors that are really given.

FastAPI does not know of bodies that Hanok validates itself (``describes``), nor of its errors.
"""

from __future__ import annotations

from typing import Any

from hanok.model.operation import Problem

PROBLEM = "application/problem+json"
_REF = "#/components/schemas/"
_NOT_OURS = ("HTTPValidationError", "ValidationError")


def completed(told: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of FastAPI's document ``told`` in which each reference leads somewhere.

    Every route names Problem as what it answers when it fails, by RFC 9457.
    """
    schemas = {
        name: schema
        for name, schema in told["components"]["schemas"].items()
        if name not in _NOT_OURS
    }
    schemas.setdefault("Problem", Problem.model_json_schema(mode="serialization"))
    paths = {
        path: {method: _route(entry, schemas) for method, entry in entries.items()}
        for path, entries in told["paths"].items()
    }
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    components = {
        **told["components"],
        "schemas": dict(sorted(schemas.items())),
        "securitySchemes": schemes,
    }
    return {**told, "paths": paths, "components": components}


def _route(entry: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    failed = {
        "description": "It failed",
        "content": {PROBLEM: {"schema": {"$ref": f"{_REF}Problem"}}},
    }
    responses = {status: told for status, told in entry["responses"].items() if status != "422"}
    route = {**entry, "responses": {**responses, "default": failed}}
    if "requestBody" in entry:
        route["requestBody"] = _body(entry["requestBody"], schemas)
    return route


def _body(body: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return ``body`` with its schema moved, with all that it refers to, into ``schemas``."""
    content = {}
    for kind, told in body["content"].items():
        schema = dict(told["schema"])
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        if schema.get("type") == "object" and "title" in schema:
            name = schema["title"]
            schemas.setdefault(name, schema)
            schema = {"$ref": f"{_REF}{name}"}
        content[kind] = {**told, "schema": schema}
    return {**body, "content": content}
