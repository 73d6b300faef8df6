"""The reference of the HTTP API, from the OpenAPI document that the daemon serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from hanok.api.app import create_app, document_of
from hanok.api.roles import ROLE_KEY, WEBSOCKETS_KEY
from hanok.services.bundle import Services

_SOCKETS = {
    "/v1/vms/{vm}/console": "The guest's serial console: bytes both ways.",
    "/v1/vms/{vm}/tcp/{port}": "A TCP port of the guest: bytes both ways.",
}


def document() -> dict[str, Any]:
    """Return the document; no service is asked for it, so there are none."""
    return document_of(create_app(cast(Services, None)))


def markdown(told: Mapping[str, Any]) -> str:
    """Return the reference page."""
    lines = [
        "<!-- Made by 'make docs' from the OpenAPI document: change the routes instead. -->",
        "# Reference: the HTTP API",
        "",
        "The daemon answers on the socket `hanokd.sock` in its data directory, and over the",
        "network when it listens there ([remotes](../remotes.md)). `GET /v1/openapi.json` is this",
        "reference for programs.",
        "",
        "```",
        "curl --unix-socket /var/lib/hanok/hanokd.sock http://hanok/v1/vms",
        "```",
        "",
        "- Bodies are JSON, at most 1 MiB. Sizes are bytes; they may be written `512M` too.",
        "  Moments are seconds since 1970. Unknown fields are refused.",
        "- What takes time is answered by 202 and an [Operation](#operation) once it is on disk;",
        "  `GET /v1/operations/ID/follow` streams it until it is final.",
        "- Whatever fails is answered by a [Problem](#problem) (`application/problem+json`, RFC",
        "  9457); its `code` is stable: [troubleshooting](../troubleshooting.md).",
        "- On the unix socket no token is needed. Over the network each route needs the role that",
        "  stands with it: `viewer`, `operator` or `administrator`.",
        "",
        *_routes(told),
        *_sockets(told[WEBSOCKETS_KEY]),
        "## Objects",
        "",
    ]
    for name, schema in told["components"]["schemas"].items():
        lines += _object(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _routes(told: Mapping[str, Any]) -> list[str]:
    by_tag: dict[str, list[str]] = {}
    for path, entries in told["paths"].items():
        for method, entry in entries.items():
            by_tag.setdefault(entry["tags"][0], []).extend(_route(method.upper(), path, entry))
    lines = []
    for tag, routes in by_tag.items():
        lines += [f"## {tag}", "", *routes]
    return lines


def _route(method: str, path: str, entry: Mapping[str, Any]) -> list[str]:
    lines = [f"### {method} {path}", "", entry.get("description", "").replace("``", "`"), ""]
    facts = [f"Role: `{entry[ROLE_KEY]}`."]
    for kind, body in entry.get("requestBody", {}).get("content", {}).items():
        schema = body["schema"]
        what = _type(schema) if "$ref" in schema else f"a file, `{kind}`"
        facts.append(f"Body: {what}.")
    facts += [_answer(status, one) for status, one in entry["responses"].items()]
    lines += [" ".join(fact for fact in facts if fact), ""]
    query = [one for one in entry.get("parameters", ()) if one["in"] == "query"]
    if query:
        lines += ["| query | type | |", "|---|---|---|"]
        lines += [_row(one["name"], one["schema"], one["required"]) for one in query]
        lines.append("")
    return lines


def _answer(status: str, response: Mapping[str, Any]) -> str:
    if status == "default":
        return ""
    schemas = [one.get("schema") for one in response.get("content", {}).values()]
    if not schemas:
        return f"Answer: {status}, nothing."
    if not schemas[0]:
        return f"Answer: {status}, a stream or a file."
    return f"Answer: {status}, {_type(schemas[0])}."


def _sockets(sockets: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = ["## WebSockets", "", "| path | role | |", "|---|---|---|"]
    for path, entry in sockets.items():
        lines.append(f"| `{path}` | `{entry[ROLE_KEY]}` | {_SOCKETS.get(path, '')} |")
    return [*lines, ""]


def _object(name: str, schema: Mapping[str, Any]) -> list[str]:
    lines = [f"### {name}", ""]
    if text := schema.get("description"):
        lines += [" ".join(text.replace("``", "`").split()), ""]
    if "enum" in schema:
        return [*lines, f"One of {_values(schema['enum'])}.", ""]
    required = schema.get("required", ())
    lines += ["| field | type | |", "|---|---|---|"]
    lines += [_row(key, one, key in required) for key, one in schema["properties"].items()]
    return [*lines, ""]


def _row(name: str, schema: Mapping[str, Any], required: bool) -> str:
    notes = [schema.get("description", ""), *_bounds(schema)]
    if "default" in schema:
        notes.append(f"default {_value(schema['default'])}")
    elif required:
        notes.append("needed")
    text = "; ".join(note for note in notes if note)
    return f"| `{name}` | {_type(schema)} | {_cell(text)} |"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return _values(schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return kind


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    """Return what limits a value, also where it may be null beside it."""
    for one in schema.get("anyOf", ()):
        if one.get("type") != "null":
            return _bounds(one)
    words = {
        "minimum": "at least {}",
        "ge": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "le": "at most {}",
        "maxLength": "at most {} characters",
        "maxItems": "at most {} of them",
        "pattern": "as `{}`",
    }
    return [text.format(_number(schema[key])) for key, text in words.items() if key in schema]


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(value: object) -> str:
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str) and not value:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_value(one) for one in value)
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else f"`{_number(value)}`"


def _values(values: Sequence[object]) -> str:
    return ", ".join(f"`{one}`" for one in values)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
